"""Devices that are not there: a topology's name to what a program is compiled for.

    v5p:4x4x4      a slice of 64 TPU chips, through libtpu's ahead-of-time compiler
    2*v5p:4x4x4    two of them, joined by the network between hosts
    cpu:8          eight fake devices of this machine's CPU; needs nothing installed
    h200:16        sixteen fake devices, with that chip's numbers for memory and time
    v5p:64         the same for a TPU, where libtpu is not at hand

A mesh splits, and XLA partitions, alike on all of them. What the CPU's compiler makes
of memory is its own: it fuses less and widens bfloat16, so it errs high.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax

from ul2.sharding.chips import CHIPS, Chip

CPU: Final = "cpu"
LIBTPU: Final = "libtpu"
_CHIPS_OF_HOST: Final = 4
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


def open_topologies(names: Sequence[str]) -> list[Topology]:
    """Returns the devices of topologies; starts jax's CPU backend.

    Raises:
        ValueError: there is no such topology, or its compiler is not installed.
    """
    read = [_Name.read(name) for name in names]
    # Planning takes no accelerator away from whoever works on it.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", CPU)
    counts = [one.shape[0] for one in read if one.is_counted]
    # Fails once the backend is up; then there are as many as there are.
    with contextlib.suppress(RuntimeError):
        if counts:
            jax.config.update("jax_num_cpu_devices", max(counts))
    return [_open(one) for one in read]


class _Name(NamedTuple):
    """The parts of a topology's name."""

    text: str
    slices: int
    kind: str
    shape: tuple[int, ...]

    @classmethod
    def read(cls, text: str) -> "_Name":
        """Takes a name apart.

        Raises:
            ValueError: it is none.
        """
        found = _FORM.fullmatch(text)
        if found is None or (found[2] not in CHIPS and found[2] != CPU):
            raise ValueError(f"--topology={text!r} is not {_ALLOWED}.")
        shape = tuple(map(int, found[3].split("x")))
        name = cls(text, int(found[1] or 1), found[2], shape)
        if name.slices < 1 or min(shape) < 1:
            raise ValueError(f"--topology={text!r} holds no device.")
        if name.is_counted and name.slices > 1:
            raise ValueError(
                f"--topology={text!r}: only slices with a shape are joined by a "
                f"network, such as {name.slices}*v5p:4x4x4."
            )
        if not name.is_counted and (name.kind == CPU or not CHIPS[name.kind].num_dims):
            raise ValueError(
                f"--topology={text!r}: {name.kind} has no torus; write {name.kind}:8."
            )
        return name

    @property
    def is_counted(self) -> bool:
        """Whether it is a number of devices, without a shape."""
        return len(self.shape) == 1


def _open(name: _Name) -> Topology:
    chip = CHIPS.get(name.kind)
    if name.is_counted or chip is None:
        devices = _fake_devices(name.text, name.shape[0])
        return Topology(name.text, devices, chip, (), 1, CPU)
    devices = _tpu_devices(name, chip)
    return Topology(name.text, devices, chip, name.shape, name.slices, LIBTPU)


def _fake_devices(name: str, count: int) -> tuple[Any, ...]:
    """Returns devices of the CPU backend.

    Raises:
        ValueError: it was started with fewer.
    """
    devices = jax.devices(CPU)
    if len(devices) < count:
        raise ValueError(
            f"--topology={name}: jax has started with {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before it does."
        )
    return tuple(devices[:count])


def _tpu_devices(name: _Name, chip: Chip) -> tuple[Any, ...]:
    """Returns the chips of slices, as libtpu knows them.

    Raises:
        ValueError: libtpu is not installed, or knows no such slice.
    """
    of_slice = math.prod(name.shape)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={name.text} needs libtpu: pip install 'ul2[plan]' (Linux), or "
            "plan with the CPU's compiler: "
            f"--topology={chip.name}:{name.slices * of_slice}."
        )
    from jax.experimental import topologies

    # What jax has noted there on import, for want of a TPU, is no help.
    os.environ.update(_LIBTPU_ENVIRONMENT)
    options: dict[str, Any] = {"num_slices": name.slices} if name.slices > 1 else {}
    if chip.name == "v4":
        # Both cores of a chip as one device, as jax runs them.
        options["chip_config_name"] = "megacore"
    if of_slice < _CHIPS_OF_HOST:
        # Which the name alone does not say.
        options["chips_per_host_bounds"] = [*name.shape, 1, 1][:3]
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip.name}:{'x'.join(map(str, name.shape))}",
            **options,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--topology={name.text}: libtpu knows no such slice ({reason})."
        ) from None
    return tuple(described.devices)
