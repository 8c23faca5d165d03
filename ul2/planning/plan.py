"""A recipe on a topology: what it takes, as numbers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
from jax.sharding import Mesh

from ul2 import axes
from ul2.models.config import ModelConfig
from ul2.planning import estimate, memory
from ul2.planning.collectives import Collective, by_axis, collectives
from ul2.planning.compilation import (
    CompiledStep,
    OutOfMemoryError,
    RefusedError,
    compile_step,
    model_config,
    plan_state,
)
from ul2.planning.estimate import Work
from ul2.planning.flops import step_flops
from ul2.planning.memory import MemoryUse
from ul2.planning.shapes import BatchShape, shape_of
from ul2.planning.topology import LIBTPU, Topology
from ul2.recipe import Recipe
from ul2.sharding.placement import num_batch_shards
from ul2.sharding.rules import num_parts
from ul2.training.losses import chunk_columns
from ul2.training.state import TrainState
from ul2.vocab import Vocab

_BUFFERS: Final = 8
_SMALL_CHUNK: Final = 128


def with_config(recipe: Recipe, change: Callable[[ModelConfig], ModelConfig]) -> Recipe:
    """Returns the recipe with another config of its model."""
    make = recipe.model_config
    assert make is not None
    return dataclasses.replace(
        recipe, model_config=lambda vocab_size: change(make(vocab_size=vocab_size))
    )


def with_depth(recipe: Recipe, depth: int) -> Recipe:
    """Returns the recipe with at most so many layers in each stack."""
    return with_config(
        recipe,
        lambda config: dataclasses.replace(
            config,
            num_encoder_layers=min(depth, config.num_encoder_layers),
            num_decoder_layers=min(depth, config.num_decoder_layers),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """A recipe, laid out on a topology but not compiled.

    Attributes:
        recipe: with its model.
        topology: what it runs on.
        mesh: of the topology's devices.
        shape: of its batches.
        config: of its model.
        state: its arrays without their numbers.
    """

    recipe: Recipe
    topology: Topology
    mesh: Mesh
    shape: BatchShape
    config: ModelConfig
    state: TrainState

    @property
    def params(self) -> int:
        """How many parameters there are."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.state.params))

    @property
    def work(self) -> Work:
        """What its step computes."""
        microbatches = self.recipe.settings.microbatches
        chunk = self.loss_chunk
        flops = step_flops(self.config, self.shape, chunk)
        return Work(self.config, self.shape, flops, self.params, microbatches, chunk)

    @property
    def rows(self) -> int:
        """Of one microbatch on one device."""
        parts = num_batch_shards(self.mesh) * self.recipe.settings.microbatches
        return self.shape.rows // parts

    @property
    def loss_chunk(self) -> int:
        """Columns whose logits exist at once."""
        return chunk_columns(
            self.recipe.settings.loss_chunk,
            rows=self.rows,
            columns=self.shape.widths[-1],
            vocab_size=self.config.vocab_size,
        )

    @property
    def logit_widths(self) -> set[int]:
        """Of a column: all logits, and those of a device's part of the vocabulary."""
        size = self.config.vocab_size
        return {size, size // num_parts(axes.VOCAB, self.mesh)}

    @property
    def held(self) -> MemoryUse:
        """What a device holds whatever the program does."""
        return memory.held(self.state, self.shape.abstract(self.mesh))

    @property
    def mesh_text(self) -> str:
        """The mesh as MESH is written, without axes of size 1."""
        sizes = [f"{name}={size}" for name, size in self.mesh.shape.items() if size > 1]
        return ",".join(sizes) or "auto"


def lay_out(recipe: Recipe, topology: Topology, vocab: Vocab | None = None) -> Setting:
    """Lays a recipe out on a topology.

    Args:
        recipe: with its model.
        topology: what it shall run on.
        vocab: of its model, where a checkpoint says it.

    Raises:
        ValueError: the mesh does not fit the devices, or the batch the mesh.
    """
    mesh = recipe.make_mesh(topology.devices)
    shape = shape_of(recipe, mesh, vocab)
    config = model_config(recipe, shape)
    return Setting(
        recipe, topology, mesh, shape, config, plan_state(recipe, mesh, shape)
    )


def plan(setting: Setting, total_steps: int | None = None) -> dict[str, Any]:
    """Compiles a step and reports what it takes.

    Args:
        setting: a recipe on a topology.
        total_steps: of the run; None where nobody said.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    report = _known(setting)
    try:
        step = compile_step(setting.recipe, setting.mesh, setting.shape)
    except RefusedError as error:
        return report | _refused(setting, error)
    use = memory.memory_use(
        setting.held,
        step.stats,
        step.module,
        is_tpu=setting.topology.compiler == LIBTPU,
    )
    sent = collectives(step.module, setting.mesh)
    report |= _measured(setting, use, step, sent)
    report |= _timed(setting, use, sent, total_steps)
    if not report["fits"]:
        report["knobs"] = knobs(setting, use)
    return report


def _known(setting: Setting) -> dict[str, Any]:
    """Returns what is known before anything is compiled."""
    topology, shape, work = setting.topology, setting.shape, setting.work
    model = setting.recipe.model
    assert model is not None
    assumptions = [*shape.assumptions, *estimate.assumptions(topology)]
    return {
        "topology": topology.name,
        "devices": len(topology.devices),
        "chip": topology.chip.name if topology.chip else None,
        "compiler": topology.compiler,
        "architecture": model.architecture,
        "layers": [
            setting.config.num_encoder_layers,
            setting.config.num_decoder_layers,
        ],
        "params": work.params,
        "mesh": dict(setting.mesh.shape),
        "MESH": setting.mesh_text,
        "REMAT": setting.config.remat,
        "MICROBATCHES": work.microbatches,
        "BATCH_SIZE": shape.examples,
        "rows": shape.rows,
        "examples_per_row": shape.examples_per_row,
        "row_lengths": list(shape.widths),
        "padding_fraction": shape.padding_fraction,
        "flops_per_step": work.flops.model,
        "flops": {**work.flops._asdict(), "total": work.flops.total},
        "checkpoint_bytes": sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(setting.state)
        ),
        "memory_bytes_per_device": topology.memory_bytes,
        "assumptions": assumptions,
        "knobs": [],
    }


def _refused(setting: Setting, error: RefusedError) -> dict[str, Any]:
    """Returns what is known of a step that the compiler refuses."""
    use = setting.held
    help_with = ["another MESH, REMAT or MICROBATCHES: `ul2 plan --search` tries them"]
    if isinstance(error, OutOfMemoryError):
        needed = error.needed_bytes or setting.topology.memory_bytes
        use = dataclasses.replace(use, temporaries=max(0, needed - use.total))
        help_with = knobs(setting, use)
    return {
        "bytes_per_device": use.to_json(),
        "fits": False,
        "refused": error.reason,
        "knobs": help_with,
        "compile_seconds": None,
        "step_seconds": None,
        "mfu": None,
    }


def _measured(
    setting: Setting, use: MemoryUse, step: CompiledStep, sent: Sequence[Collective]
) -> dict[str, Any]:
    """Returns what the compiled step says."""
    module = step.module
    return {
        "bytes_per_device": use.to_json(),
        "fits": use.total <= setting.topology.memory_bytes,
        "communication": [
            {
                "collective": one.kind,
                "axis": one.axis,
                "group_size": one.group_size,
                "count": one.count,
                "bytes": one.sent_bytes,
            }
            for one in sent
        ],
        "communicated_bytes": sum(one.sent_bytes for one in sent),
        "communicated_bytes_by_axis": dict(by_axis(sent)),
        "largest_buffers": [
            one.to_json() for one in memory.largest_buffers(module, _BUFFERS)
        ],
        "whole_parameters": memory.whole_parameters(module, setting.state),
        "whole_logits": memory.makes_whole_logits(
            module,
            setting.logit_widths,
            setting.rows * setting.shape.widths[-1],
        ),
        "unread_loops": len(module.unread_loops),
        "compile_seconds": step.compile_seconds,
        "compile_cpu_seconds": step.compile_cpu_seconds,
        "lower_seconds": step.lower_seconds,
        "host_peak_bytes": step.host_peak_bytes,
    }


def _timed(
    setting: Setting,
    use: MemoryUse,
    sent: Sequence[Collective],
    total_steps: int | None,
) -> dict[str, Any]:
    """Returns how long a step takes, and what follows from it."""
    work, mesh, chip = setting.work, setting.mesh, setting.topology.chip
    time = estimate.step_time(setting.topology, mesh, work, use, sent)
    if time is None or chip is None:
        names = ("step_seconds", "time", "mfu", "tokens_per_second")
        return dict.fromkeys((*names, "examples_per_second", "hours"))
    filled = setting.shape.columns * (1 - (setting.shape.padding_fraction or 0))
    peak = chip.peak_flops * mesh.size
    return {
        "step_seconds": time.total,
        "time": time.to_json(),
        "mfu": work.flops.model / (time.total * peak),
        "tokens_per_second": filled / time.total,
        "examples_per_second": setting.shape.examples / time.total,
        "hours": None if total_steps is None else total_steps * time.total / 3600,
    }


def knobs(setting: Setting, use: MemoryUse) -> list[str]:
    """Returns what would make a step smaller, what helps the most first."""
    recipe, config = setting.recipe, setting.config
    shards = num_batch_shards(setting.mesh)
    state = use.parameters + use.optimizer
    lines = []
    if config.remat in ("none", "dots"):
        lines.append(f"REMAT=full: {config.remat!r} keeps more of each layer")
    if setting.rows > 1:
        lines.append(
            f"MICROBATCHES={2 * recipe.settings.microbatches}: {setting.rows} rows are "
            "in a device's memory at once"
        )
    if shards < setting.mesh.size or state < use.temporaries:
        lines.append(
            f"MESH: a larger tensor axis than in {setting.mesh_text} splits the layers "
            "of every row"
        )
    if setting.mesh.shape.get("data", 1) > 1:
        lines.append("MESH: fsdp instead of data splits parameters and optimizer")
    if setting.loss_chunk > _SMALL_CHUNK:
        lines.append(
            f"LOSS_CHUNK={_SMALL_CHUNK}: logits of {setting.loss_chunk} columns"
        )
    if not lines or state > use.temporaries:
        lines.append(
            f"more devices: parameters and optimizer alone take {state / 2**30:.1f} "
            "GiB of each"
        )
    return lines
