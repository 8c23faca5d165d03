"""Writes the checkpoints that T5X's own `Checkpointer` restores.

    OUT/checkpoint                    msgpack: version, step, specs, small arrays
    OUT/target.encoder...kernel/      a zarr array per parameter
    OUT/state.param_states...v/       and per second moment that is not factored
    OUT/config.gin                    what T5X needs beside it: the activation
    OUT/ul2_vocab.json                our vocab contract, and tokenizer.model with it

Layouts follow from the model: `examples/t5` (and flaxformer) for one relative bias per
stack, `examples/scalable_t5` for one per layer, `examples/decoder_only`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from flax import serialization, traverse_util

from ul2.interop import vocabulary
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import param_shapes
from ul2.interop.staging import Staging
from ul2.interop.t5x import CHECKPOINT, STATES, TARGET
from ul2.interop.t5x_moments import write_moments
from ul2.interop.t5x_names import Layout, place
from ul2.interop.tensors import Tensor, cast
from ul2.interop.zarr_arrays import chunking, write_directory
from ul2.models.config import ModelConfig

_VERSION: Final = 3
_COMPRESSOR: Final = {"id": "gzip", "level": 1}


def write(checkpoint: Checkpoint, staging: Staging, dtype: str | None) -> None:
    """Writes a checkpoint into a staging directory.

    Args:
        checkpoint: of any format.
        staging: where.
        dtype: of the parameters; None keeps theirs. Moments keep theirs always.

    Raises:
        ValueError: T5X has no such model.
    """
    root = staging.directory
    leaves: dict[str, Any] = {"state/step": np.asarray(checkpoint.step, np.int32)}
    for name, tensor in to_theirs(checkpoint, layout_of(checkpoint)).items():
        if name.startswith(STATES) and not _is_stored_apart(name, tensor):
            leaves[name] = tensor.read()
            continue
        if name.startswith(TARGET) and dtype:
            tensor = cast(tensor, dtype)
        dotted = name.replace("/", ".")
        write = functools.partial(write_directory, root, dotted, tensor, _COMPRESSOR)
        staging.once(name, write)
        leaves[name] = _spec(name, tensor)
    _write_head(root, leaves)
    (root / "config.gin").write_text(_hint(checkpoint.config))
    vocabulary.write_contract(root, checkpoint.vocab, checkpoint.tokenizer)


def to_theirs(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """Returns every array of a checkpoint by its place in T5X's tree."""
    config = checkpoint.config
    shapes = param_shapes(checkpoint.architecture, config)
    places = [place(path, config, layout) for path in shapes]
    found: dict[str, Tensor] = {}
    for one in places:
        theirs = one.to_theirs(checkpoint.params[one.path])
        found |= {f"{TARGET}{name}": tensor for name, tensor in theirs.items()}
    if checkpoint.moments is not None:
        states = write_moments(places, shapes, checkpoint.moments)
        found |= {f"{STATES}{name}": tensor for name, tensor in states.items()}
    return found


def _is_stored_apart(name: str, tensor: Tensor) -> bool:
    """Returns whether a moment is a zarr array: T5X keeps all but these in msgpack."""
    return name.endswith("/v") and tensor.shape != (1,)


def _write_head(root: Path, leaves: Mapping[str, Any]) -> None:
    """Writes the msgpack file."""
    tree = traverse_util.unflatten_dict(dict(leaves), sep="/")
    content = serialization.msgpack_serialize({"version": _VERSION, "optimizer": tree})
    (root / CHECKPOINT).write_bytes(content)


def _spec(name: str, tensor: Tensor) -> dict[str, Any]:
    """Returns the TensorStore spec that stands for an array in the msgpack file."""
    return {
        "driver": "zarr",
        "dtype": tensor.dtype.name,
        "kvstore": {"driver": "file", "path": name.replace("/", ".") + "/"},
        "metadata": chunking(tensor, _COMPRESSOR),
    }


def layout_of(checkpoint: Checkpoint) -> Layout:
    """Returns the layout that holds a model.

    Raises:
        ValueError: none does; names the property that T5X lacks.
    """
    config = checkpoint.config
    decoder_only = checkpoint.architecture == "decoder_only"
    lacking = ""
    if config.positions != "relative":
        lacking = f"positions={config.positions!r}"
    elif config.kv_heads != config.num_heads:
        lacking = f"num_kv_heads={config.kv_heads}"
    elif decoder_only and config.relative_bias == "per_layer":
        lacking = "a decoder-only model with a relative bias per layer"
    if lacking:
        raise ValueError(f"T5X has no model with {lacking}; use --to ul2 or stablehlo.")
    if config.relative_bias == "per_layer":
        return Layout("scalable_t5", scan_axis=1, split_heads=True)
    return Layout("decoder_only" if decoder_only else "t5")


def _hint(config: ModelConfig) -> str:
    """Returns the gin that says what no array does."""
    activations = (
        (config.activation, "linear") if config.gated else (config.activation,)
    )
    return (
        "# What a T5X checkpoint does not hold, and its model needs.\n\n"
        "from __gin__ import dynamic_registration\n"
        "from t5x.examples.t5 import network\n\n"
        f"network.T5Config.mlp_activations = {activations!r}\n"
    )
