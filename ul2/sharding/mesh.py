"""The device mesh: which devices share the batch, which share the parameters.

Every run uses the same three axes, so a rule or a test never asks which exist:

    data     copies of the parameters, each with its own rows
    fsdp     rows *and* parameters are split: each device gathers what it needs
    tensor   heads, feed-forward and vocabulary are split; every device sees all rows

A mesh is written as text (the MESH macro): `auto`, or `data=2,fsdp=4,tensor=1` where
one size may be -1 ("what is left"). `auto` puts every device on `fsdp`: it needs the
least memory and its traffic hides behind the computation, so it is the right first
guess from one device (1x1x1) to a few hundred.
"""

import math
from collections.abc import Sequence
from typing import Final

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

DATA: Final = "data"
FSDP: Final = "fsdp"
TENSOR: Final = "tensor"
AXES: Final = (DATA, FSDP, TENSOR)


def make_mesh(spec: str = "auto", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh that `spec` describes.

    Args:
        spec: `auto`, or comma-separated `axis=size`; an axis left out has size 1.
        devices: the devices to use, all of them by default.

    Raises:
        ValueError: `spec` cannot be read, or does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(spec, len(devices))
    placed = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(spec: str, num_devices: int) -> tuple[int, ...]:
    """Returns the size of each of `AXES`; see `make_mesh`."""
    if spec == "auto":
        return (1, num_devices, 1)
    sizes = {axis: 1 for axis in AXES} | _read(spec)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        sizes = {
            axis: num_devices // fixed if size == -1 else size
            for axis, size in sizes.items()
        }
    if math.prod(sizes.values()) != num_devices:
        raise ValueError(
            f"mesh {spec!r} holds a multiple of {fixed} devices, but there are "
            f"{num_devices}; the sizes must multiply to {num_devices}: set MESH."
        )
    return tuple(sizes.values())


def _read(spec: str) -> dict[str, int]:
    """Reads `data=2,fsdp=-1` into sizes."""
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = (text.strip() for text in part.partition("="))
        if axis not in AXES or axis in sizes:
            raise ValueError(
                f"mesh {spec!r}: {part!r} is not one of {', '.join(AXES)}, each once, "
                "as axis=size; set MESH."
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
