"""Both architectures whole: who sees whom, packing, memory, dropout, compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from model_fixtures import (
    cross_entropy,
    loss_gradients,
    make_batch,
    pack_examples,
    tiny_config,
    tiny_model,
)

from ul2 import axes
from ul2.models.decoder_only import DecoderOnly

ARCHITECTURES = ("encoder_decoder", "decoder_only")
SMALL = {
    "vocab_size": 32,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_kv_heads": 1,
}
INPUTS = [[[1, 2, 3, 4], [5, 6]], [[7, 8, 9], [10, 11, 12]]]
TARGETS = [[[0, 13, 14], [0, 15, 16, 17]], [[0, 18, 19, 20, 21], [0, 22]]]
PREFIXES = np.array([[2, 3], [0, 1]])


def small_model(architecture, **changes):
    return tiny_model(architecture, **{**SMALL, **changes})


def small_batch(architecture, targets=TARGETS, inputs=INPUTS):
    if architecture == "encoder_decoder":
        encoder = pack_examples(inputs, width=8)
        return make_batch(encoder, pack_examples(targets, width=9))
    decoder = pack_examples(targets, width=9)
    return make_batch(None, decoder, prefix_lengths=PREFIXES)


@jax.jit
def hidden_states(model, batch, dropout_key=None):
    return model(batch, dropout_key=dropout_key)


def moved(model, batch, **changed):
    """Returns which decoder columns of row 0 a change of tokens moves."""
    sides = {
        side: getattr(batch, side)._replace(tokens=tokens)
        for side, tokens in changed.items()
    }
    before, after = (hidden_states(model, b) for b in (batch, batch._replace(**sides)))
    differs = np.abs(np.asarray(after - before)).max(axis=-1) > 0
    assert not differs[1:].any()
    return np.flatnonzero(differs[0]).tolist()


# Row 0 of the decoder: example 1 in columns 0-2, example 2 in 3-6, padding in 7-8.
@pytest.mark.parametrize("positions", ["relative", "rope"])
@pytest.mark.parametrize(
    ("architecture", "column", "expected"),
    [
        ("encoder_decoder", 0, [0, 1, 2]),
        ("encoder_decoder", 1, [1, 2]),
        ("encoder_decoder", 2, [2]),
        ("encoder_decoder", 4, [4, 5, 6]),
        ("encoder_decoder", 6, [6]),
        # Prefixes of 2 and 3 tokens: columns 0-1 and 3-5 see each other.
        ("decoder_only", 1, [0, 1, 2]),
        ("decoder_only", 2, [2]),
        ("decoder_only", 5, [3, 4, 5, 6]),
        ("decoder_only", 6, [6]),
    ],
)
def test_decoder_token_moves_those_who_see_it(
    architecture, column, expected, positions
):
    model = small_model(architecture, positions=positions)
    batch = small_batch(architecture)
    tokens = batch.decoder.tokens.at[0, column].set(31)
    assert moved(model, batch, decoder=tokens) == expected


# Row 0 of the encoder: example 1 in columns 0-3, example 2 in 4-5, padding in 6-7.
@pytest.mark.parametrize(
    ("column", "expected"),
    [(0, [0, 1, 2]), (3, [0, 1, 2]), (4, [3, 4, 5, 6]), (5, [3, 4, 5, 6]), (6, [])],
)
def test_encoder_token_moves_its_own_example(column, expected):
    model, batch = (f("encoder_decoder") for f in (small_model, small_batch))
    tokens = batch.encoder.tokens.at[0, column].set(31)
    assert moved(model, batch, encoder=tokens) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_moves_nothing_but_itself(architecture):
    model, batch = small_model(architecture), small_batch(architecture)
    tokens = batch.decoder.tokens.at[0, 7:].set(31)
    assert set(moved(model, batch, decoder=tokens)) <= {7, 8}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["relative", "rope"])
def test_packed_outputs_equal_unpacked(architecture, positions):
    model = small_model(architecture, positions=positions)
    packed = hidden_states(model, small_batch(architecture))
    rows = [[example] for row in TARGETS for example in row]
    decoder = pack_examples(rows, width=5, length=5)
    if architecture == "encoder_decoder":
        inputs = [[example] for row in INPUTS for example in row]
        alone = make_batch(pack_examples(inputs, width=4, length=4), decoder)
    else:
        alone = make_batch(None, decoder, prefix_lengths=PREFIXES.reshape(4, 1))
    unpacked = hidden_states(model, alone)
    lengths = [len(example) for row in TARGETS for example in row]
    places = [(0, 0), (0, 3), (1, 0), (1, 5)]
    for n, (length, (row, start)) in enumerate(zip(lengths, places, strict=True)):
        np.testing.assert_allclose(
            packed[row, start : start + length],
            unpacked[n, :length],
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_remat_keeps_gradients(architecture):
    batch = small_batch(architecture)
    expected = loss_gradients(small_model(architecture), batch)
    for remat in ("dots", "full", "offload"):
        ours = loss_gradients(small_model(architecture, remat=remat), batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            ours,
            expected,
        )


def test_full_remat_stores_less():
    batch = small_batch("decoder_only")

    def stored(remat):
        model = small_model("decoder_only", remat=remat)
        graphdef, state = nnx.split(model)
        _, pull = jax.vjp(lambda state: nnx.merge(graphdef, state)(batch), state)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert stored("full") < stored("dots") < stored("none")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_program_does_not_grow_with_depth(architecture):
    batch = small_batch(architecture)

    def program_length(depth):
        layers = {"num_decoder_layers": depth}
        if architecture == "encoder_decoder":
            layers["num_encoder_layers"] = depth
        graphdef, state = nnx.split(small_model(architecture, **layers))

        def loss(state):
            logits = nnx.merge(graphdef, state).logits(batch)
            return cross_entropy(logits, batch)

        return len(str(jax.make_jaxpr(jax.grad(loss))(state)).splitlines())

    assert program_length(2) == program_length(5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_needs_a_key_and_a_rate(architecture):
    batch, key = small_batch(architecture), jax.random.key(0)
    model = small_model(architecture, dropout_rate=0.5)
    plain = small_model(architecture)
    expected = hidden_states(plain, batch)
    np.testing.assert_array_equal(hidden_states(model, batch), expected)
    np.testing.assert_array_equal(hidden_states(plain, batch, key), expected)
    dropped = hidden_states(model, batch, key)
    assert jnp.isfinite(dropped).all()
    np.testing.assert_array_equal(dropped, hidden_states(model, batch, key))
    other = hidden_states(model, batch, jax.random.key(1))
    assert not np.array_equal(dropped, other)
    # The last dropout leaves zeros at its own rate.
    tokens = np.asarray(batch.decoder.segment_ids) > 0
    assert 0.25 < np.mean(np.asarray(dropped)[tokens] == 0) < 0.75


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_the_dtype_of_activations_alone(architecture):
    batch = small_batch(architecture)
    model = small_model(architecture, dtype="bfloat16", tied_embeddings=True)
    reference = small_model(architecture, tied_embeddings=True)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(model)))
    assert model(batch).dtype == jnp.bfloat16
    logits = model.logits(batch)
    assert logits.dtype == jnp.float32
    assert np.abs(logits - reference.logits(batch)).mean() < 0.06


@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
def test_every_parameter_has_named_dims_and_a_gradient(relative_bias):
    model = small_model("encoder_decoder", relative_bias=relative_bias)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        names = variable.get_metadata("out_sharding")
        assert len(names) == variable.ndim and set(names) <= set(axes.ALL), path
        assert ("layers" in path) == (names[0] == axes.LAYERS), path
    _, gradients = loss_gradients(model, small_batch("encoder_decoder"))
    for path, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, path


def test_layers_are_drawn_independently():
    model = small_model("decoder_only")
    first, second = model.decoder.layers.attention.query[...]
    assert np.abs(np.asarray(first - second)).max() > 0.01


def test_initial_scales_are_those_of_t5x():
    model = DecoderOnly(
        tiny_config(embed_dim=64, head_dim=16, mlp_dim=256, num_encoder_layers=0),
        rngs=nnx.Rngs(0),
    )
    layers = model.decoder.layers
    expected = {
        "embedding": (model.embedder.embedding, 1.0),
        "logits": (model.embedder.logits_kernel, 64**-0.5),
        "query": (layers.attention.query, (64 * 16) ** -0.5),
        "key": (layers.attention.key, 64**-0.5),
        "out": (layers.attention.out, 64**-0.5),
        "wi": (layers.mlp.wi_0, 64**-0.5),
        "wo": (layers.mlp.wo, 256**-0.5),
        # Uniform of variance 1 / mean(4 heads, 32 buckets).
        "bias": (model.decoder.relative_bias.rel_embedding, 18**-0.5),
    }
    for name, (parameter, deviation) in expected.items():
        measured = float(jnp.std(parameter[...]))
        np.testing.assert_allclose(measured, deviation, rtol=0.15, err_msg=name)
    assert (layers.pre_mlp_norm.scale[...] == 1).all()


def test_activations_are_constrained_inside_a_mesh_alone():
    batch = small_batch("decoder_only")
    graphdef, state = nnx.split(small_model("decoder_only"))

    def program():
        # A new function each time: the rules are no part of the tracing cache's key.
        return str(jax.make_jaxpr(lambda s: nnx.merge(graphdef, s)(batch))(state))

    assert "sharding_constraint" not in program()
    rules = tuple((name, None) for name in axes.ALL)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        assert "sharding_constraint" in program()
