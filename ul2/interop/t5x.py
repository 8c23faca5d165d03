"""Reads T5X checkpoints, in whichever of its ways they were written.

    checkpoint_3/checkpoint          msgpack: small arrays, and for the others
    checkpoint_3/target.encoder...   zarr directories                   (legacy)
    checkpoint_3                     one msgpack file with everything    (older)
    checkpoint_3/state/_METADATA     an orbax item                       (newer)

A T5X checkpoint does not say what the model is. Its sizes follow from the shapes; the
activation does not, and is looked for in the gin files that T5X leaves beside it.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from flax import traverse_util

from ul2.interop import differences, presets, vocabulary
from ul2.interop.checkpoint import Checkpoint, Moments
from ul2.interop.flax_msgpack import index
from ul2.interop.model import param_shapes
from ul2.interop.t5x_moments import read_moments
from ul2.interop.t5x_names import Place, place
from ul2.interop.t5x_sizes import architecture_of, find_config, find_layout
from ul2.interop.tensors import BFLOAT16, FLOATS, Tensor, bit_cast, dtype_of, filled
from ul2.interop.zarr_arrays import METADATA, read_database, read_directory

CHECKPOINT: Final = "checkpoint"
STATES: Final = "state/param_states/"
TARGET: Final = "target/"
# A msgpack map of a few entries, the first of which is one of these two.
_BEGIN: Final = re.compile(rb"[\x81-\x8f][\xa7\xa9](version|optimizer)")


def is_here(path: Path) -> bool:
    """Returns whether a T5X checkpoint, or a directory of them, is at a path."""
    return _locate(path, None) is not None


def read(
    path: Path,
    *,
    step: int | None = None,
    preset: str | None = None,
    activation: str | None = None,
    vocab_file: Path | None = None,
    mode_convention: str | None = None,
) -> Checkpoint:
    """Opens a T5X checkpoint; no array is read yet.

    Args:
        path: a checkpoint, or a directory of checkpoints, of which the newest is taken.
        step: of the checkpoint to take from a directory of them.
        preset: what it must be; see `presets`.
        activation: of the feed-forward block; by default what gin files beside the
            checkpoint say, or else the preset of its sizes, or else UL2's.
        vocab_file: the SentencePiece model that it was trained with.
        mode_convention: how modes are written.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it is another model.
    """
    found = _locate(path, step)
    if found is None:
        wanted = "any step" if step is None else f"step {step}"
        raise ValueError(f"{path} holds no T5X checkpoint of {wanted}.")
    arrays = _read_arrays(found)
    theirs = _below(TARGET, arrays)
    found_shapes = {name: tensor.shape for name, tensor in theirs.items()}
    layout = find_layout(found_shapes)
    config, assumed = find_config(found, found_shapes, layout, activation)
    architecture = architecture_of(config)
    name = presets.name_of(architecture, config, str(found.absolute()))
    if preset is not None:
        presets.check(preset, architecture, config)
        name = preset
    shapes = param_shapes(architecture, config)
    places = [place(one, config, layout) for one in shapes]
    differences.check(
        expected(places, shapes),
        found_shapes,
        what=f"{found} is no {name or 'model'} of layout {layout.name}",
        hint="Copy the checkpoint again, or name what it is with --preset.",
    )
    vocab, tokenizer, more = vocabulary.find(
        found if found.is_dir() else found.parent,
        config.vocab_size,
        vocab_file=vocab_file,
        mode_convention=mode_convention,
    )
    moments, lines = _moments(places, shapes, arrays)
    return Checkpoint(
        path=found,
        format="t5x",
        layout=layout.name,
        architecture=architecture,
        config=config,
        preset=name,
        vocab=vocab,
        tokenizer=tokenizer,
        step=_step(arrays),
        params={one.path: one.to_ours(theirs) for one in places},
        moments=moments,
        assumed=(*assumed, *more, *lines),
    )


def _locate(path: Path, step: int | None) -> Path | None:
    """Returns the checkpoint at a path: itself, or one of those in a directory."""
    if step is None and _is_checkpoint(path):
        return path
    if not path.is_dir():
        return None
    steps = {
        int(match[1]): child
        for child in path.iterdir()
        if (match := re.fullmatch(r"checkpoint_(\d+)", child.name))
        and _is_checkpoint(child)
    }
    return steps.get(max(steps, default=0) if step is None else step)


def _is_checkpoint(path: Path) -> bool:
    if path.is_file():
        with path.open("rb") as file:
            return _BEGIN.match(file.read(11)) is not None
    return (path / CHECKPOINT).is_file() or _orbax_item(path) is not None


def _orbax_item(path: Path) -> Path | None:
    """Returns where the arrays of a T5X checkpoint written by orbax are.

    Our own checkpoints are orbax's too, but have no item of this name.
    """
    return path / "state" if (path / "state" / METADATA).is_file() else None


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """Returns every array by its place in the tree, `target/...` and `state/...`."""
    item = None if path.is_file() else _orbax_item(path)
    if item is not None:
        return dict(_checked(read_database(item).items()))
    file = path if path.is_file() else path / CHECKPOINT
    tree = index(file)
    if not isinstance(tree, dict) or not isinstance(tree.get("optimizer"), dict):
        raise ValueError(f"{file} is no T5X checkpoint: it has no optimizer.")
    leaves = traverse_util.flatten_dict(
        tree["optimizer"], sep="/", is_leaf=lambda _, node: "driver" in node
    )
    # Before version 3 (June 2021) bfloat16 was written as integers.
    old = isinstance(tree.get("version"), int) and tree["version"] < 3
    return dict(_checked(_resolved(leaves, file.parent, old=old)))


def _resolved(
    leaves: Mapping[str, Any], root: Path, *, old: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yields the arrays that leaves are, or that they say where to find."""
    for name, leaf in leaves.items():
        if isinstance(leaf, dict) and "driver" in leaf:
            tensor = _follow(name, leaf, root)
        elif isinstance(leaf, Tensor):
            tensor = dataclasses.replace(leaf, name=name)
        else:
            continue  # texts and numbers: none of them is a parameter
        if old and tensor.dtype == np.uint16:
            tensor = bit_cast(tensor, BFLOAT16)
        yield name, tensor


def _follow(name: str, spec: Mapping[str, Any], root: Path) -> Tensor:
    """Returns the array that a TensorStore spec names, from the checkpoint's directory.

    The spec's driver and bucket are those of where it was written; its path is the
    array's name. A path that leads elsewhere is not followed.
    """
    try:
        store = spec["kvstore"]
        written = PurePosixPath(store.get("path") or spec["path"])
        shape = tuple(spec["metadata"]["shape"])
        dtype = dtype_of(spec.get("dtype") or spec["metadata"]["dtype"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{name}: its TensorStore spec is damaged.") from None
    wanted = name.replace("/", ".")
    if written.is_absolute() or ".." in written.parts or written.name != wanted:
        raise ValueError(
            f"{name}: its spec leads to {str(written)!r} instead of {wanted!r}; "
            "nothing outside the checkpoint is read."
        )
    tensor = read_directory(root, wanted)
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} is {tensor.dtype}{list(tensor.shape)} on disk, but its spec says "
            f"{dtype}{list(shape)}."
        )
    return dataclasses.replace(tensor, name=name)


def _checked(arrays: Any) -> Iterator[tuple[str, Tensor]]:
    """Passes arrays on; refuses a parameter that is no floating point array."""
    for name, tensor in arrays:
        if name.startswith(TARGET) and tensor.dtype.name not in FLOATS:
            raise ValueError(
                f"{name} is {tensor.dtype}; parameters are one of {', '.join(FLOATS)}."
            )
        yield name, tensor


def _below(place: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the arrays below a place in the tree, by the rest of their names."""
    return {
        name.removeprefix(place): tensor
        for name, tensor in arrays.items()
        if name.startswith(place)
    }


def expected(
    places: list[Place], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array that a model of T5X has."""
    return {
        name: tensor.shape
        for one in places
        for name, tensor in one.to_theirs(filled(one.path, shapes[one.path], 0)).items()
    }


def _step(arrays: Mapping[str, Tensor]) -> int:
    """Returns how many updates were done."""
    tensor = arrays.get("state/step")
    if tensor is None:
        return 0
    if tensor.shape or tensor.dtype.kind not in "iu":
        raise ValueError(f"state/step is {tensor.dtype}{list(tensor.shape)}, no count.")
    return int(tensor.read())


def _moments(
    places: list[Place],
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, Tensor],
) -> tuple[Moments | None, tuple[str, ...]]:
    """Returns Adafactor's state, and a line on why it is left out if it is."""
    states = _below(STATES, arrays)
    if not states:
        return None, ()
    try:
        return read_moments(places, shapes, states, _step(arrays)), ()
    except ValueError as error:
        return None, (f"the optimizer state is left out: {error}",)
