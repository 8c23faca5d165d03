"""What evaluations during training measure besides held-out losses, as a recipe says.

EVAL_MODES     the same held-out text under R, S, X and no mode: does the model
listen to its modes?
EVAL_SOURCES   held-out text by the files or folders that it is from
EVAL_SAMPLES   a few held-out examples, decoded
EVAL_DECODE    held-out examples of tasks, decoded and scored
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax
from jax.sharding import Mesh

from ul2.data.corpus import Corpus
from ul2.data.run_data import RunData
from ul2.data.task_data import TaskData
from ul2.data.task_mixture import NO_MODE
from ul2.evaluation.decoded_metrics import DecodedMetrics, read_held_out
from ul2.evaluation.samples import Samples, take_in_turn
from ul2.recipe import Recipe
from ul2.tasks import registry
from ul2.tasks.example_tokenization import registered_tasks, tokenizer_of
from ul2.tasks.tokenizer import Tokenizer
from ul2.training.run import ScoreParams
from ul2.training.state import Params, define_model
from ul2.vocab import MODES, Vocab

if TYPE_CHECKING:
    from ul2.decoding.text_model import TextModel

_TOKENIZER: Final = Path("tokenizer")


def further_batches(recipe: Recipe, data: RunData) -> dict[str, Any]:
    """Returns the batches of text that are scored besides, as fields of a `Run`.

    Raises:
        ValueError: the text does not do for them.
    """
    count = recipe.eval_batches
    if not isinstance(data, Corpus) or not count:
        return {}
    found: dict[str, Any] = {}
    if recipe.eval_modes:
        found["mode_batches"] = {
            mode or NO_MODE: data.in_mode(mode).held_out_batches(count)
            for mode in (*MODES, None)
        }
    if recipe.eval_sources:
        found["source_batches"] = data.held_out_by_source(count)
    return found


def scorer(
    recipe: Recipe,
    data: RunData,
    tokenizer: tuple[Tokenizer, Vocab] | None,
    mesh: Mesh,
) -> ScoreParams | None:
    """Returns what decodes held-out examples at evaluations, if asked to.

    Args:
        recipe: the run, with its model.
        data: what it learns from.
        tokenizer: of tasks, and the vocabulary of the model.
        mesh: where the parameters lie.

    Raises:
        ValueError: the text of the examples is missing, or its right outputs are; or
            several processes would have to decode.
    """
    made = _metrics(recipe, data, tokenizer, mesh), _samples(recipe, data, mesh)
    scorers = [one for one in made if one is not None]
    if not scorers:
        return None

    def score(params: Params, check: Callable[[], None]) -> dict[str, Any]:
        return {k: v for one in scorers for k, v in one(params, check).items()}

    return score


def _metrics(
    recipe: Recipe,
    data: RunData,
    tokenizer: tuple[Tokenizer, Vocab] | None,
    mesh: Mesh,
) -> DecodedMetrics | None:
    """Returns what decodes held-out examples of tasks, and scores the answers."""
    if not (recipe.eval_decode and isinstance(data, TaskData) and data.held_out):
        return None
    assert tokenizer is not None
    reader = registered_tasks(recipe.data_dir)
    return DecodedMetrics(
        read_held_out(
            data.rows, data.held_out, registry.find, reader, recipe.eval_limit
        ),
        _model_maker(recipe, *tokenizer, mesh),
        inputs_length=recipe.inputs_length,
        max_tokens=recipe.targets_length,
    )


def _samples(recipe: Recipe, data: RunData, mesh: Mesh) -> Samples | None:
    """Returns what decodes a few held-out examples."""
    if not recipe.eval_samples or recipe.eval_batches == 0:
        return None
    if jax.process_count() > 1:
        raise ValueError(
            f"EVAL_SAMPLES={recipe.eval_samples}: decoding drives the devices of one "
            f"process, and {jax.process_count()} train; set EVAL_SAMPLES=0."
        )
    tokenizer = tokenizer_of(_TOKENIZER, data.tokenizer, data.vocab)
    return Samples(
        take_in_turn(data.examples("held_out", 0), recipe.eval_samples),
        _model_maker(recipe, tokenizer, data.vocab, mesh),
        tokenizer,
        max_tokens=recipe.targets_length,
    )


def _model_maker(
    recipe: Recipe, tokenizer: Tokenizer, vocab: Vocab, mesh: Mesh
) -> "Callable[[Params], TextModel]":
    """Returns what makes a model that reads and writes text, of parameters."""
    # Decoding is not needed by every run.
    from ul2.decoding.text_model import TextModel

    definition = define_model(recipe.make_model(vocab))
    return lambda params: TextModel(
        definition.merge(params), tokenizer, vocab, mesh=mesh
    )
