"""Reads and writes our own checkpoints, array by array.

What is written is what `ul2.training.checkpoints` writes and restores, but for two
things: the arrays lie in directories, as they come, instead of in one database; and
what the source did not have (data position, optimizer state) is not there.

    OUT/checkpoints/1000/params/decoder.layers.mlp.wo/   zarr, a piece per chunk
                         train_state/...                 where there is Adafactor's
                         contract/                       JSON
    OUT/tokenizer.model
    OUT/model.gin                  to train it further
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from ul2.interop import differences, presets
from ul2.interop.checkpoint import Checkpoint, Moments
from ul2.interop.model import param_shapes
from ul2.interop.model_gin import MODEL_GIN, model_gin
from ul2.interop.staging import Staging
from ul2.interop.tensors import Tensor, cast, filled, from_array
from ul2.interop.zarr_arrays import read_database, write_directory, write_metadata
from ul2.models import architectures
from ul2.training import checkpoints, run_directory

_COMPRESSOR: Final = {"id": "zstd", "level": 1}
# Where the optimizer of `optax.chain(adafactor, scale_by_learning_rate)` keeps things.
_ADAFACTOR: Final = "opt_state/0"
_SCHEDULE: Final = "opt_state/1/count"


def is_here(path: Path) -> bool:
    """Returns whether a run of ours with a checkpoint is at a path."""
    return run_directory.has_checkpoint(path)


def read(path: Path, *, step: int | None = None) -> Checkpoint:
    """Opens a checkpoint of ours.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint in it.
        step: the newest by default.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    contract = checkpoints.read_contract(path, step)
    checkpoints.check_whole(path, contract.step, [checkpoints.PARAMS])
    architecture, config = checkpoints.model_of(contract)
    folder = checkpoints.step_dir(path, contract.step)
    shapes = param_shapes(architecture, config)
    found = {
        name.replace("/", "."): tensor
        for name, tensor in read_database(folder / checkpoints.PARAMS).items()
    }
    differences.check(
        shapes,
        {name: tensor.shape for name, tensor in found.items()},
        what=f"{folder / checkpoints.PARAMS} is not the model that its contract says",
        hint="Copy the checkpoint again.",
    )
    tokenizer = run_directory.tokenizer_path(path)
    return Checkpoint(
        path=path,
        format="ul2",
        layout="ul2",
        architecture=architecture,
        config=config,
        preset=presets.name_of(architecture, config, str(path)),
        vocab=contract.vocab,
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
        step=contract.optimizer_steps,
        params={path: found[path] for path in shapes},
        moments=_moments(folder / checkpoints.TRAIN_STATE, shapes),
    )


def _moments(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Moments | None:
    """Returns the state of Adafactor; None where there is none, or another's."""
    found = read_database(folder) if folder.is_dir() else {}
    slots: dict[str, dict[str, Tensor]] = {"v_row": {}, "v_col": {}, "v": {}}
    for path, shape in shapes.items():
        for slot, of_slot in slots.items():
            tensor = found.get(f"{_ADAFACTOR}/{slot}/{path.replace('.', '/')}")
            if tensor is None:
                return None
            if not _is_unused(tensor, path, shape, slot):
                of_slot[path] = tensor
    step = found.get(f"{_ADAFACTOR}/step")
    if step is None or step.shape or step.dtype.kind not in "iu":
        raise ValueError(f"{folder}: {_ADAFACTOR}/step is no count; copy it again.")
    return Moments(step=int(step.read()), **slots)


def _is_unused(tensor: Tensor, path: str, shape: tuple[int, ...], slot: str) -> bool:
    """Returns whether an array only stands where a factored, or a whole, one is not."""
    single = (shape[0], 1) if ".layers." in path else (1,)
    return tensor.shape == single and not (slot == "v" and shape == single)


def write(checkpoint: Checkpoint, staging: Staging, dtype: str | None) -> None:
    """Writes a checkpoint into a staging directory, as a run that has not begun.

    Args:
        checkpoint: of any format.
        staging: where.
        dtype: of the parameters on disk; None keeps theirs. They are restored as
            float32 always.
    """
    # The run's own updates count from 0; what was done before is in the contract.
    folder = checkpoints.step_dir(staging.directory, 0)
    params = {
        tuple(path.split(".")): cast(tensor, dtype) if dtype else tensor
        for path, tensor in checkpoint.params.items()
    }
    _write_item(staging, folder / checkpoints.PARAMS, params)
    if checkpoint.moments is not None:
        state = _train_state(checkpoint.moments, checkpoint)
        _write_item(staging, folder / checkpoints.TRAIN_STATE, state)
    contract = checkpoints.Contract(
        step=0,
        data_position=None,
        vocab=checkpoint.vocab,
        config_text="",
        mixture=None,
        model=architectures.to_json(checkpoint.architecture, checkpoint.config),
        prior_steps=checkpoint.step,
    )
    gin = model_gin(checkpoint.architecture, checkpoint.config)
    (staging.directory / MODEL_GIN).write_text(gin)
    # orbax asks for it, and does without what is in it.
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": {}}))
    item = folder / checkpoints.CONTRACT
    item.mkdir(exist_ok=True)
    (item / "metadata").write_text(json.dumps(contract.to_json()))
    if checkpoint.tokenizer is not None:
        (staging.directory / run_directory.TOKENIZER).write_bytes(checkpoint.tokenizer)


def _write_item(
    staging: Staging, folder: Path, tensors: Mapping[tuple[str, ...], Tensor]
) -> None:
    """Writes arrays so that orbax restores them as one tree."""
    folder.mkdir(parents=True, exist_ok=True)
    for keys, tensor in tensors.items():
        name = ".".join(keys)
        write = functools.partial(write_directory, folder, name, tensor, _COMPRESSOR)
        staging.once(f"{folder.name}/{name}", write)
    write_metadata(folder, tensors)


def _train_state(
    moments: Moments, checkpoint: Checkpoint
) -> dict[tuple[str, ...], Tensor]:
    """Returns the tree that training restores: Adafactor's state and two counts."""
    state = {
        ("step",): _count(0),
        tuple(_SCHEDULE.split("/")): _count(moments.step),
        (*_ADAFACTOR.split("/"), "step"): _count(moments.step),
    }
    for slot in ("v_row", "v_col", "v"):
        of_slot = getattr(moments, slot)
        for path, param in checkpoint.params.items():
            single = (param.shape[0], 1) if ".layers." in path else (1,)
            keys = (*_ADAFACTOR.split("/"), slot, *path.split("."))
            state[keys] = of_slot.get(path) or filled(path, single, 0)
    return state


def _count(step: int) -> Tensor:
    """Returns a number of updates as an array."""
    return from_array("step", np.asarray(step, np.int32))
