"""Gin files to runs.

A run is a `Recipe`: any model x any objective x any data x any mesh, each bound by one
gin file, none knowing about the others. Reading one is strict, because gin is not: a
binding that nothing reads is refused instead of ignored, and everything that is
missing is reported at once, with the file or the flag to set it in.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ul2 import gin_checks, gin_config, gin_origins, is_ours
from ul2.config_entries import ORIGINS, origins_text, traced
from ul2.data.loader import Loader
from ul2.data.run_data import RunData
from ul2.data.task_mixture import AUTO
from ul2.denoising.mixture import Mixture
from ul2.evaluation import in_training
from ul2.evaluation.decoded_metrics import TASK_METRIC
from ul2.gin_config import Bindings, ConfigError
from ul2.inference.modes import misfit
from ul2.recipe import Recipe
from ul2.run_files import CONFIG
from ul2.starting import Start, check_start, open_start, seek_start
from ul2.training import loop, run_directory
from ul2.training.best import TEACHER_FORCED
from ul2.training.mode_search import ModeSearch
from ul2.training.run import Programs, Run
from ul2.training.state import define_model
from ul2.vocab import Vocab

# Values for macros that only training reads.
NOT_NEEDED_WITHOUT_TRAINING: Final[Bindings] = (
    ("MODEL_DIR", "runs/unnamed"),
    ("TOTAL_STEPS", "1000000"),
)

# Examples that are tokenized to be looked at.
_SCRATCH: Final = "ul2-examples-"
_DEFAULT_OBJECTIVE: Final = "configs/objectives/ul2.gin"


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
    gin_checks.take_texts()
    problems += gin_checks.problems()
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
        recipe.param_optimizer(recipe.schedule, model.param_axes)
    return gin_config.operative_text()


def make_mesh(recipe: Recipe) -> Mesh:
    """Returns the mesh of a run, on the devices that are there.

    Raises:
        ValueError: MESH does not fit them, or the model's config is wrong.
    """
    with gin_config.plain_errors():
        return recipe.make_mesh()


def open_data(
    recipe: Recipe, mesh: Mesh, start: Start, scratch: str | Path | None = None
) -> RunData:
    """Opens what a run learns from; the first process tokenizes what is not yet.

    Args:
        recipe: the run, with its model.
        mesh: what batches are laid out for.
        start: of the run.
        scratch: where tokenized examples go that are not there yet, instead of where
            they are kept.

    Raises:
        ValueError: it is missing or damaged.
    """
    if jax.process_count() == 1:
        return recipe.open_data(mesh, start.tokenizer, scratch=scratch)
    data = None
    try:
        if jax.process_index() == 0:
            data = recipe.open_data(mesh, start.tokenizer, scratch=scratch)
    finally:  # What is wrong for the first is said by all, instead of waited for.
        multihost_utils.sync_global_devices("ul2 the data are there")
    return data or recipe.open_data(mesh, start.tokenizer, scratch=scratch)


@contextlib.contextmanager
def opened_to_look_at(
    gin_files: Sequence[str], bindings: Bindings
) -> Iterator[RunData]:
    """Opens the data of a config for a person to look at; leaves nothing behind.

    Raises:
        ValueError: something is wrong with it.
    """
    recipe = read(gin_files, bindings, NOT_NEEDED_WITHOUT_TRAINING)
    start = open_start(recipe)
    recipe = recipe.with_model(start.model)
    mesh = make_mesh(recipe)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder:
        data = open_data(recipe, mesh, start, folder)
        yield next(iter(data.candidates().values()), data)


def check(
    gin_files: Sequence[str], bindings: Bindings, *, verify_data: bool = False
) -> dict[str, Any]:
    """Returns what a config will really do, and everything that is wrong with it.

    Goes as far as what is wrong lets it, compiles nothing and writes nothing.

    Args:
        gin_files: as for `read`.
        bindings: as for `read`.
        verify_data: whether to read all data, and compare them with their checksums.

    Returns:
        `errors`, `warnings`, and what the data measure as far as there are any.
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
    start = None
    with _collect(errors):
        start = open_start(recipe)
    if start is None and (recipe.is_of_tasks or recipe.model is None):
        return report
    with _collect(errors), tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder:
        recipe = recipe.with_model(start.model if start else None)
        mesh = make_mesh(recipe)
        data = open_data(recipe, mesh, start or Start(), folder)
        if verify_data:
            data.verify()
        _check_data(recipe, data, start, report)
    return report


def _check_data(
    recipe: Recipe, data: RunData, start: Start | None, report: dict[str, Any]
) -> None:
    """Notes what the data hold, and what is wrong with a run on them."""
    errors = report["errors"]
    config_text = None
    with _collect(errors):
        config_text = exercise(recipe, data.vocab)
    with _collect(errors):
        report |= data.measure().report
        if start is not None:
            report["warnings"] += _mode_warnings(data, start)
        candidates = data.candidates()
        with _collect(errors):
            check_choice(recipe, candidates)
        data = next(iter(candidates.values()), data)
        batches = Loader(data.source("train"))
        if config_text is not None and start is not None:
            with _collect(errors):
                check_start(recipe, config_text, data.vocab, start)
                seek_start(recipe, start, batches)
        data.held_out_batches(recipe.eval_batches)
        in_training.further_batches(recipe, data)


def check_choice(recipe: Recipe, candidates: Mapping[str, RunData]) -> None:
    """Refuses a choice between checkpoints or modes by what nothing measures.

    Raises:
        ValueError: names what can be measured, or what to set.
    """
    settings = recipe.settings
    if candidates and (recipe.eval_batches == 0 or settings.best_metric is None):
        raise ValueError(
            "MODE=auto chooses by an evaluation; set BEST_METRIC, and EVAL_BATCHES to "
            "None or more than 0."
        )
    if candidates and not 0 < recipe.mode_trial_steps < settings.total_steps:
        raise ValueError(
            f"MODE_TRIAL_STEPS={recipe.mode_trial_steps} must be at least 1 and less "
            f"than TOTAL_STEPS={settings.total_steps}."
        )
    metric = recipe.settings.best_metric
    if metric is None or metric in TEACHER_FORCED:
        return
    if not recipe.eval_decode:
        raise ValueError(
            f"BEST_METRIC={metric!r} is not one of {', '.join(TEACHER_FORCED)}; set "
            "EVAL_DECODE=True for the metrics of decoded answers."
        )
    if metric != TASK_METRIC and "/" not in metric:
        raise ValueError(
            f"BEST_METRIC={metric!r} is not one of {', '.join(TEACHER_FORCED)}, "
            f"{TASK_METRIC}, TASK/METRIC."
        )


def _mode_warnings(data: RunData, start: Start) -> list[str]:
    """Returns a line for every mode that the checkpoint was not trained with."""
    if start.origin is None:
        return []
    objective = data.to_json()
    rows = objective.get("tasks", ())
    modes = dict.fromkeys(row["mode"] for row in rows if row["mode"] != AUTO)
    lines = (misfit(start.modes, mode, knob="MODE") for mode in modes)
    return [line for line in lines if line]


@contextlib.contextmanager
def _collect(errors: list[str]) -> Iterator[None]:
    """Notes what is wrong, and goes on; a bug of ours is not noted but raised."""
    try:
        yield
    except ConfigError as error:
        errors += [one for one in error.problems if one not in errors]
    except ValueError as error:
        if not is_ours(error):
            raise
        if str(error) not in errors:
            errors.append(str(error))


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
    problems += gin_checks.unread_macros(allowed=dict(lengths))
    problems += gin_checks.of_wrong_type() + gin_checks.circular_macros()
    if problems:
        raise ConfigError(problems)
    macros = gin_config.macro_values()
    mixture: Mixture = gin_config.recipe_bindings()["mixture"].scoped_configurable_fn()
    fits = mixture.fit_lengths(
        macros["INPUTS_LENGTH"],
        macros["TARGETS_LENGTH"],
        [0] * len(mixture.denoisers),
        None,
    )
    return max(mixture.sentinels_needed(fits))


def train(recipe: Recipe, *, show_progress: bool = True) -> loop.TrainSummary:
    """Trains, or goes on training; see `ul2.training.loop`.

    Where the mode of a task is to be found, trials come first; see
    `ul2.training.mode_search`.

    Raises:
        ValueError: something in the recipe is wrong; nothing was written.
    """
    start = open_start(recipe)
    recipe = recipe.with_model(start.model)
    mesh = make_mesh(recipe)
    check_choice(recipe, {})
    data = open_data(recipe, mesh, start)
    check_choice(recipe, data.candidates())
    config_text = exercise(recipe, data.vocab)
    check_start(recipe, config_text, data.vocab, start)
    parts = _Parts(recipe, mesh, start, data, config_text, show_progress)
    candidates = data.candidates()
    if candidates:
        return _search(parts, candidates)
    run = parts.make(data, recipe.model_dir)
    seek_start(recipe, start, run.batches)
    with run_directory.claimed(recipe.model_dir):
        parts.begin(recipe.model_dir)
        return loop.train(run, recipe.settings)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of a run that are the same under every mode."""

    recipe: Recipe
    mesh: Mesh
    start: Start
    data: RunData
    config_text: str
    show_progress: bool

    def make(self, data: RunData, model_dir: str | Path) -> Run:
        """Returns the run on some data.

        Raises:
            ValueError: the data do not fit.
        """
        recipe, vocab = self.recipe, self.data.vocab
        return Run(
            model_dir=model_dir,
            make_model=recipe.make_model(vocab),
            optimizer=recipe.param_optimizer,
            schedule=recipe.schedule,
            mesh=self.mesh,
            batches=Loader(data.source("train")),
            denoiser_names=data.names,
            vocab=vocab,
            config_text=self.config_text,
            eval_batches=data.held_out_batches(recipe.eval_batches),
            mixture=data.to_json(),
            model=recipe.describe_model(vocab),
            origin=self.start.origin,
            keep_optimizer=recipe.keeps_optimizer,
            show_progress=self.show_progress,
            score_params=in_training.scorer(
                recipe, data, self.start.tokenizer, self.mesh
            ),
            **in_training.further_batches(recipe, data),
        )

    def begin(self, model_dir: str | Path) -> None:
        """Writes what a run keeps beside its checkpoints; says what is worth knowing.

        Raises:
            ValueError: the directory cannot be written to.
        """
        config = self.config_text.encode()
        origins = origins_text(self.config_text, traced(gin_origins.entries()))
        run_directory.keep(model_dir, CONFIG, config)
        run_directory.keep(model_dir, ORIGINS, origins.encode())
        run_directory.keep(model_dir, run_directory.TOKENIZER, self.data.tokenizer)
        run_directory.check_shared(model_dir)
        for line in [*self.data.warnings(), *_mode_warnings(self.data, self.start)]:
            logging.warning("%s.", line)


def _search(parts: _Parts, candidates: Mapping[str, RunData]) -> loop.TrainSummary:
    """Finds the mode by trials, and goes on in the best.

    Raises:
        ValueError: nothing measures which is best, or a trial is of another run.
    """
    recipe, settings = parts.recipe, parts.recipe.settings
    assert settings.best_metric is not None
    search = ModeSearch(recipe.model_dir, recipe.mode_trial_steps, settings.best_metric)
    for name in candidates:
        run_directory.check_same_run(search.trial_dir(name), parts.config_text)

    def trial(name: str) -> Run:
        run_directory.keep(search.trial_dir(name), CONFIG, parts.config_text.encode())
        run = parts.make(candidates[name], search.trial_dir(name))
        return dataclasses.replace(run, label=f"mode {name}")

    some = search.chosen or next(iter(candidates))
    run = parts.make(candidates[some], recipe.model_dir)
    seek_start(recipe, parts.start, run.batches)
    with run_directory.claimed(recipe.model_dir):
        parts.begin(recipe.model_dir)
        compiled = loop.step_settings(settings, len(run.denoiser_names))
        programs = Programs(run, compiled)
        trials = {name: functools.partial(trial, name) for name in candidates}
        stopped = search.run(trials, settings, programs)
        if stopped is None:
            run = parts.make(candidates[str(search.chosen)], recipe.model_dir)
            stopped = loop.train(run, settings, programs=programs)
    return dataclasses.replace(stopped, modes=search.report)
