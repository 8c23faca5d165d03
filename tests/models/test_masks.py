import jax.numpy as jnp
import numpy as np

from ul2.models.masks import Causal, Keys, Prefix

POSITIONS = jnp.arange(4)


def test_causal_mask_sees_itself_and_the_past():
    mask = Causal().materialize(POSITIONS, POSITIONS)
    np.testing.assert_array_equal(mask[0, 0], np.tril(np.ones((4, 4), bool)))


def test_causal_mask_of_one_query_sees_what_came_before_it():
    mask = Causal().materialize(jnp.array([2]), POSITIONS)
    np.testing.assert_array_equal(mask[0, 0], [[True, True, True, False]])


def test_prefix_mask_sees_whole_prefix_and_no_future():
    mask = Causal() | Prefix(jnp.array([[2, 0]]))
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    visible = mask.materialize(POSITIONS, POSITIONS)
    np.testing.assert_array_equal(visible[0, 0], np.array(expected, bool))
    np.testing.assert_array_equal(visible[0, 1], np.tril(np.ones((4, 4), bool)))


def test_both_masks_must_allow():
    valid = jnp.array([[[True, True, False, True]]])
    visible = (Causal() & Keys(valid)).materialize(POSITIONS, POSITIONS)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1]]
    np.testing.assert_array_equal(visible[0, 0], np.array(expected, bool))
