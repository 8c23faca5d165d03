import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import pack_examples, tiny_config
from tolerances import REORDERED_SUM_RTOL

from ul2.models.attention import Attention, attend
from ul2.models.attention_in_turn import attend_in_turn
from ul2.models.masks import Causal

KEYS = jax.random.split(jax.random.key(0), 4)
Q = jax.random.normal(KEYS[0], (2, 6, 5, 4))
K = jax.random.normal(KEYS[1], (2, 3, 7, 4))
V = jax.random.normal(KEYS[2], (2, 3, 7, 4))
BIAS = jax.random.normal(KEYS[3], (6, 5, 7))
MASK = jnp.arange(7)[None, None, None, :] < jnp.array([7, 4])[:, None, None, None]


def test_grouped_queries_equal_repeated_keys():
    grouped = attend(Q, K, V, MASK, BIAS)
    repeated = attend(Q, jnp.repeat(K, 2, 1), jnp.repeat(V, 2, 1), MASK, BIAS)
    np.testing.assert_allclose(grouped, repeated, rtol=1e-6, atol=1e-6)


def test_attend_is_the_weighted_mean():
    out = attend(Q, K, V, MASK, BIAS)
    example, head = 1, 3
    logits = Q[example, head] @ K[example, head // 2].T + BIAS[head]
    weights = jax.nn.softmax(logits[:, :4], axis=-1)
    expected = weights @ V[example, head // 2, :4]
    np.testing.assert_allclose(out[example, head], expected, rtol=1e-5, atol=1e-6)


def test_masked_keys_change_nothing():
    changed = attend(Q, K.at[1, :, 4:].set(9.0), V.at[1, :, 4:].set(9.0), MASK, BIAS)
    np.testing.assert_array_equal(changed, attend(Q, K, V, MASK, BIAS))


@pytest.mark.parametrize("attend", [attend, attend_in_turn])
def test_query_that_sees_nothing_stays_finite(attend):
    nothing = jnp.zeros_like(MASK)
    out, gradients = jax.value_and_grad(
        lambda q, k, v: jnp.sum(attend(q, k, v, nothing, BIAS)), argnums=(0, 1, 2)
    )(Q, K, V)
    assert all(jnp.isfinite(leaf).all() for leaf in (out, *gradients))


CAUSAL = jnp.tril(jnp.ones((5, 7), bool))[None, None]


@pytest.mark.parametrize("mask", [MASK, MASK & CAUSAL, CAUSAL])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_examples_in_turn_equal_all_at_once_in_value_and_gradient(mask, bias):
    pull = jax.random.normal(jax.random.key(7), Q.shape)

    def run(attend):
        def score(q, k, v, bias):
            out = attend(q, k, v, mask, bias)
            return jnp.sum(out * pull), out

        return jax.value_and_grad(score, (0, 1, 2, 3), has_aux=True)(Q, K, V, bias)

    def close(a, b):
        largest = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=REORDERED_SUM_RTOL * largest)

    jax.tree.map(close, run(attend_in_turn), run(attend))


def test_examples_in_turn_need_the_memory_of_one():
    def memory(attend, examples):
        q, k, v = (jnp.ones((examples, 4, 256, 8)) for _ in range(3))
        mask = jnp.ones((1, 1, 1, 256), bool)
        gradient = jax.grad(lambda *qkv: jnp.sum(attend(*qkv, mask)), (0, 1, 2))
        compiled = jax.jit(gradient).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 256 * 256 * 4
    assert memory(attend, 16) > 16 * logits
    growth = memory(attend_in_turn, 16) - memory(attend_in_turn, 8)
    assert growth < logits


@pytest.mark.parametrize("attend", [attend, attend_in_turn])
def test_softmax_is_float32_under_bfloat16(attend):
    program = jax.make_jaxpr(attend)(
        *(x.astype(jnp.bfloat16) for x in (Q, K, V)), MASK, BIAS.astype(jnp.bfloat16)
    )
    exps = [eqn for eqn in _equations(program.jaxpr) if eqn.primitive.name == "exp"]
    assert exps and all(eqn.outvars[0].aval.dtype == jnp.float32 for eqn in exps)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(sub)


def test_rope_layer_depends_on_relative_positions_alone():
    config = tiny_config(positions="rope", num_kv_heads=2)
    layer = Attention(config, rotary=True, rngs=nnx.Rngs(0))
    packed = pack_examples([[[1, 2, 3, 4]]], width=4)
    x = jax.random.normal(jax.random.key(1), (1, 4, 32))

    def run(offset):
        shifted = packed._replace(positions=packed.positions + offset)
        return layer(x, shifted, x, shifted, Causal(), None, None)[0]

    np.testing.assert_allclose(run(0), run(17), rtol=1e-3, atol=1e-4)
    reversed_order = packed._replace(positions=packed.positions[:, ::-1])
    other, _ = layer(x, reversed_order, x, reversed_order, Causal(), None, None)
    assert np.abs(np.asarray(other - run(0))).max() > 0.01


def test_query_scale_is_in_the_init_or_in_the_call_never_both():
    relative = Attention(tiny_config(), rotary=False, rngs=nnx.Rngs(0))
    rope = Attention(tiny_config(positions="rope"), rotary=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        relative.query[...] * np.sqrt(8), rope.query[...], rtol=1e-5
    )
