import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL

from ul2.training.losses import chunk_columns, cross_entropy

B, T, D, V, K = 2, 7, 4, 11, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {
        "hidden": jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
        "kernel": jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        "targets": jnp.asarray(rng.integers(0, V, (B, T))),
        "weights": jnp.asarray(rng.integers(0, 2, (B, T)), jnp.float32),
        "denoiser_ids": jnp.asarray(rng.integers(-1, K, (B, T))),
    }


def scored(data, chunk_length, z_loss_weight=0.1):
    return cross_entropy(
        lambda hidden: hidden @ data["kernel"],
        data["hidden"],
        data["targets"],
        data["weights"],
        data["denoiser_ids"],
        num_denoisers=K,
        z_loss_weight=z_loss_weight,
        chunk_length=chunk_length,
    )


def chunked(data, chunk_length, **options):
    return scored(data, chunk_length, **options)[0]


def plain_objective(data):
    logits = data["hidden"] @ data["kernel"]
    log_probs = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(data["targets"], V)
    z = jnp.log(jnp.sum(jnp.exp(logits), -1))
    token = -jnp.sum(one_hot * log_probs, -1) + 0.1 * z**2
    return jnp.sum(token * data["weights"])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=REORDERED_SUM_RTOL, atol=REORDERED_SUM_ATOL)


@pytest.mark.parametrize("chunk_length", [1, 3, 7, 100])
def test_chunked_loss_equals_log_softmax_in_value_and_gradient(data, chunk_length):
    floats = {k: data[k] for k in ("hidden", "kernel")}
    plain = jax.value_and_grad(lambda f: plain_objective({**data, **f}))(floats)
    ours = jax.value_and_grad(lambda f: chunked({**data, **f}, chunk_length).objective)(
        floats
    )
    jax.tree.map(close, ours, plain)


def test_gradients_are_made_with_the_logits_and_nothing_twice(data):
    def products(function):
        program = jax.make_jaxpr(function)({k: data[k] for k in ("hidden", "kernel")})
        return str(program).count("dot_general")

    def objective(floats):
        return chunked({**data, **floats}, 3).objective

    # Logits; and the gradients of hidden states and kernel.
    assert products(objective) == 1
    assert products(jax.grad(objective)) == 3


def test_gradient_grows_with_what_the_objective_counts(data):
    def gradient(factor):
        return jax.grad(
            lambda hidden: factor * chunked({**data, "hidden": hidden}, 3).objective
        )(data["hidden"])

    close(gradient(3.0), 3.0 * gradient(1.0))


def test_sums_are_parted_by_denoiser(data):
    sums = chunked(data, 3, z_loss_weight=0.0)
    log_probs = np.asarray(jax.nn.log_softmax(data["hidden"] @ data["kernel"]))
    losses = -np.take_along_axis(log_probs, np.asarray(data["targets"])[..., None], -1)
    hits = log_probs.argmax(-1) == np.asarray(data["targets"])
    for k in range(K):
        mine = np.asarray(data["weights"]) * (np.asarray(data["denoiser_ids"]) == k)
        close(sums.loss[k], np.sum(losses[..., 0] * mine))
        close(sums.correct[k], np.sum(hits * mine))
        close(sums.tokens[k], mine.sum())
    close(sums.weights, np.sum(data["weights"]))


@pytest.mark.parametrize("chunk_length", [1, 3, 7, 100])
def test_columns_predicted_right_are_told_in_their_places(data, chunk_length):
    _, correct = scored(data, chunk_length)
    likeliest = np.asarray(data["hidden"] @ data["kernel"]).argmax(-1)
    np.testing.assert_array_equal(correct, likeliest == np.asarray(data["targets"]))


def test_of_equal_logits_the_first_is_the_prediction(data):
    # Columns 2 and 5 of the head are the same, and always the largest.
    hidden = jnp.abs(data["hidden"])
    kernel = data["kernel"].at[:, jnp.array([2, 5])].set(9.0)
    targets = jnp.resize(jnp.array([2, 5, 1]), (B, T))
    _, correct = scored(
        {**data, "hidden": hidden, "kernel": kernel, "targets": targets}, 3
    )
    np.testing.assert_array_equal(correct, targets == 2)


@pytest.mark.parametrize(
    ("rows", "columns", "vocab_size", "expected"),
    [
        (32, 512, 32128, 128),  # UL2 20B on a v5p 4x4x4: 130 would do, four parts do
        (1, 512, 32128, 512),  # few rows: all at once
        (4, 1792, 32128, 896),
        (1, 512, 256_000, 512),
        (8, 512, 256_000, 64),
        (10**6, 512, 32128, 1),
    ],
)
def test_chunks_have_few_columns_where_a_device_has_many_rows(
    rows, columns, vocab_size, expected
):
    sizes = {"rows": rows, "columns": columns, "vocab_size": vocab_size}
    assert chunk_columns("auto", **sizes) == expected
    assert chunk_columns(7, **sizes) == 7


def test_full_logits_never_exist(data):
    jaxpr = str(
        jax.make_jaxpr(
            lambda: jax.grad(lambda h: chunked({**data, "hidden": h}, 3).objective)(
                data["hidden"]
            )
        )()
    )
    assert f"f32[{B},3,{V}]" in jaxpr
    assert f"f32[{B},{T},{V}]" not in jaxpr
    assert f"f32[3,{B},3,{V}]" not in jaxpr  # stored for the backward pass
