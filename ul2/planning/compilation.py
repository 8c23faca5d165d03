"""A recipe's train step, compiled for devices that are not there."""

import dataclasses
import resource
import time
from typing import Any

import jax
from jax.sharding import Mesh

from ul2.models.architectures import from_json
from ul2.models.config import ModelConfig
from ul2.planning.hlo import Module
from ul2.planning.shapes import BatchShape
from ul2.recipe import Recipe
from ul2.training.failures import gib_needed
from ul2.training.loop import step_settings
from ul2.training.state import (
    TrainState,
    abstract_state,
    define_model,
    guarded,
    with_shardings,
)
from ul2.training.step import make_train_step


class RefusedError(Exception):
    """A program that its compiler refuses.

    Attributes:
        reason: in the compiler's words, one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OutOfMemoryError(RefusedError):
    """A program that needs more memory than a device has.

    Attributes:
        needed_bytes: as the compiler says; None where it does not.
    """

    def __init__(self, reason: str, needed_bytes: int | None) -> None:
        super().__init__(reason)
        self.needed_bytes = needed_bytes


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step, and what it took.

    Attributes:
        stats: `memory_analysis()`.
        module: the program.
        lower_seconds: to trace it.
        compile_seconds: to compile it.
        compile_cpu_seconds: the same on one core that does nothing else.
        host_peak_bytes: the most memory that this process has had so far.
    """

    stats: Any
    module: Module
    lower_seconds: float
    compile_seconds: float
    compile_cpu_seconds: float
    host_peak_bytes: int


def model_config(recipe: Recipe, shape: BatchShape) -> ModelConfig:
    """Returns the model's config.

    Raises:
        ValueError: it is no model of ours.
    """
    described = recipe.describe_model(shape.vocab)
    if described is None:
        raise ValueError(
            "a plan knows the sizes of EncoderDecoder and DecoderOnly alone; use one "
            "of configs/models."
        )
    return from_json(described)[1]


def plan_state(recipe: Recipe, mesh: Mesh, shape: BatchShape) -> TrainState:
    """Returns the state's arrays without their numbers, split over the mesh."""
    make_model = recipe.make_model(shape.vocab)
    optimizer = recipe.param_optimizer(
        recipe.schedule, define_model(make_model).param_axes
    )
    alone = abstract_state(make_model, optimizer, mesh)
    state: TrainState = with_shardings(*guarded(*alone, shape.num_denoisers, mesh))
    return state


def compile_step(recipe: Recipe, mesh: Mesh, shape: BatchShape) -> CompiledStep:
    """Compiles an update.

    Raises:
        RefusedError: the compiler refuses it.
    """
    model = define_model(recipe.make_model(shape.vocab))
    state = plan_state(recipe, mesh, shape)
    start = time.perf_counter()
    step = make_train_step(
        model,
        recipe.param_optimizer(recipe.schedule, model.param_axes),
        recipe.schedule,
        mesh,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
        settings=step_settings(recipe.settings, shape.num_denoisers),
    )
    lowered = step.lower(state, shape.abstract(mesh))
    lower_seconds = time.perf_counter() - start
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        reason = text.strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" in text:
            needed, _ = gib_needed(text)
            raise OutOfMemoryError(
                reason, None if needed is None else int(needed * 2**30)
            ) from None
        raise RefusedError(reason) from None
    compile_seconds = time.perf_counter() - start
    compile_cpu_seconds = time.process_time() - cpu_start
    return CompiledStep(
        stats=compiled.memory_analysis(),
        module=Module(compiled.as_text() or ""),
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        compile_cpu_seconds=compile_cpu_seconds,
        # Linux counts in KiB.
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
