"""Gin files to runs.

A run is a `Recipe`: any model x any objective x any data x any mesh, each bound by one
gin file, none knowing about the others. Reading one is strict, because gin is not: a
binding that nothing reads is refused instead of ignored, and everything that is
missing is reported at once, with the file or the flag to set it in.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import jax
from absl import logging

from ul2 import gin_config, inspection, is_ours
from ul2.data.loader import Loader, Source
from ul2.decoding.answers import answer
from ul2.denoising.mixture import Mixture
from ul2.gin_config import Bindings, ConfigError
from ul2.interop.opening import open_checkpoint
from ul2.models import architectures
from ul2.recipe import Recipe
from ul2.sharding.mesh import make_mesh
from ul2.tasks.tokenizer import open_with_vocab
from ul2.training import checkpoints, loop, origin, run_directory
from ul2.training.origin import Origin
from ul2.training.state import define_model
from ul2.vocab import Vocab

# Values for macros that only training reads.
NOT_NEEDED_WITHOUT_TRAINING: Final[Bindings] = (
    ("MODEL_DIR", "runs/unnamed"),
    ("TOTAL_STEPS", "1000000"),
)

_DEFAULT_OBJECTIVE: Final = "configs/objectives/ul2.gin"
_NOTEWORTHY_PADDING: Final = 0.03


def read(
    gin_files: Sequence[str], bindings: Bindings, defaults: Bindings = ()
) -> Recipe:
    """Reads gin files, and the bindings given on the command line on top.

    Args:
        gin_files: paths, looked up here, then in the checkout or the package.
        bindings: (name, value) of `--gin.NAME=value`; a value that is no gin literal
            is a string.
        defaults: the same for macros that the command at hand can do without.

    Raises:
        ConfigError: a file or name is unknown, or something is missing; everything
            that is missing is named at once.
    """
    problems = gin_config.begin(gin_files, bindings)
    problems += gin_config.parse(
        [pair for pair in defaults if pair[0] in gin_config.undefined_macros()]
    )
    problems += (
        gin_config.missing() + gin_config.unread_macros() + gin_config.of_wrong_type()
    )
    if problems:
        raise ConfigError(problems)
    return gin_config.make_recipe()


def exercise(recipe: Recipe, vocab: Vocab) -> str:
    """Builds everything once, without memory or compiling, and returns the config.

    Raises:
        ConfigError: bindings that nothing read, all of them.
    """
    with gin_config.plain_errors():
        model = define_model(recipe.make_model(vocab))
        recipe.optimizer(recipe.schedule, model.param_axes)
    return gin_config.operative_text()


def check(gin_files: Sequence[str], bindings: Bindings) -> dict[str, Any]:
    """Returns what a config will really do, and everything that is wrong with it.

    Goes as far as what is wrong lets it, compiles nothing and writes nothing.

    Returns:
        `errors`, and what `inspection.measure` measures as far as there is data.
    """
    report: dict[str, Any] = {"denoisers": [], "padding_fraction": None}
    report |= {"warnings": [], "errors": []}
    errors: list[str] = report["errors"]
    recipe = None
    for defaults in ((), NOT_NEEDED_WITHOUT_TRAINING):
        try:
            recipe = recipe or read(gin_files, bindings, defaults)
        except ConfigError as error:
            errors += [one for one in error.problems if one not in errors]
    if recipe is None:
        return report
    with _collect(errors):
        _, vocab = recipe.open_store()
        config_text = None
        with _collect(errors):
            config_text = exercise(recipe, vocab)
        with _collect(errors):
            mesh = make_mesh(recipe.mesh)
            source = recipe.source("train", mesh)
            report |= inspection.measure(source.stream, source.packing)
            report["warnings"] = _padding_warnings(recipe, source, report)
            if config_text is not None:
                with _collect(errors):
                    check_start(recipe, config_text, vocab, Loader(source))
            recipe.held_out_batches(mesh)
    return report


def check_start(
    recipe: Recipe, config_text: str, vocab: Vocab, batches: Loader
) -> Origin | None:
    """Refuses a run that cannot begin, or go on.

    The loop refuses most of it too, but by then the run's files would be replaced.

    Args:
        recipe: the run.
        config_text: its operative config.
        vocab: of its data.
        batches: of its data; moved to where the run stopped.

    Returns:
        What a new run starts from, if that is not random parameters.

    Raises:
        ValueError: the directory cannot be written to or holds another run, or a
            checkpoint is missing, beyond the last step, or of another model,
            vocabulary, optimizer or text.
    """
    run_directory.check_writable(recipe.model_dir)
    run_directory.check_same_run(recipe.model_dir, config_text)
    if not run_directory.has_checkpoint(recipe.model_dir):
        return _open_origin(recipe, vocab)
    saved = checkpoints.read_contract(recipe.model_dir)
    if saved.step > recipe.settings.total_steps:
        raise ValueError(
            f"{recipe.model_dir} holds step {saved.step}, beyond TOTAL_STEPS="
            f"{recipe.settings.total_steps}; raise it or choose another MODEL_DIR."
        )
    what = f"checkpoint step {saved.step}"
    checkpoints.check_vocab(saved.vocab, vocab, what=what)
    checkpoints.check_position(saved, recipe.model_dir)
    assert saved.data_position is not None
    batches.seek(saved.data_position)
    return None


def _open_origin(recipe: Recipe, vocab: Vocab) -> Origin | None:
    """Opens what a new run starts from, of whatever format, and compares it.

    Raises:
        ValueError: it is no checkpoint, or not one that this run can start from.
    """
    if recipe.initial_checkpoint is None:
        return None
    path = Path(recipe.initial_checkpoint)
    if run_directory.has_checkpoint(path):
        found = origin.of_run(path)
    else:
        found = _open_foreign(path)
    found.check(vocab, recipe.describe_model(vocab))
    if recipe.keeps_optimizer:
        model = define_model(recipe.make_model(vocab))
        optimizer = recipe.optimizer(recipe.schedule, model.param_axes)
        found.check_optimizer(jax.eval_shape(optimizer.init, model.abstract_params))
        found.check_schedule(recipe.schedule, recipe.settings.total_steps)
    return found


def _open_foreign(path: Path) -> Origin:
    """Opens a checkpoint of T5X or Hugging Face; see `ul2.interop`."""
    opened = open_checkpoint(path)
    for line in opened.assumed:
        logging.warning("%s: assumed %s.", path, line)
    contract = checkpoints.Contract(
        step=0,
        data_position=None,
        vocab=opened.vocab,
        config_text="",
        mixture=None,
        model=architectures.to_json(opened.architecture, opened.config),
        prior_steps=opened.moments.step if opened.moments else opened.step,
    )
    return origin.of_arrays(
        path,
        contract,
        opened.params,
        opened.moments,
        has_tokenizer=opened.tokenizer is not None,
    )


def _padding_warnings(
    recipe: Recipe, source: Source, report: dict[str, Any]
) -> list[str]:
    """Returns what to do where rows stay emptier than they need to."""
    padding = report["padding_fraction"]
    if padding <= _NOTEWORTHY_PADDING:
        return []
    # Two rounds fill a row: mirrored pairs of the S-denoiser included.
    unit = 2 * recipe.mixture.round_size * source.packing.shards
    fuller = max(1, round(recipe.batch_size / unit)) * unit
    return [
        f"{padding:.1%} of all columns are padding; BATCH_SIZE={fuller} fills the rows "
        f"of {source.packing.shards} parts better than {recipe.batch_size}"
    ]


@contextlib.contextmanager
def _collect(errors: list[str]) -> Iterator[None]:
    """Notes what is wrong, and goes on; a bug of ours is not noted but raised."""
    try:
        yield
    except ConfigError as error:
        errors += error.problems
    except ValueError as error:
        if not is_ours(error):
            raise
        errors.append(str(error))


def infer(
    checkpoint: str | Path,
    rows: Sequence[dict[str, Any]],
    *,
    mode: str | None,
    max_tokens: int,
) -> list[dict[str, Any]]:
    """Fills the blanks of texts, or goes on with them, greedily.

    Args:
        checkpoint: a run, its `checkpoints` folder, or one checkpoint.
        rows: each with `inputs`, and its own `mode` if it has one.
        mode: R, S, X or none, for rows without one.
        max_tokens: longest output.

    Returns:
        The rows with `mode`, `prediction` (the output) and `filled`.
    """
    model, contract = checkpoints.load_model(checkpoint, make_mesh("auto"))
    vocab = contract.vocab
    tokenizer = open_with_vocab(run_directory.tokenizer_path(checkpoint), vocab)
    return answer(model, tokenizer, vocab, rows, mode=mode, max_tokens=max_tokens)


def sentinels_needed(gin_files: Sequence[str], bindings: Bindings) -> int:
    """Returns how many sentinels an objective needs, for a vocabulary in the making.

    Without an objective among the gin files: UL2's. At 1024/1024, if no lengths are
    given: enough for all shorter ones.
    """
    lengths: Bindings = (("INPUTS_LENGTH", "1024"), ("TARGETS_LENGTH", "1024"))
    problems = gin_config.begin(gin_files, [*lengths, *bindings])
    if "mixture" not in gin_config.recipe_bindings():
        problems += gin_config.begin(
            [_DEFAULT_OBJECTIVE, *gin_files], [*lengths, *bindings]
        )
    problems += gin_config.unread_macros(allowed=dict(lengths))
    if problems:
        raise ConfigError(problems)
    macros = gin_config.macro_values()
    mixture: Mixture = gin_config.recipe_bindings()["mixture"].scoped_configurable_fn()
    return max(
        denoiser.fit(macros["INPUTS_LENGTH"], macros["TARGETS_LENGTH"], 0).spans
        * denoiser.sentinels
        for denoiser in mixture.denoisers
    )


def train(recipe: Recipe, *, show_progress: bool = True) -> loop.TrainSummary:
    """Trains, or goes on training; see `ul2.training.loop`.

    Raises:
        ValueError: something in the recipe is wrong; nothing was written.
    """
    mesh = make_mesh(recipe.mesh)
    store, vocab = recipe.open_store()
    source = recipe.source("train", mesh)
    held_out_batches = recipe.held_out_batches(mesh)
    config_text = exercise(recipe, vocab)
    batches = Loader(source)
    start = check_start(recipe, config_text, vocab, batches)
    tokenizer = store.tokenizer_path.read_bytes()
    run_directory.keep(recipe.model_dir, run_directory.CONFIG, config_text.encode())
    run_directory.keep(recipe.model_dir, run_directory.TOKENIZER, tokenizer)
    run = loop.Run(
        model_dir=recipe.model_dir,
        make_model=recipe.make_model(vocab),
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        mesh=mesh,
        batches=batches,
        denoiser_names=recipe.mixture.names,
        vocab=vocab,
        config_text=config_text,
        eval_batches=held_out_batches,
        mixture=dataclasses.asdict(recipe.mixture),
        model=recipe.describe_model(vocab),
        origin=start,
        keep_optimizer=recipe.keeps_optimizer,
        show_progress=show_progress,
    )
    return loop.train(run, recipe.settings)
