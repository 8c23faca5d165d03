"""A state's copy outlives the state, in memory that is used again."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ul2.training.snapshot import Snapshot, is_on_cpus

Tree = dict[str, jax.Array]


def _state(start: float = 0.0) -> Tree:
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows = jnp.arange(start, start + 64).reshape(8, 8)
    return {
        "split": jax.device_put(rows, NamedSharding(mesh, P("data"))),
        "whole": jax.device_put(rows + 1, NamedSharding(mesh, P())),
        "step": jax.device_put(jnp.int32(start), NamedSharding(mesh, P())),
    }


def _places(tree: Tree) -> set[int]:
    return {
        shard.data.unsafe_buffer_pointer()
        for array in tree.values()
        for shard in array.addressable_shards
    }


@jax.jit
def _one_more(state: Tree) -> Tree:
    return jax.tree.map(lambda array: array + 1, state)


_update = jax.jit(_one_more, donate_argnums=0)


def test_a_copy_is_sharded_as_the_state_and_not_changed_with_it() -> None:
    state, snapshot = _state(), Snapshot()
    expected = jax.device_get(state)
    shardings = {name: array.sharding for name, array in state.items()}
    copy = snapshot.take(state)
    jax.block_until_ready(_update(state))
    for name, array in copy.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.sharding.is_equivalent_to(shardings[name], array.ndim)


def test_the_memory_of_the_copy_before_is_used_again() -> None:
    snapshot = Snapshot()
    places = _places(snapshot.take(_state()))
    state = _state(100.0)
    copy = snapshot.take(state)
    assert _places(copy) == places
    assert not _places(copy) & _places(state)
    for name, array in copy.items():
        np.testing.assert_array_equal(array, state[name])


def test_the_update_after_is_done_in_place() -> None:
    state, snapshot = _state(), Snapshot()
    places = _places(state)
    copy = snapshot.take(state)
    assert _places(_update(state)) == places
    assert not _places(copy) & places


def test_arrays_of_these_tests_are_on_cpus() -> None:
    assert is_on_cpus(_state())
