"""The device mesh: which devices share the batch, which share the parameters.

Every run uses the same four axes, so a rule or a test never asks which exist:

    data       copies of the parameters, each with its own rows
    fsdp       rows *and* parameters are split: each device gathers what it needs
    sequence   the columns of a row are split, and the parameters once more
    tensor     heads, feed-forward and vocabulary are split; every device sees all rows

A mesh is written as text (the MESH macro): `auto`, or `data=2,fsdp=4,tensor=2`, where
an axis left out has size 1 and one size may be -1 ("what is left").

Devices of one *slice* (a TPU slice, a domain of NVLink) have fast links; slices have
the data center's network between them. `dcn_data=4,fsdp=64` says that the factor 4 of
axis `data` runs across slices, and 64 within each (MaxText's names). Without a `dcn_`
size, slices go to the outermost axis whose size they divide: data before fsdp.

    16 devices in 2 slices        MESH                        data fsdp sequence tensor
    each slice holds a copy       dcn_data=2,fsdp=8              2    8        1      1
    the same                      data=2,fsdp=-1                 2    8        1      1
    parameters split over both    dcn_fsdp=2,fsdp=4,tensor=2     1    8        1      2

`auto` asks for the least traffic and memory that the batch allows: a copy of the
parameters per slice, `fsdp` over as many devices as there are groups of 8 examples, and
the rest on `tensor` as far as heads go.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

DATA: Final = "data"
FSDP: Final = "fsdp"
SEQUENCE: Final = "sequence"
TENSOR: Final = "tensor"
# By traffic: the last runs over the shortest links.
AXES: Final = (DATA, FSDP, SEQUENCE, TENSOR)
ACROSS: Final = "dcn_"
# With fewer examples in a part of the batch, packed rows stay emptier.
_LEAST_EXAMPLES: Final = 8


class MeshSizes(NamedTuple):
    """Sizes of `AXES`: within each slice, and how many times that across slices."""

    within: tuple[int, ...]
    across: tuple[int, ...]

    @property
    def total(self) -> tuple[int, ...]:
        """Sizes of the axes of the mesh."""
        return tuple(a * b for a, b in zip(self.within, self.across, strict=True))


class Workload(NamedTuple):
    """What `auto` has to know of a run.

    Attributes:
        batch_size: examples per microbatch.
        num_heads: of attention.
    """

    batch_size: int
    num_heads: int


def make_mesh(
    spec: str = "auto",
    devices: Sequence[jax.Device] | None = None,
    *,
    workload: Workload | None = None,
) -> Mesh:
    """Returns the mesh that `spec` describes.

    Args:
        spec: see the text of this file.
        devices: the devices to use, all of them by default.
        workload: of the run, for `auto`; without it, all devices of a slice are on
            `fsdp`.

    Raises:
        ValueError: `spec` cannot be read, or does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(spec, len(devices), count_slices(devices), workload)
    return Mesh(arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Returns how many slices devices belong to; one where they do not say."""
    return len({getattr(device, "slice_index", 0) or 0 for device in devices})


def arrange(sizes: MeshSizes, devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices as an array of `sizes.total`, neighbours side by side."""
    if count_slices(devices) > 1:
        return mesh_utils.create_hybrid_device_mesh(
            sizes.within, sizes.across, devices, allow_split_physical_axes=True
        )
    # Fast links everywhere: `across` is a matter of names (on fake devices, say).
    return mesh_utils.create_device_mesh(
        sizes.total, devices, allow_split_physical_axes=True
    )


def mesh_sizes(
    spec: str,
    num_devices: int,
    num_slices: int = 1,
    workload: Workload | None = None,
) -> MeshSizes:
    """Returns the sizes of the axes; see `make_mesh`."""
    if spec == "auto":
        return _auto(num_devices, num_slices, workload)
    sizes = _read(spec)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    sizes = {
        axis: num_devices // fixed if size == -1 else size
        for axis, size in sizes.items()
    }
    if math.prod(sizes.values()) != num_devices:
        raise ValueError(
            f"mesh {spec!r} holds a multiple of {fixed} devices, but there are "
            f"{num_devices}; the sizes must multiply to {num_devices}: set MESH."
        )
    within = tuple(sizes.get(axis, 1) for axis in AXES)
    across = tuple(sizes.get(ACROSS + axis, 1) for axis in AXES)
    if num_slices == 1:
        return MeshSizes(within, across)
    if not any(axis.startswith(ACROSS) for axis in sizes):
        return _spread(spec, within, num_slices)
    if math.prod(across) != num_slices:
        raise ValueError(
            f"mesh {spec!r} has {math.prod(across)} slices, but the devices are "
            f"{num_slices}; the sizes that begin with {ACROSS} must multiply to "
            f"{num_slices}: set MESH."
        )
    return MeshSizes(within, across)


def _spread(spec: str, total: tuple[int, ...], num_slices: int) -> MeshSizes:
    """Puts slices on the outermost axis that they divide."""
    for index, size in enumerate(total):
        if size % num_slices == 0:
            across = [1] * len(AXES)
            across[index] = num_slices
            within = [a // b for a, b in zip(total, across, strict=True)]
            return MeshSizes(tuple(within), tuple(across))
    raise ValueError(
        f"mesh {spec!r}: no axis is a multiple of the {num_slices} slices; say what "
        f"runs across them, e.g. {ACROSS}{DATA}={num_slices}: set MESH."
    )


def _auto(num_devices: int, num_slices: int, workload: Workload | None) -> MeshSizes:
    """Returns what a run does best with, as far as that can be said without compiling.

    1024 examples, 16 heads, 256 devices: 128 groups of 8 examples, fsdp=128,tensor=2.
    """
    across = (num_slices, 1, 1, 1)
    rest = num_devices // num_slices
    if workload is None:
        return MeshSizes((1, rest, 1, 1), across)
    parts = [
        size
        for size in _divisors(rest)
        if workload.batch_size % (size * num_slices) == 0
    ] or [1]
    full = [
        size
        for size in parts
        if workload.batch_size // (size * num_slices) >= _LEAST_EXAMPLES
    ]
    fsdp = max(full or parts[:1])
    tensor = math.gcd(rest // fsdp, workload.num_heads)
    return MeshSizes((1, fsdp, rest // fsdp // tensor, tensor), across)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _read(spec: str) -> Mapping[str, int]:
    """Reads `dcn_data=2,fsdp=-1` into sizes."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = (text.strip() for text in part.partition("="))
        if axis.removeprefix(ACROSS) not in AXES or axis in sizes:
            theirs = " (T5X's `model` is tensor)" if axis == "model" else ""
            raise ValueError(
                f"mesh {spec!r}: {part!r} is not one of {', '.join(AXES)}, each once, "
                f"as axis=size or {ACROSS}axis=size{theirs}; set MESH."
            )
        if not size.removeprefix("-").isdigit() or int(size) == 0 or int(size) < -1:
            raise ValueError(
                f"mesh {spec!r}: {part!r} needs a size of 1 or more, or -1 for what is "
                "left; set MESH."
            )
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh {spec!r}: only one axis may be -1; set MESH.")
    return sizes
