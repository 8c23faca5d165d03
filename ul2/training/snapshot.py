"""A copy of the state, which is written while training goes on.

An accelerator's state has to go to the host, and whoever writes it copies it there. On
a CPU the host's memory is the device's: what is written would be the state itself, and
the update after, which must not overwrite what is still being read, would have to get
all its memory anew.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


class Snapshot:
    """Memory for one copy of a state, used again by every save of a run."""

    def __init__(self) -> None:
        self._copy: Any = None
        self._write_over: Callable[[Any, Any], Any] | None = None

    def take(self, state: Any) -> Any:
        """Returns a copy, sharded as the state is; the one before is gone.

        Args:
            state: arrays on CPUs, each time of the same shapes, dtypes and shardings.
        """
        if self._write_over is None:
            shardings = jax.tree.map(lambda array: array.sharding, state)
            self._copy = jax.jit(_copied, out_shardings=shardings)(state)
            self._write_over = jax.jit(
                _written_over,
                out_shardings=shardings,
                donate_argnums=1,
                keep_unused=True,
            )
        else:
            self._copy = self._write_over(state, self._copy)
        return self._copy


def is_on_cpus(state: Any) -> bool:
    """Returns whether the first array lies on CPUs, and so all of them."""
    first = jax.tree.leaves(state)[0]
    return all(device.platform == "cpu" for device in first.devices())


def _copied(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


def _written_over(state: Any, before: Any) -> Any:
    del before  # donated: its memory takes the copy
    return _copied(state)
