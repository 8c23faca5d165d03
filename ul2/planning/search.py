"""Which mesh, remat policy and number of microbatches: predicted, then compiled.

Everything that divides is predicted first, which takes milliseconds each; the most
promising are compiled, which takes up to a minute each, and ranked by what that says.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from jax.sharding import Mesh

from ul2 import axes, is_ours
from ul2.batch import ALL_ROWS
from ul2.models.config import ModelConfig
from ul2.planning import estimate
from ul2.planning.plan import Setting, lay_out, plan, with_config
from ul2.planning.predict import (
    Sizes,
    parts,
    predicted_sent,
    predicted_use,
    roles,
)
from ul2.planning.shapes import BatchShape, shape_of
from ul2.planning.topology import Topology
from ul2.recipe import Recipe
from ul2.sharding.mesh import ACROSS, AXES, make_mesh
from ul2.sharding.rules import DEFAULT_RULES, mesh_axes
from ul2.vocab import Vocab

_MICROBATCHES: Final = (1, 2, 4, 8, 16)
# What is predicted to need up to this much of the memory may yet fit.
_MARGIN: Final = 1.15
_KNOBS: Final = ("MESH", "REMAT", "MICROBATCHES")


class Candidate(NamedTuple):
    """A way to run a recipe, and what it is predicted to take."""

    mesh: str
    remat: Any
    microbatches: int
    needed_bytes: int
    seconds: float
    inside: int = 1  # parts that a layer is split into

    @property
    def knobs(self) -> dict[str, Any]:
        """How to set it."""
        return dict(zip(_KNOBS, self[:3], strict=True))


def search(
    recipe: Recipe,
    topology: Topology,
    vocab: Vocab | None,
    *,
    count: int,
    total_steps: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the plan of the best way to run a recipe, and the ranking as `search`.

    Args:
        recipe: with its model; its mesh is not asked.
        topology: what it shall run on.
        vocab: of its model, where a checkpoint says it.
        count: how many ways are compiled.
        total_steps: of the run; None where nobody said.
        say: is told what is being compiled.

    Raises:
        ValueError: nothing divides.
    """
    found = candidates(recipe, topology, vocab)
    if not found:
        raise ValueError(
            f"no mesh of {len(topology.devices)} devices divides BATCH_SIZE="
            f"{recipe.batch_size} and the model's heads; change BATCH_SIZE."
        )
    reports = []
    for number, candidate in enumerate(found[:count], 1):
        knobs = " ".join(f"{name}={value}" for name, value in candidate.knobs.items())
        say(f"compiling {number} of {min(count, len(found))}: {knobs}")
        setting = lay_out(apply(recipe, candidate), topology, vocab)
        reports.append(
            {**plan(setting, total_steps), "predicted": _predicted(candidate)}
        )
    reports.sort(key=_rank)
    tried = [
        {
            name: report.get(name)
            for name in (*_KNOBS, "fits", "step_seconds", "mfu", "predicted")
        }
        | {"total_bytes": report["bytes_per_device"]["total"]}
        for report in reports
    ]
    return {**reports[0], "search": {"considered": len(found), "compiled": tried}}


def candidates(
    recipe: Recipe, topology: Topology, vocab: Vocab | None
) -> list[Candidate]:
    """Returns every way that divides, the most promising first.

    What seems to fit is ordered by time, then by microbatches and memory; of each
    number of parts that a layer is split into, the best comes before all others, so
    that the first few differ. What seems not to fit comes last, by memory.
    """
    limit = topology.memory_bytes * _MARGIN

    def order(one: Candidate) -> tuple[Any, ...]:
        if one.needed_bytes > limit:
            return (True, one.needed_bytes, one.mesh)
        # Predictions are not finer than this.
        seconds = float(f"{one.seconds:.1e}")
        return (False, seconds, one.microbatches, one.needed_bytes, one.mesh)

    made = sorted(_candidates(recipe, topology, vocab), key=order)
    best: dict[int, Candidate] = {}
    for one in made:
        if one.needed_bytes <= limit:
            best.setdefault(one.inside, one)
    firsts = list(best.values())
    return firsts + [one for one in made if one not in firsts]


def apply(recipe: Recipe, candidate: Candidate) -> Recipe:
    """Returns the recipe, run in another way."""
    return dataclasses.replace(
        with_config(
            recipe, lambda config: dataclasses.replace(config, remat=candidate.remat)
        ),
        mesh=candidate.mesh,
        settings=dataclasses.replace(
            recipe.settings, microbatches=candidate.microbatches
        ),
    )


def _candidates(
    recipe: Recipe, topology: Topology, vocab: Vocab | None
) -> Iterator[Candidate]:
    first = _on_one_device(recipe, topology, vocab)
    sizes = Sizes(first.params, first.held.parameters, first.held.optimizer)
    shapes: dict[int, BatchShape | None] = {}
    for text in meshes(first.config, topology):
        mesh = make_mesh(text, topology.devices)
        role = roles(mesh)
        inside = parts(mesh, (*role.insides, *role.columns))
        for microbatches in _MICROBATCHES:
            tried = apply(
                recipe, Candidate(text, first.config.remat, microbatches, 0, 0.0)
            )
            shards = tried.layout(mesh, ALL_ROWS).shards
            if shards not in shapes:
                shapes[shards] = _shape(tried, mesh, vocab)
            shape = shapes[shards]
            if shape is None:
                continue
            for remat in typing.get_args(typing.get_type_hints(ModelConfig)["remat"]):
                config = dataclasses.replace(first.config, remat=remat)
                work = dataclasses.replace(
                    first, recipe=tried, mesh=mesh, shape=shape, config=config
                ).work
                use = predicted_use(work, mesh, sizes)
                sent = predicted_sent(work, mesh)
                time = estimate.step_time(topology, mesh, work, use, sent)
                # Without a chip's numbers: what is sent decides.
                seconds = time.total if time else sum(one.sent_bytes for one in sent)
                yield Candidate(text, remat, microbatches, use.total, seconds, inside)


def _on_one_device(recipe: Recipe, topology: Topology, vocab: Vocab | None) -> Setting:
    """Lays a recipe out where nothing has to divide: for its sizes."""
    one = dataclasses.replace(topology, devices=topology.devices[:1])
    whole = dataclasses.replace(
        recipe,
        mesh="auto",
        settings=dataclasses.replace(recipe.settings, microbatches=1),
    )
    return lay_out(whole, one, vocab)


def _shape(recipe: Recipe, mesh: Mesh, vocab: Vocab | None) -> BatchShape | None:
    """Returns the shape of a recipe's batches, or None where they do not divide."""
    try:
        return shape_of(recipe, mesh, vocab)
    except ValueError as error:
        if not is_ours(error):
            raise
        return None


def _rank(report: dict[str, Any]) -> tuple[Any, ...]:
    """Orders plans: what fits, then the fastest, then what sends least."""
    seconds = report.get("step_seconds")
    sent = report.get("communicated_bytes", 0.0)
    return (not report["fits"], sent if seconds is None else seconds)


def _predicted(candidate: Candidate) -> dict[str, Any]:
    return {"total_bytes": candidate.needed_bytes, "step_seconds": candidate.seconds}


def meshes(config: ModelConfig, topology: Topology) -> Iterator[str]:
    """Yields every mesh of a topology's devices that divides a model's heads."""
    insides = mesh_axes(axes.MLP, DEFAULT_RULES)
    slices = topology.slices
    prefix = [f"{ACROSS}{AXES[0]}={slices}"] if slices > 1 else []
    for sizes in _factors(len(topology.devices) // slices, len(AXES)):
        inside = 1
        for name, size in zip(AXES, sizes, strict=True):
            inside *= size if name in insides else 1
        if config.num_heads % inside or config.kv_heads % inside:
            continue
        own = [f"{name}={size}" for name, size in zip(AXES, sizes, strict=True)]
        yield ",".join([*prefix, *own])


def _factors(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yields every way to write a number as so many factors."""
    if count == 1:
        yield (number,)
        return
    for size in range(1, number + 1):
        if number % size == 0:
            for rest in _factors(number // size, count - 1):
                yield (size, *rest)
