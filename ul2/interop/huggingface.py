"""Reads and writes models of Hugging Face's transformers: T5, mT5 and UMT5.

config.json                     sizes, and the ids that mean something
model.safetensors               the parameters, or shards of them and an index
spiece.model, tokenizer*.json   the tokenizer
ul2_vocab.json                  our vocab contract, so that nothing is lost
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ul2.interop import (
    differences,
    huggingface_config,
    huggingface_tokenizer,
    huggingface_vocab,
    presets,
    safetensors,
)
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.huggingface_names import COPIES, EMBEDDING, HEAD, LEFTOVERS, places
from ul2.interop.model import param_shapes
from ul2.interop.staging import Staging
from ul2.interop.tensors import FLOATS, Tensor, cast, dtype_of, filled, transposed
from ul2.models.config import ModelConfig

DType = np.dtype[Any]
_ARCHITECTURE: Final = "encoder_decoder"
_TABLE: Final = "embedder.embedding"
_KERNEL: Final = "embedder.logits_kernel"
_DECODER_NORM: Final = "decoder.final_layer_norm.weight"
_METADATA: Final = {"format": "pt"}  # transformers refuses files without it


def is_here(path: Path) -> bool:
    """Returns whether a model of transformers is at a path."""
    return huggingface_config.is_here(path)


def read(
    path: Path,
    *,
    vocab_file: Path | None = None,
    mode_convention: str | None = None,
) -> Checkpoint:
    """Opens a model of transformers.

    No array is read, but for the head of a model that may be tied or not, which is
    compared with the embedding table.

    Args:
        path: the directory.
        vocab_file: the SentencePiece model; by default the directory's.
        mode_convention: how modes are written; by default as the vocabulary has them.

    Raises:
        ValueError: the model is damaged, or of a kind that is not ours.
    """
    fields = huggingface_config.read_fields(path)
    ours = huggingface_config.read_ours(fields)
    found = _without_copies(path, safetensors.read_index(path))
    head = found.get(HEAD)
    config = huggingface_config.model_config(path, fields, tied=head is None)
    _check_arrays(path, config, found)
    tied = head is None or _equal(head, found[EMBEDDING])
    scaled = huggingface_config.scales_logits(fields)
    config = dataclasses.replace(
        config,
        tied_embeddings=tied and scaled,
        decoder_final_norm_scale=ours.decoder_final_norm_scale
        or not _is_ones(found[_DECODER_NORM]),
    )
    params = {
        one.path: one.to_ours(found)
        for one in places(param_shapes(_ARCHITECTURE, config), config)
        if one.path != _KERNEL
    }
    assumed: tuple[str, ...] = ()
    if not config.tied_embeddings:
        weight = found[EMBEDDING] if tied or head is None else head
        if scaled:
            factor = config.embed_dim**-0.5
            kept = weight.dtype if _is_exact(weight, factor) else np.dtype(np.float32)
            weight = _multiplied(weight, factor, ours.head_dtype or kept)
        params[_KERNEL] = transposed(weight)
        assumed = _assumed_of_head(config.embed_dim, tied=tied, scaled=scaled)
    vocab, tokenizer, lines = huggingface_vocab.find(
        path, fields, vocab_file=vocab_file, mode_convention=mode_convention
    )
    hint = f"{path.absolute()} {fields.get('_name_or_path', '')}"
    return Checkpoint(
        path=path,
        format="huggingface",
        layout=str(fields["model_type"]),
        architecture=_ARCHITECTURE,
        config=config,
        preset=presets.name_of(_ARCHITECTURE, config, hint),
        vocab=vocab,
        tokenizer=tokenizer,
        step=0,
        params=params,
        assumed=(*assumed, *lines),
    )


def write(
    checkpoint: Checkpoint,
    staging: Staging,
    dtype: str | None,
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a checkpoint as a model that transformers loads.

    A shard that is there already, whole, is not written again, so a conversion that
    was killed goes on where it stopped.

    Args:
        checkpoint: of an encoder-decoder.
        staging: where.
        dtype: of the parameters; None keeps theirs.
        max_shard_bytes: beyond which a file is split.

    Raises:
        ValueError: no class of transformers holds such a model, or a parameter is
            damaged.
    """
    _check_exportable(checkpoint)
    out = staging.directory
    params = dict(checkpoint.params)
    if dtype is not None:
        params = {path: cast(one, dtype_of(dtype)) for path, one in params.items()}
    fields = huggingface_config.export_fields(
        checkpoint.config,
        checkpoint.vocab,
        dtype=params[_TABLE].dtype.name,
        head_dtype=params.get(_KERNEL, params[_TABLE]).dtype.name,
    )
    tensors = _their_tensors(checkpoint.config, params)
    huggingface_tokenizer.write(out, checkpoint.vocab, checkpoint.tokenizer)
    huggingface_config.write_json(out / huggingface_config.CONFIG, fields)
    huggingface_config.write_json(
        out / huggingface_config.GENERATION_CONFIG,
        huggingface_config.generation_fields(checkpoint.vocab),
    )
    shards = safetensors.write_shards(
        out, "model", tensors, _METADATA, max_bytes=max_shard_bytes
    )
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(tensor.size for tensor in tensors.values()),
                "total_size": sum(tensor.nbytes for tensor in tensors.values()),
            },
            "weight_map": {n: file for file, shard in shards.items() for n in shard},
        }
        huggingface_config.write_json(out / safetensors.INDEX_FILE, index)


def _without_copies(path: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the arrays, with the embedding table once."""
    found = {name: found[name] for name in found if name not in LEFTOVERS}
    copies = [found.pop(name) for name in COPIES if name in found]
    if copies:
        table = found.setdefault(EMBEDDING, copies[0])
        for copy in copies:
            if copy is not table and not _equal(copy, table):
                raise ValueError(
                    f"{path}: {copy.name} differs from {table.name}; a T5 has one "
                    "embedding table."
                )
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two arrays hold the same values."""
    return one.shape == other.shape and all(
        np.array_equal(one.read(region), other.read(region)) for region in one.regions()
    )


def _check_arrays(path: Path, config: ModelConfig, found: Mapping[str, Tensor]) -> None:
    """Refuses a model whose arrays are not those that its config asks for."""
    layers = config.num_encoder_layers + config.num_decoder_layers
    if layers > len(found):
        raise ValueError(
            f"{path}: {huggingface_config.CONFIG} says {layers} layers, but there are "
            f"only {len(found)} arrays."
        )
    for name, tensor in found.items():
        if tensor.dtype.name not in FLOATS:
            raise ValueError(
                f"{path}: {name} is {tensor.dtype}; parameters are one of "
                f"{', '.join(FLOATS)}, and quantized models are not read."
            )
    shapes = param_shapes(_ARCHITECTURE, config)
    expected: dict[str, tuple[int, ...]] = {}
    for one in places(shapes, config):
        expected |= one.their_shapes(shapes[one.path])
    differences.check(
        expected,
        {name: tensor.shape for name, tensor in found.items()},
        what=f"{path} is not the model that its {huggingface_config.CONFIG} describes",
        hint="Copy the model again.",
    )


def _assumed_of_head(width: int, *, tied: bool, scaled: bool) -> tuple[str, ...]:
    """Returns what is to be known about the kernel of the logits."""
    if tied:
        return (
            "the embedding table makes the logits unscaled: it is taken twice, as the "
            "table and as a kernel of the logits",
        )
    if not scaled:
        return ()
    return (
        f"an untied head after hidden states scaled by {width}**-0.5, as transformers "
        "5 computes it: the factor is multiplied into the kernel of the logits",
    )


def _multiplied(tensor: Tensor, factor: float, dtype: DType) -> Tensor:
    """Returns a tensor times a number, rounded once."""
    return dataclasses.replace(
        tensor,
        dtype=dtype,
        read_region=lambda region: (
            tensor.read(region).astype(np.float64) * factor
        ).astype(dtype),
    )


def _is_exact(tensor: Tensor, factor: float) -> bool:
    # float16 has few exponents, so even powers of two may underflow.
    return math.frexp(factor)[0] == 0.5 and tensor.dtype != np.float16


def _wider(tensor: Tensor) -> DType:
    """Returns a dtype from whose products the tensor comes back, bit by bit."""
    return np.dtype(np.float32 if tensor.dtype.itemsize == 2 else np.float64)


def _is_ones(tensor: Tensor) -> bool:
    return bool((tensor.read() == 1).all())


def _check_exportable(checkpoint: Checkpoint) -> None:
    """Refuses what no T5 of transformers can be."""
    config = checkpoint.config
    for is_so, what in (
        (checkpoint.architecture != _ARCHITECTURE, "a decoder-only model"),
        (config.positions != "relative", f"positions={config.positions!r}"),
        (
            config.kv_heads != config.num_heads,
            f"num_kv_heads={config.kv_heads} for num_heads={config.num_heads}",
        ),
    ):
        if is_so:
            raise ValueError(
                f"{checkpoint.path} cannot go to Hugging Face: no T5 of transformers "
                f"has {what}; use --to stablehlo."
            )


def _their_tensors(config: ModelConfig, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the arrays of their model, made of our parameters."""
    if not config.decoder_final_norm_scale:
        config = dataclasses.replace(config, decoder_final_norm_scale=True)
        scale = params["encoder.final_norm.scale"]
        params["decoder.final_norm.scale"] = filled(
            "decoder.final_norm.scale", scale.shape, 1, scale.dtype
        )
    if config.relative_bias == "per_layer" and not config.tied_embeddings:
        # UMT5 divides by this again (`huggingface_config.scales_logits`).
        kernel, factor = params[_KERNEL], config.embed_dim**0.5
        dtype = kernel.dtype if _is_exact(kernel, factor) else _wider(kernel)
        params[_KERNEL] = _multiplied(kernel, factor, dtype)
    tensors: dict[str, Tensor] = {}
    for one in places(param_shapes(_ARCHITECTURE, config), config):
        tensors |= one.to_theirs(params[one.path])
    return tensors
