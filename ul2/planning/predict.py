"""Memory and communication of a step, predicted without compiling it.

For ranking meshes and for more chips than anybody wants to compile for. What is
predicted is what GSPMD does with the sharding rules:

    axes that split kernels and rows    each pass gathers a layer's kernels, and the
                                        backward pass scatters their gradients
    axes that split rows alone          gradients are summed over all copies
    axes that split a layer's insides   each sublayer gathers its columns and scatters
                                        its sums: twice forward, thrice backward
    axes that split columns             keys and values of an example are gathered

`benchmarks/scaling_2026-11.md` holds predictions against compiled programs.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from ul2 import axes
from ul2.models.config import ModelConfig
from ul2.planning.collectives import Collective
from ul2.planning.estimate import Work
from ul2.planning.memory import MemoryUse
from ul2.sharding.rules import DEFAULT_RULES, mesh_axes

_FLOAT32: Final = 4
# Of a batch, per column: tokens, places, targets, weights.
_BATCH_NUMBERS: Final = 6
# Of the columns of a sublayer: forward, again for the backward pass, and its gradient;
# and of its sums: of the output, and of the input's gradient.
_GATHERS: Final = 3
_SCATTERS: Final = 2
# Copies of a sublayer's widest array that live at once, forward and backward.
_COPIES: Final = 3


class Roles(NamedTuple):
    """Which axes of a mesh do what; those of size 1 do nothing."""

    rows: tuple[str, ...]  # split rows
    kernels: tuple[str, ...]  # split kernels, which are gathered to be used
    insides: tuple[str, ...]  # split heads and feed-forward
    columns: tuple[str, ...]  # split the columns of rows


class Sizes(NamedTuple):
    """Of a whole state, in bytes, and how many parameters it has."""

    params: int
    parameters: int
    optimizer: int


def roles(mesh: Mesh) -> Roles:
    """Returns what the axes of a mesh do under the sharding rules."""

    def of(name: str) -> tuple[str, ...]:
        found = mesh_axes(name, DEFAULT_RULES)
        return tuple(axis for axis in found if mesh.shape[axis] > 1)

    insides = of(axes.MLP)
    columns = tuple(axis for axis in of(axes.LENGTH) if axis not in insides)
    return Roles(of(axes.BATCH), of(axes.EMBED), insides, columns)


def parts(mesh: Mesh, names: Iterable[str]) -> int:
    """Returns into how many parts some axes split."""
    return math.prod(mesh.shape[name] for name in names)


def predicted_use(work: Work, mesh: Mesh, sizes: Sizes) -> MemoryUse:
    """Returns what a device holds while a step runs."""
    role, config, shape = roles(mesh), work.config, work.shape
    split = parts(mesh, {*role.kernels, *role.insides})
    number = jnp.dtype(config.compute_dtype).itemsize
    ways = parts(mesh, role.rows) * parts(mesh, role.columns)
    rows = shape.rows / ways / work.microbatches
    inside = parts(mesh, role.insides)
    activations = sum(
        rows * width * layers * _kept_width(config, shape.views[-1], inside)
        for width, layers in zip(shape.widths, _layers(config), strict=True)
    )
    widest = max(
        rows * max(shape.widths) * config.mlp_dim / inside * number,
        rows * max(shape.widths) * config.embed_dim * _FLOAT32,
        rows * _logit_columns(work) * config.num_heads / inside * _FLOAT32,
        rows * work.loss_chunk * config.vocab_size / inside * _FLOAT32,
    )
    layer = sizes.params / max(1, sum(_layers(config))) / inside * number
    gradients = sizes.parameters / split
    working = _COPIES * widest + 2 * layer
    return MemoryUse(
        parameters=int(sizes.parameters / split),
        optimizer=int(sizes.optimizer / split),
        batch=int(_BATCH_NUMBERS * _FLOAT32 * shape.columns / ways),
        activations=int(activations * number),
        gradients=int(gradients),
        temporaries=int(activations * number + gradients + working),
    )


def predicted_sent(work: Work, mesh: Mesh) -> list[Collective]:
    """Returns what each device sends in a step."""
    made = list(_sent(work, mesh))
    return sorted(made, key=lambda one: -one.sent_bytes)


def _sent(work: Work, mesh: Mesh) -> Iterator[Collective]:
    role, config, shape = roles(mesh), work.config, work.shape
    number = jnp.dtype(config.compute_dtype).itemsize
    inside = parts(mesh, role.insides)
    again = config.remat not in ("none", "dots")
    passes = 2 + again
    kernels = work.params / inside
    if role.kernels:
        size = parts(mesh, role.kernels)
        share = (size - 1) / size
        head = config.vocab_size * config.embed_dim / inside
        # For each chunk of the loss once: its gradients are made beside it.
        used = passes * (kernels - head) + _num_chunks(work) * head
        gathered = used * number * work.microbatches * share
        yield Collective("all-gather", role.kernels, size, passes, gathered)
        scattered = kernels * number * work.microbatches * share
        yield Collective("reduce-scatter", role.kernels, size, 1, scattered)
    copies = tuple(axis for axis in role.rows if axis not in role.kernels)
    if copies:
        size = parts(mesh, copies)
        held = kernels / parts(mesh, role.kernels) * _FLOAT32 * work.microbatches
        summed = 2 * (size - 1) / size * held
        yield Collective("all-reduce", copies, size, 1, summed)
    columns = shape.rows / parts(mesh, role.rows) / parts(mesh, role.columns)
    if role.insides:
        sublayers = (2, 3) if config.num_encoder_layers else (2,)
        outputs = sum(
            layers * width * each
            for layers, width, each in zip(
                _layers(config), shape.widths, sublayers, strict=True
            )
        )
        once = outputs * columns * config.embed_dim * number * (inside - 1) / inside
        yield Collective("all-gather", role.insides, inside, _GATHERS, _GATHERS * once)
        yield Collective(
            "reduce-scatter", role.insides, inside, _SCATTERS, _SCATTERS * once
        )
    if role.columns:
        size = parts(mesh, role.columns)
        width = 2 * config.kv_heads * config.head_dim / inside * number
        read = sum(
            layers * side
            for layers, side in zip(_layers(config), shape.widths, strict=True)
        )
        gathered = read * columns * size * width * passes * (size - 1) / size
        yield Collective("all-gather", role.columns, size, passes, gathered)


def _layers(config: ModelConfig) -> tuple[int, ...]:
    """Returns the layers of each side of a row."""
    if config.num_encoder_layers:
        return config.num_encoder_layers, config.num_decoder_layers
    return (config.num_decoder_layers,)


def _kept_width(config: ModelConfig, view: int, inside: int) -> float:
    """Returns the numbers that a layer keeps of each column, by its remat policy."""
    remat: str = config.remat
    if remat == "offload":
        return 0.0
    if remat == "full":
        return config.embed_dim / inside
    heads = (2 * config.num_heads + 2 * config.kv_heads) * config.head_dim / inside
    wide = (2 if config.gated else 1) * config.mlp_dim / inside
    kept = 3 * config.embed_dim / inside + heads + wide
    if remat == "dots":
        return kept
    return 3 * kept + 3 * config.num_heads * view / inside


def _num_chunks(work: Work) -> int:
    """Returns the chunks of the loss of one microbatch."""
    return -(-work.shape.widths[-1] // work.loss_chunk)


def _logit_columns(work: Work) -> float:
    """Returns the pairs of query and key of a row, where there are the most."""
    shape = work.shape
    return shape.examples_per_row * shape.views[-1] * max(shape.views)
