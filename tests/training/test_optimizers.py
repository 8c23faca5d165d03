import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SAME_FORMULA_RTOL

from ul2 import axes
from ul2.training.optimizers import adafactor, adamw

RATE = 0.1
PARAM_AXES = {
    "wide": (axes.EMBED, axes.MLP),
    "norm": (axes.EMBED,),
    "square": (axes.EMBED, axes.HEADS),
    "relative": {"table": (axes.BIAS_HEADS, axes.BUCKETS)},
}
SHAPES = {
    "wide": (6, 9),
    "norm": (6,),
    "square": (8, 8),
    "relative": {"table": (3, 8)},
}


def draw(seed, shapes, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def rms(array):
    return np.sqrt(np.mean(array**2))


def adafactor_by_hand(param, grads, *, min_dim, scaled):
    """Adafactor of one matrix or vector, in float64, from the paper's algorithm."""
    param, v = param.astype(np.float64), 0.0
    row = col = 0.0
    for step, grad in enumerate(grads):
        grad = grad.astype(np.float64)
        decay = 1 - (step + 1) ** -0.8
        square = grad**2 + 1e-30
        if param.ndim == 2 and min(param.shape) >= min_dim:
            row = decay * row + (1 - decay) * square.mean(axis=1)
            col = decay * col + (1 - decay) * square.mean(axis=0)
            second = np.outer(row, col) / row.mean()
        else:
            second = v = decay * v + (1 - decay) * square
        update = grad / np.sqrt(second)
        update = update / max(1.0, rms(update))
        scale = max(rms(param), 1e-3) if scaled else 1.0
        param = param - RATE * scale * update
    return param


def run(transform, params, all_grads):
    state = transform.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for grads in all_grads:
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.parametrize("min_dim", [4, 128])
def test_adafactor_follows_the_rule(min_dim):
    params = draw(0, SHAPES)
    grads = [draw(seed, SHAPES, scale=10.0**seed) for seed in range(1, 5)]
    rule = adafactor(RATE, PARAM_AXES, min_dim_size_to_factor=min_dim)
    ours, _ = run(rule, params, grads)
    for name in ("wide", "norm", "square"):
        expected = adafactor_by_hand(
            params[name], [g[name] for g in grads], min_dim=min_dim, scaled=True
        )
        np.testing.assert_allclose(
            ours[name], expected, rtol=SAME_FORMULA_RTOL, atol=1e-6
        )


@pytest.mark.parametrize(
    ("unscaled", "scaled"), [(("relative_bias",), False), ((), True)]
)
def test_relative_bias_is_not_scaled_by_its_own_size_in_ul2(unscaled, scaled):
    params, grads = draw(0, SHAPES), [draw(1, SHAPES), draw(2, SHAPES)]
    rule = adafactor(RATE, PARAM_AXES, unscaled_params=unscaled)
    ours, _ = run(rule, params, grads)
    expected = adafactor_by_hand(
        params["relative"]["table"],
        [g["relative"]["table"] for g in grads],
        min_dim=128,
        scaled=scaled,
    )
    np.testing.assert_allclose(
        ours["relative"]["table"], expected, rtol=SAME_FORMULA_RTOL, atol=1e-6
    )


def test_unscaled_params_match_dotted_paths():
    params, grads = draw(0, SHAPES), [draw(1, SHAPES)]
    ours, _ = run(adafactor(RATE, PARAM_AXES, unscaled_params=("^nor",)), params, grads)
    expected = adafactor_by_hand(
        params["norm"], [grads[0]["norm"]], min_dim=128, scaled=False
    )
    np.testing.assert_allclose(ours["norm"], expected, rtol=SAME_FORMULA_RTOL)


@pytest.mark.parametrize("min_dim", [4, 128])
def test_scanned_layers_train_as_separate_matrices(min_dim):
    num_layers = 3
    stacked_axes = jax.tree.map(
        lambda names: (axes.LAYERS, *names),
        PARAM_AXES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    # Layers of very different sizes: sharing anything between them would show.
    layers = [draw(i, SHAPES, scale=100.0**i) for i in range(num_layers)]
    grads = [
        [draw(10 * step + i, SHAPES, scale=100.0**-i) for i in range(num_layers)]
        for step in range(1, 4)
    ]
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    together, state = run(
        adafactor(RATE, stacked_axes, min_dim_size_to_factor=min_dim),
        stack(layers),
        [stack(each) for each in grads],
    )
    rule = adafactor(RATE, PARAM_AXES, min_dim_size_to_factor=min_dim)
    apart = [
        run(rule, layer, [each[i] for each in grads])[0]
        for i, layer in enumerate(layers)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=SAME_FORMULA_RTOL),
        together,
        stack(apart),
    )
    factored = min_dim == 4
    assert state[0].v_row["wide"].shape == ((3, 6) if factored else (3, 1))
    assert state[0].v_col["wide"].shape == ((3, 9) if factored else (3, 1))
    assert state[0].v["wide"].shape == ((3, 1) if factored else (3, 6, 9))


@pytest.mark.parametrize(
    ("factor_stacked", "factored"),
    [
        ("by_size", {"big"}),
        ("attention", {"big", "query", "key"}),
        ("always", {"big", "query", "key", "up"}),
    ],
)
def test_stacked_kernels_may_be_factored_whatever_their_size(factor_stacked, factored):
    dims = {
        "big": ((axes.LAYERS, axes.EMBED, axes.MLP), (2, 16, 20)),
        "query": ((axes.LAYERS, axes.EMBED, axes.HEADS), (2, 4, 6)),
        "key": ((axes.LAYERS, axes.EMBED, axes.KV_HEADS), (2, 4, 3)),
        "up": ((axes.LAYERS, axes.EMBED, axes.MLP), (2, 4, 6)),
        "norm": ((axes.LAYERS, axes.EMBED), (2, 4)),
        "bias": ((axes.LAYERS, axes.BIAS_HEADS, axes.BUCKETS), (2, 3, 8)),
        "table": ((axes.VOCAB, axes.EMBED), (8, 4)),
    }
    rule = adafactor(
        RATE,
        {name: names for name, (names, _) in dims.items()},
        min_dim_size_to_factor=16,
        factor_stacked=factor_stacked,
    )
    state = rule.init({name: jnp.ones(shape) for name, (_, shape) in dims.items()})[0]
    found = {name for name in dims if state.v_row[name].shape[-1] > 1}
    assert found == factored
    whole = {name for name, (_, shape) in dims.items() if state.v[name].shape == shape}
    assert whole == dims.keys() - factored


def test_unknown_way_to_factor_is_refused():
    with pytest.raises(ValueError, match="set FACTOR_STACKED"):
        adafactor(RATE, PARAM_AXES, factor_stacked="never")


def test_adamw_decays_matrices_but_not_norms_or_biases():
    param_axes = {**PARAM_AXES, "norms": (axes.LAYERS, axes.EMBED)}
    shapes = {**SHAPES, "norms": (2, 6)}
    params = draw(0, shapes)
    zeros = jax.tree.map(np.zeros_like, params)
    rule = adamw(RATE, param_axes, weight_decay=0.5)
    decayed, _ = run(rule, params, [zeros])
    np.testing.assert_allclose(decayed["wide"], params["wide"] * 0.95, rtol=1e-6)
    for name in ("norm", "norms", "relative"):
        jax.tree.map(np.testing.assert_array_equal, decayed[name], params[name])


def test_adamw_clips_to_a_global_norm():
    params, grads = draw(0, SHAPES), draw(1, SHAPES)
    huge = jax.tree.map(lambda grad: grad * 1e6, grads)
    # With eps large, the size of a gradient matters to Adam.
    rule = adamw(RATE, PARAM_AXES, eps=1.0, max_grad_norm=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        run(rule, params, [huge])[0],
        run(rule, params, [grads])[0],
    )
    with pytest.raises(ValueError, match="MAX_GRAD_NORM"):
        adamw(RATE, PARAM_AXES, max_grad_norm=0.0)
