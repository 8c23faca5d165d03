"""A request to stop, heard at any time and obeyed at the end of a step.

SIGTERM (a scheduler taking the machine back) or the first Ctrl-C asks the loop to
finish its step, save and leave; a second Ctrl-C interrupts at once, unless the loop is
saving by then. A second SIGTERM changes nothing.

On several hosts the signals do not arrive everywhere at the same step, and a host that
stops alone leaves the others hanging in a collective. So each host puts its flag into
one small global sum per step, and all obey the sum of the step before, which is the
same number everywhere and already computed. A notice that jax itself passes between
hosts (`jax_enable_preemption_service`: SIGTERM before the loop listens, or what a
platform has instead of it) raises the flag as well.
"""

import signal
import threading
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Listens for signals, from `listen` on until it is left."""

    def __init__(self, mesh: Mesh) -> None:
        self._requested = self._interrupted = self._is_saving = False
        self._previous: dict[signal.Signals, object] = {}
        self._votes: jax.Array | None = None
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def listen(self) -> None:
        """Takes the signals over; call it once there is something to save.

        Until then a signal does what it did before: nothing is lost by ending at once,
        while the first step may compile for minutes. Call it again at every step: jax's
        own service gives SIGTERM back to the system once it has heard one.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # Python gives signals to no other.
        for number in SIGNALS:
            before = signal.signal(number, self._request)
            self._previous.setdefault(number, before)

    def saving(self) -> None:
        """Says that the run is being saved: from now on signals change nothing."""
        self._is_saving = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        """Notes the wish; the second Ctrl-C is not a wish."""
        name = signal.Signals(number).name
        if self._is_saving:
            logging.warning("%s: already saving.", name)
            return
        if self._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self._requested = True
        logging.warning("%s: finishing this step, then saving.", name)

    def requested(self, step: int) -> bool:
        """Returns whether all hosts shall stop now; call it equally often on each.

        Args:
            step: updates done.
        """
        if _jax_was_told(step):
            self._requested = True
        if jax.process_count() == 1:
            return self._requested
        agreed = self._votes is not None and int(self._votes) > 0
        devices = len(self._sharding.addressable_devices)
        flags = np.full(devices, self._requested, np.int32)
        self._votes = _sum(
            jax.make_array_from_process_local_data(self._sharding, flags)
        )
        return agreed


def _jax_was_told(step: int) -> bool:
    """Returns whether jax asks all hosts to save after this step."""
    return bool(
        jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
        and jax.distributed.is_initialized()
        and multihost_utils.reached_preemption_sync_point(step)
    )


@jax.jit
def _sum(flags: jax.Array) -> jax.Array:
    """Returns a number that every host holds."""
    return jnp.sum(flags)
