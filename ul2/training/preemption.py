"""A request to stop, heard at any time and obeyed at the end of a step.

SIGTERM (a scheduler taking the machine back) or the first Ctrl-C asks the loop to
finish its step, save and leave; a second Ctrl-C interrupts at once. On several hosts
the signals do not arrive everywhere at the same step, and a host that stops alone
leaves the others hanging in a collective. So each host puts its flag into one small
global sum per step, and all obey the sum of the step before, which is the same number
everywhere and already computed.
"""

import signal
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Listens for signals while it is entered."""

    def __init__(self, mesh: Mesh) -> None:
        self._requested = False
        self._previous: dict[signal.Signals, object] = {}
        self._votes: jax.Array | None = None
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def __enter__(self) -> "Preemption":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, frame: FrameType | None) -> None:
        """Notes the wish; the second Ctrl-C is not a wish."""
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        logging.warning(
            "%s: finishing this step, then saving.", signal.Signals(number).name
        )

    def requested(self) -> bool:
        """Returns whether all hosts shall stop now; call once per step on each."""
        if jax.process_count() == 1:
            return self._requested
        agreed = self._votes is not None and int(self._votes) > 0
        devices = len(self._sharding.addressable_devices)
        flags = np.full(devices, self._requested, np.int32)
        self._votes = _sum(
            jax.make_array_from_process_local_data(self._sharding, flags)
        )
        return agreed


@jax.jit
def _sum(flags: jax.Array) -> jax.Array:
    """Returns a number that every host holds."""
    return jnp.sum(flags)
