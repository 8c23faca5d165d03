"""Exports for serving: StableHLO functions, parameters beside them, a loader.

    encode.stablehlo decode.stablehlo score.stablehlo    `jax.export`, for any batch,
                                                         any lengths, any platform
    params.safetensors                  or params-00001-of-00003.safetensors and so on
    export.json                         what is in the folder, the model, the vocab
    tokenizer.model                     where there is one
    load.py                             runs all that with jax and numpy alone

The parameters are arguments of the functions, by dotted path, and keep the dtype they
were stored in; the computation has a dtype of its own. Functions are traced without
values, so a model of any size is exported in the memory that one piece of it takes.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from ul2.batch import Batch, one_per_row
from ul2.interop import differences, safetensors, stablehlo_loader
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import define, param_shapes
from ul2.interop.stablehlo_functions import Argument, Function, functions
from ul2.interop.tensors import Tensor
from ul2.interop.vocabulary import TOKENIZER
from ul2.models.config import ModelConfig

PLATFORMS: Final = ("cpu", "cuda", "rocm", "tpu")
# Above this, parameters go into the next file.
MAX_FILE_BYTES: Final = 5 * 10**9


def write(
    checkpoint: Checkpoint,
    out: Path,
    *,
    dtype: str | None = None,
    inputs_length: int | None = None,
    targets_length: int | None = None,
) -> None:
    """Writes an export into a folder that exists.

    Args:
        checkpoint: the model; its parameters are read piece by piece.
        out: the folder; empty, or what an interrupted export of this model left.
        dtype: of the computation, `float32` or `bfloat16`; None for the model's own.
            Products of float32 are those that jax makes by default on the platform.
        inputs_length: columns of input rows; None for any number.
        targets_length: columns of target rows, or of a decoder-only model's rows;
            None for any number.

    Raises:
        ValueError: an argument or a parameter is not what the model allows.
    """
    lengths = _lengths(checkpoint.architecture, inputs_length, targets_length)
    computed_in: Any = dtype or checkpoint.config.dtype
    config = dataclasses.replace(checkpoint.config, dtype=computed_in)
    # There is no backward pass to store or recompute anything for.
    traced = dataclasses.replace(config, remat="none")
    definition = define(checkpoint.architecture, traced)
    params = _abstract_params(checkpoint)
    made = functions(checkpoint.architecture, config, definition, checkpoint.vocab)
    described, calling_conventions = {}, set()
    for name, function in made.items():
        exported = _export(function, params, lengths)
        file = f"{name}.stablehlo"
        (out / file).write_bytes(exported.serialize())
        described[name] = {"file": file, **_signature(function, lengths, exported)}
        calling_conventions.add(exported.calling_convention_version)
    parameters = _write_params(checkpoint.params, out)
    shutil.copyfile(stablehlo_loader.__file__, out / "load.py")
    files = {"load.py"} | {
        one["file"] for one in (*described.values(), *parameters.values())
    }
    if checkpoint.tokenizer is not None:
        (out / TOKENIZER).write_bytes(checkpoint.tokenizer)
        files.add(TOKENIZER)
    manifest = {
        "format": stablehlo_loader.FORMAT,
        "jax": jax.__version__,
        "calling_convention_version": max(calling_conventions),
        "platforms": list(PLATFORMS),
        "architecture": checkpoint.architecture,
        "preset": checkpoint.preset,
        "step": checkpoint.step,
        "model_config": config.to_json(),
        "vocab": checkpoint.vocab.to_json(),
        "inputs_length": inputs_length,
        "targets_length": targets_length,
        "functions": described,
        "parameters": parameters,
        "files": {file: _identity(out / file) for file in sorted(files)},
    }
    (out / "export.json").write_text(json.dumps(manifest, indent=1) + "\n")


def max_logit_difference(checkpoint: Checkpoint, out: Path) -> float:
    """Runs the export and the model on the same rows, with all parameters in memory.

    Returns:
        The greatest absolute difference of two logits; of a column that is no padding.

    Raises:
        ValueError: the export is damaged.
    """
    model = stablehlo_loader.load(out)
    config = ModelConfig.from_json(model.manifest["model_config"])
    definition = define(checkpoint.architecture, config)
    values = {
        path: jnp.asarray(tensor.read()) for path, tensor in checkpoint.params.items()
    }
    batch = _random_batch(model, checkpoint)
    ours = jax.jit(lambda params: definition.merge(params).logits(batch))(
        traverse_util.unflatten_dict(values, sep=".")
    )
    tokens = batch.decoder.tokens
    if batch.encoder is None:
        theirs = model.decode(tokens, batch.prefix_lengths[:, 0])
    else:
        inputs = batch.encoder.tokens
        theirs = model.decode(model.encode(inputs), inputs, tokens)
    present = batch.decoder.segment_ids > 0
    return float(np.max(np.abs(np.asarray(theirs) - np.asarray(ours))[present]))


def with_exported_params(checkpoint: Checkpoint, out: Path) -> Checkpoint:
    """Returns the checkpoint with the parameters that its export holds.

    Raises:
        ValueError: the export is damaged.
    """
    manifest = json.loads((out / "export.json").read_bytes())
    files = {path: one["file"] for path, one in manifest["parameters"].items()}
    shards = {file: safetensors.read(out / file) for file in set(files.values())}
    params = {path: shards[file][path] for path, file in files.items()}
    return dataclasses.replace(checkpoint, path=out, params=params)


def _lengths(
    architecture: str, inputs_length: int | None, targets_length: int | None
) -> dict[str, int]:
    """Returns the dims that are fixed, by letter."""
    given = {"inputs_length": inputs_length, "targets_length": targets_length}
    for name, length in given.items():
        if length is not None and length < 1:
            raise ValueError(f"{name}={length} must be at least 1, or None for any.")
    if architecture == "decoder_only" and inputs_length is not None:
        raise ValueError(
            f"inputs_length={inputs_length}: a decoder-only model reads inputs and "
            "targets in one row; set targets_length to the length of both."
        )
    letters = {"s": inputs_length, "t": targets_length}
    return {letter: size for letter, size in letters.items() if size is not None}


def _abstract_params(checkpoint: Checkpoint) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and stored dtype of every parameter, by dotted path.

    Raises:
        ValueError: they are not the model's.
    """
    differences.check(
        param_shapes(checkpoint.architecture, checkpoint.config),
        {path: tensor.shape for path, tensor in checkpoint.params.items()},
        what=f"{checkpoint.path} is not the model that its config says",
        hint="Copy the checkpoint again.",
    )
    for path, tensor in checkpoint.params.items():
        if str(tensor.dtype) not in stablehlo_loader.DTYPES.values():
            raise ValueError(
                f"{checkpoint.path}: parameter {path} is {tensor.dtype}; an export "
                f"holds {', '.join(stablehlo_loader.DTYPES.values())}."
            )
    return {
        path: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype)
        for path, tensor in sorted(checkpoint.params.items())
    }


def _export(
    function: Function,
    params: Mapping[str, jax.ShapeDtypeStruct],
    lengths: Mapping[str, int],
) -> export.Exported:
    """Traces and lowers a function for any batch, and any length that is not fixed."""
    dims_used = {dim for argument in function.arguments for dim in argument.dims}
    free = [dim for dim in "bst" if dim in dims_used and dim not in lengths]
    # A relative bias keeps 2n^2 - n numbers of a row; jax cannot tell by itself that
    # this is no negative number.
    rules = [f"2*{n}*{n} - {n} >= 0" for n in free if n != "b"]
    symbols = export.symbolic_shape(",".join(free), constraints=rules)
    dims: dict[Any, Any] = {**dict(zip(free, symbols, strict=True)), **lengths}
    arguments = [
        jax.ShapeDtypeStruct([dims.get(dim, dim) for dim in arg.dims], arg.dtype)
        for arg in function.arguments
    ]
    traced = export.export(jax.jit(function.call), platforms=PLATFORMS)
    with _without_locations():
        return traced(dict(params), *arguments)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Leaves the paths of this machine's source files out of what is lowered."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _signature(
    function: Function, lengths: Mapping[str, int], exported: export.Exported
) -> dict[str, Any]:
    """Returns names, shapes and dtypes of what goes in and comes out, as JSON."""

    def described(argument: Argument) -> dict[str, Any]:
        shape = [lengths.get(str(dim), dim) for dim in argument.dims]
        return {"name": argument.name, "shape": shape, "dtype": argument.dtype}

    results = [
        {
            "name": name,
            "shape": [dim if isinstance(dim, int) else str(dim) for dim in aval.shape],
            "dtype": str(aval.dtype),
        }
        for name, aval in zip(function.results, exported.out_avals, strict=True)
    ]
    return {"arguments": [described(a) for a in function.arguments], "results": results}


def _write_params(params: Mapping[str, Tensor], out: Path) -> dict[str, Any]:
    """Writes the parameters; returns where each is."""
    files = safetensors.write_shards(
        out,
        "params",
        dict(sorted(params.items())),
        {"format": stablehlo_loader.FORMAT},
        max_bytes=MAX_FILE_BYTES,
    )
    return {
        path: {"file": file, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        for file, shard in files.items()
        for path, tensor in shard.items()
    }


def _identity(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _random_batch(model: stablehlo_loader.Model, checkpoint: Checkpoint) -> Batch:
    """Returns four rows of different lengths, inputs and targets."""
    vocab = checkpoint.vocab
    rng = np.random.default_rng(0)

    def rows(width: int, first: list[int]) -> list[list[int]]:
        ids = rng.integers(0, vocab.size, (4, width))
        ids[ids == vocab.pad_id] = vocab.eos_id
        lengths = [max(1, width * part // 4) for part in (1, 2, 3, 4)]
        return [
            [*first, *row][:n] for row, n in zip(ids.tolist(), lengths, strict=True)
        ]

    width = model.manifest["targets_length"] or 24
    decoder = one_per_row(rows(width, [vocab.start_id]), width, pad_id=vocab.pad_id)
    lengths = np.sum(decoder.segment_ids, axis=1)
    encoder, prefix_lengths = None, (lengths + 1) // 2
    if checkpoint.architecture == "encoder_decoder":
        width = model.manifest["inputs_length"] or 32
        encoder = one_per_row(rows(width, []), width, pad_id=vocab.pad_id)
        prefix_lengths = np.zeros_like(lengths)
    return Batch(
        encoder=encoder,
        decoder=decoder,
        targets=decoder.tokens,
        loss_weights=np.zeros(decoder.tokens.shape, np.float32),
        denoiser_ids=decoder.segment_ids - 1,
        prefix_lengths=prefix_lengths.astype(np.int32)[:, None],
    )
