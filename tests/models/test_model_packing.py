import jax
import jax.numpy as jnp
import numpy as np
from model_fixtures import pack_examples

from ul2.models.packing import is_plain, pack, unpack

# Rows with three examples, one, and two; the longest example has four tokens.
PACKED = pack_examples(
    [[[1, 2, 3], [4], [5, 6]], [[7, 8, 9, 10]], [[11, 12], [13, 14]]], width=8
)
X = jax.random.normal(jax.random.key(0), (3, 8, 5))
EXAMPLES = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))


def test_unpack_cuts_out_examples():
    examples = unpack(X, PACKED)
    assert examples.shape == (3, 3, 4, 5)
    np.testing.assert_array_equal(examples[0, 2, :2], X[0, 4:6])
    np.testing.assert_array_equal(examples[2, 1, :2], X[2, 2:4])


def test_unpack_gives_zeros_past_the_end():
    past_end = np.asarray(PACKED.columns) < 0
    assert not np.asarray(unpack(X, PACKED))[past_end].any()


def test_pack_undoes_unpack():
    restored = pack(unpack(X, PACKED), PACKED)
    tokens = (np.asarray(PACKED.segment_ids) > 0)[..., None]
    np.testing.assert_array_equal(restored, np.where(tokens, X, 0))


def test_gradients_are_those_of_the_plain_definition():
    batch = np.arange(3)[:, None, None]
    columns = PACKED.columns

    def plain_unpack(x):
        return jnp.where((columns >= 0)[..., None], x[batch, columns], 0)

    def plain_pack(examples):
        valid = (PACKED.segment_ids > 0)[..., None]
        taken = examples[batch[:, 0], PACKED.segment_ids - 1, PACKED.positions]
        return jnp.where(valid, taken, 0)

    for ours, plain, x in [
        (unpack, plain_unpack, X),
        (pack, plain_pack, EXAMPLES),
    ]:
        out, pull = jax.vjp(lambda x, ours=ours: ours(x, PACKED), x)
        expected_out, expected_pull = jax.vjp(plain, x)
        np.testing.assert_array_equal(out, expected_out)
        weights = jax.random.normal(jax.random.key(2), out.shape)
        np.testing.assert_array_equal(pull(weights)[0], expected_pull(weights)[0])


def test_gradients_have_no_scatter():
    def total(x):
        return jnp.sum(jnp.square(pack(jnp.sin(unpack(x, PACKED)), PACKED)))

    program = str(jax.make_jaxpr(jax.grad(total))(X))
    assert "gather" in program
    assert "scatter" not in program


def test_one_example_per_row_needs_no_gather():
    packed = pack_examples([[[1, 2, 3]], [[4]]], width=3, length=3)
    assert is_plain(packed)
    program = str(
        jax.make_jaxpr(lambda x: pack(unpack(x, packed), packed))(jnp.ones((2, 3, 5)))
    )
    assert "gather" not in program
