"""What a T5X model is, told by the shapes of its arrays and by what lies beside it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from ul2.interop import presets
from ul2.interop.t5x_names import Layout
from ul2.models.config import ModelConfig

Activation = Literal["silu", "gelu", "relu"]
Shapes = Mapping[str, tuple[int, ...]]
ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
}
_HINT_FILES: Final = ("config.gin", "operative*.gin", "config.json")
_MAX_HINT_BYTES: Final = 2**20
# `mlp_activations = ('gelu', 'linear')`, `MlpBlock.activations = ("swish", "linear")`.
_HINT: Final = re.compile(r"activations[\"']?\s*[=:]\s*[(\[]\s*[\"'](\w+)[\"']")


def find_layout(shapes: Shapes) -> Layout:
    """Returns which of T5X's layouts arrays of these names and shapes have."""
    scanned = "decoder/decoder/mlp/wo/kernel" in shapes
    scope = "decoder/decoder" if scanned else "decoder/layers_0"
    query = shapes.get(f"{scope}/self_attention/query/kernel", ())
    split_heads = len(query) == (4 if scanned else 3)
    if not scanned:
        if not any(name.startswith("encoder/") for name in shapes):
            return Layout("decoder_only", split_heads=split_heads)
        name = "scalable_t5, not scanned" if split_heads else "t5"
        return Layout(name, split_heads=split_heads)
    # The norms are [embed, layers], or [layers, embed] where the first dim is scanned.
    norm = shapes.get("decoder/decoder/pre_mlp_layer_norm/scale", ())
    embed = shapes.get("decoder/decoder_norm/scale", ())[-1:]
    first = len(norm) == 2 and norm[1:] == embed != norm[:1]
    return Layout("scalable_t5", scan_axis=0 if first else 1, split_heads=split_heads)


def find_config(
    path: Path, shapes: Shapes, layout: Layout, activation: str | None
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Returns the config of a model, and what of it was assumed.

    Args:
        path: of the checkpoint.
        shapes: of its parameters, by T5X's names.
        layout: of its parameters.
        activation: None to find out.

    Raises:
        ValueError: the arrays are no T5 model.
    """
    top = "decoder/" if layout.name == "decoder_only" else ""
    try:
        vocab_size, embed_dim = shapes[f"{top}token_embedder/embedding"]
        scope = _scope(shapes, "decoder", layout)
        mlp = _one_layer(shapes[f"{scope}/mlp/wo/kernel"], layout)
        per_layer = f"{scope}/relpos_bias/rel_embedding" in shapes
        table = f"{scope if per_layer else 'decoder'}/relpos_bias/rel_embedding"
        num_heads, num_buckets = shapes[table][:1] + shapes[table][-1:]
        if per_layer:
            num_heads, num_buckets = _one_layer(shapes[table], layout)
        query = _one_layer(shapes[f"{scope}/self_attention/query/kernel"], layout)
        head_dim = query[-1] if layout.split_heads else query[-1] // num_heads
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        named = (
            f" ({error.args[0]} is not there)" if isinstance(error, KeyError) else ""
        )
        raise ValueError(f"{path} holds no T5 model of T5X{named}.") from None
    config = ModelConfig(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp[0],
        num_encoder_layers=_num_layers(shapes, "encoder", layout),
        num_decoder_layers=_num_layers(shapes, "decoder", layout),
        activation="relu",
        gated=f"{scope}/mlp/wi_0/kernel" in shapes,
        positions="relative",
        relative_bias="per_layer" if per_layer else "shared",
        relative_buckets=num_buckets,
        tied_embeddings="decoder/logits_dense/kernel" not in shapes,
        decoder_final_norm_scale="decoder/decoder_norm/scale" in shapes,
        dropout_rate=0.0,
        dtype="float32",
        remat="none",
    )
    found, assumed = _activation(path, config, activation)
    return dataclasses.replace(config, activation=found), assumed


def architecture_of(config: ModelConfig) -> str:
    """Returns which of our architectures a T5 model is."""
    return "encoder_decoder" if config.num_encoder_layers else "decoder_only"


def _scope(shapes: Shapes, stack: str, layout: Layout) -> str:
    """Returns where the parameters of the first layer, or of all, are."""
    return f"{stack}/{stack}" if layout.scan_axis is not None else f"{stack}/layers_0"


def _one_layer(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Returns the shape of one layer's part of an array."""
    if layout.scan_axis is None:
        return shape
    return shape[: layout.scan_axis] + shape[layout.scan_axis + 1 :]


def _num_layers(shapes: Shapes, stack: str, layout: Layout) -> int:
    """Returns the number of layers of a stack; 0 where there is none."""
    if layout.scan_axis is not None:
        wo = shapes.get(f"{stack}/{stack}/mlp/wo/kernel", ())
        return wo[layout.scan_axis] if len(wo) == 3 else 0
    pattern = re.compile(rf"{stack}/layers_(\d{{1,9}})/")
    indices = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    # An index may be any number; what is missing is named when shapes are compared.
    return min(max(indices, default=-1) + 1, len(shapes))


def _activation(
    path: Path, config: ModelConfig, given: str | None
) -> tuple[Activation, tuple[str, ...]]:
    """Returns the activation, and a line where it was merely assumed."""
    if given is not None:
        if given not in ACTIVATIONS:
            raise ValueError(f"--activation {given} is not one of {list(ACTIVATIONS)}.")
        return ACTIVATIONS[given], ()
    for file, text in _hints(path):
        named = {name for name in _HINT.findall(text) if name in ACTIVATIONS}
        if len({ACTIVATIONS[name] for name in named}) == 1:
            name = named.pop()
            return ACTIVATIONS[name], (f"activation {name}: {file.name} says so",)
    if not config.gated:
        return "relu", ("activation relu: the feed-forward block is not gated",)
    for candidate in ("silu", "gelu"):
        guess = dataclasses.replace(config, activation=candidate)
        preset = presets.name_of(architecture_of(guess), guess)
        if preset is not None:
            return ACTIVATIONS[candidate], (f"activation {candidate}: {preset} has it",)
    line = "activation silu, which is UL2's: nothing says it; --activation gelu is T5's"
    return "silu", (line,)


def _hints(path: Path) -> Iterator[tuple[Path, str]]:
    """Yields the configs beside a checkpoint and in the two folders above it."""
    path = path.absolute()
    for folder in (path, path.parent, path.parent.parent):
        if not folder.is_dir():
            continue
        for pattern in _HINT_FILES:
            for file in sorted(folder.glob(pattern)):
                if file.is_file() and file.stat().st_size <= _MAX_HINT_BYTES:
                    yield file, file.read_text(errors="replace")
