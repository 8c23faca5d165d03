"""Gin files to plans: only sizes are wanted of what they describe."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from absl import logging

from ul2 import gin_config, launch
from ul2.gin_config import Bindings
from ul2.planning.plan import lay_out, plan, with_depth
from ul2.planning.search import search
from ul2.planning.topology import open_topologies
from ul2.recipe import Recipe
from ul2.starting import open_start
from ul2.vocab import Vocab

# Values for macros that a plan can do without.
_NOT_NEEDED: Final[Bindings] = (
    *launch.NOT_NEEDED_WITHOUT_TRAINING,
    ("DATA", "None"),
    ("TASK", "any"),
    ("INITIAL_CHECKPOINT", "None"),
)


def read_recipe(
    gin_files: Sequence[str], bindings: Bindings
) -> tuple[Recipe, Vocab | None, int | None]:
    """Reads a config of which only sizes are wanted.

    Neither the data nor the initial checkpoint have to be there, unless it is the
    checkpoint that says which model it is.

    Returns:
        The recipe with its model, the vocabulary of its checkpoint if that was
        opened, and TOTAL_STEPS if it was given.

    Raises:
        ValueError: something is wrong with it.
    """
    recipe = launch.read(gin_files, bindings, _NOT_NEEDED)
    gin_config.begin(gin_files, bindings)
    ends = "TOTAL_STEPS" not in gin_config.undefined_macros()
    total_steps = recipe.settings.total_steps if ends else None
    if recipe.model is not None and recipe.model_config is not None:
        return recipe, None, total_steps
    contract = open_start(recipe).contract
    described = contract.model if contract else None
    vocab = contract.vocab if contract else None
    return recipe.with_model(described), vocab, total_steps


def plan_configs(
    configs: Sequence[Sequence[str]],
    bindings: Bindings,
    topologies: Sequence[str],
    *,
    depth: int | None = None,
    candidates: int = 0,
    say: Callable[[str], None] = logging.info,
) -> list[dict[str, Any]]:
    """Returns what configs take on topologies, each on each.

    All configs on the first topology come first.

    Args:
        configs: the gin files of each.
        bindings: (name, value) of `--gin.NAME=value`, of all of them.
        topologies: such as `v5p:4x4x4`; see `ul2.planning.topology`.
        depth: at most so many layers in each stack; None for the config's.
        candidates: how many of the most promising meshes, remat policies and numbers
            of microbatches are compiled; 0 plans the config's own.
        say: is told what goes on.

    Raises:
        ValueError: something is wrong with a config, or it does not fit a topology.
    """
    opened = open_topologies(topologies)
    by_config = []
    for gin_files in configs:
        # One after the other: a recipe reads gin's values when it makes its parts.
        recipe, vocab, total_steps = read_recipe(gin_files, bindings)
        if depth is not None:
            recipe = with_depth(recipe, depth)
        by_config.append(
            [
                search(
                    recipe,
                    topology,
                    vocab,
                    count=candidates,
                    total_steps=total_steps,
                    say=say,
                )
                if candidates
                else plan(lay_out(recipe, topology, vocab), total_steps)
                for topology in opened
            ]
        )
    return [report for of_one in zip(*by_config, strict=True) for report in of_one]
