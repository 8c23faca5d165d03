"""Devices that are not there: a topology's name to what a program is compiled for.

    v5p:4x4x4      a slice of 64 TPU chips, through libtpu's ahead-of-time compiler
    2*v5p:4x4x4    two of them, joined by the network between hosts
    cpu:8          eight fake devices of this machine's CPU; needs nothing installed
    h200:16        as many fake CPU devices, with that chip's numbers for memory and time
    v5p:64         the same for a TPU, where libtpu is not at hand

A mesh splits, and XLA partitions, alike on all of them. What the CPU's compiler makes
of memory is its own: it fuses less and widens bfloat16, so it errs high.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, Final

import jax

from ul2.sharding.chips import CHIPS, Chip

CPU: Final = "cpu"
LIBTPU: Final = "libtpu"
_FORM: Final = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)")
_ALLOWED: Final = (
    "a TPU slice such as v4:2x2x2, v5e:4x8, v5p:4x4x4 or v6e:16x16, several of them "
    "(2*v5p:4x4x4), cpu:8, or a number of chips compiled on the CPU (h200:8; "
    f"{', '.join(CHIPS)})"
)
# A libtpu looks for the machine it runs on unless it is told not to, says at length
# that it found none, and refuses to be loaded by two processes at a time.
_LIBTPU_ENVIRONMENT: Final = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was given.
        devices: none of them can run anything.
        chip: what is known of one; None for fake devices that stand for none.
        shape: of one slice; () where chips were only counted.
        slices: how many slices there are.
        compiler: `libtpu` or `cpu`.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int
    compiler: str

    @property
    def memory_bytes(self) -> int:
        """What one device may use; fake ones share this machine's memory."""
        if self.chip is not None:
            return self.chip.memory_bytes
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size // len(self.devices)

    def domain_of(self, index: int) -> int:
        """Returns which of the groups joined by fast links a device is in."""
        device = self.devices[index]
        if self.slices > 1:
            return int(getattr(device, "slice_index", 0) or 0)
        if self.chip is None or self.shape:
            return 0
        return index // self.chip.domain


def open_topology(name: str) -> Topology:
    """Returns the devices of a topology; starts jax's CPU backend.

    Raises:
        ValueError: there is no such topology, or its compiler is not installed.
    """
    found = _FORM.fullmatch(name)
    if found is None or (found[2] not in CHIPS and found[2] != CPU):
        raise ValueError(f"--topology={name!r} is not {_ALLOWED}.")
    slices, kind = int(found[1] or 1), found[2]
    shape = tuple(map(int, found[3].split("x")))
    if slices < 1 or min(shape) < 1:
        raise ValueError(f"--topology={name!r} holds no device.")
    # Planning takes no accelerator away from whoever works on it.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", CPU)
    chip = CHIPS.get(kind)
    if len(shape) == 1:
        if slices > 1:
            raise ValueError(
                f"--topology={name!r}: only slices with a shape are joined by a "
                f"network, such as {slices}*v5p:4x4x4."
            )
        return Topology(name, _fake_devices(name, shape[0]), chip, (), 1, CPU)
    if chip is None or not chip.num_dims:
        raise ValueError(f"--topology={name!r}: {kind} has no torus; write {kind}:8.")
    devices = _tpu_devices(name, chip, shape, slices)
    return Topology(name, devices, chip, shape, slices, LIBTPU)


def _fake_devices(name: str, count: int) -> tuple[Any, ...]:
    """Returns devices of the CPU backend, which is started with as many if it can be.

    Raises:
        ValueError: it was started with fewer.
    """
    # Fails once the backend is up; then there are as many as there are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices(CPU)
    if len(devices) < count:
        raise ValueError(
            f"--topology={name}: jax has started with {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before it does."
        )
    return tuple(devices[:count])


def _tpu_devices(
    name: str, chip: Chip, shape: Sequence[int], slices: int
) -> tuple[Any, ...]:
    """Returns the chips of slices, as libtpu knows them.

    Raises:
        ValueError: libtpu is not installed, or knows no such slice.
    """
    count = slices
    for size in shape:
        count *= size
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name} needs libtpu: pip install 'ul2[plan]' (Linux), or plan "
            f"with the CPU's compiler: --topology={chip.name}:{count}."
        )
    from jax.experimental import topologies

    for variable, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":
        # Both cores of a chip as one device, as jax runs them.
        options["chip_config_name"] = "megacore"
    if count // slices < 4:
        # One host of less than 2x2 chips, which the name alone does not say.
        options["chips_per_host_bounds"] = [*shape, 1, 1][:3]
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip.name}:{'x'.join(map(str, shape))}",
            **options,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--topology={name}: libtpu knows no such slice ({reason})."
        ) from None
    return tuple(described.devices)
