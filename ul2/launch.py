"""Gin files to runs: the only module that imports gin.

A run is a `Recipe`: any model x any objective x any data x any mesh, each bound by one
gin file, none knowing about the others. Reading one is strict, because gin is not: a
binding that nothing reads is refused instead of ignored, and everything that is
missing is reported at once, with the file or the flag to set it in.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import os
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import gin

from ul2 import inspection, is_ours
from ul2.data.loader import Loader, Source
from ul2.decoding.answers import answer
from ul2.denoising.mixture import Mixture
from ul2.recipe import Recipe
from ul2.sharding.mesh import make_mesh
from ul2.tasks.tokenizer import open_with_vocab
from ul2.training import checkpoints, loop, run_directory
from ul2.training.state import define_model
from ul2.vocab import Vocab

Bindings = Sequence[tuple[str, str]]

# Values for macros that only training reads.
NOT_NEEDED_WITHOUT_TRAINING: Final[Bindings] = (
    ("MODEL_DIR", "runs/unnamed"),
    ("TOTAL_STEPS", "1000000"),
)

_PACKAGE: Final = Path(__file__).resolve().parent
# `configs` lies inside the package in a wheel, beside it in a checkout.
_ROOTS: Final = (_PACKAGE, _PACKAGE.parent)
_WHERE: Final = {
    "model": "add --gin_file=configs/models/NAME.gin",
    "model_config": "add --gin_file=configs/models/NAME.gin",
    "mixture": "add --gin_file=configs/objectives/NAME.gin",
}
_DEFAULT_OBJECTIVE: Final = "configs/objectives/ul2.gin"
_NOTEWORTHY_PADDING: Final = 0.03
_RUN_FILE: Final = "add --gin_file=configs/runs/pretrain.gin"


class ConfigError(ValueError):
    """What is wrong with a configuration, all of it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


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
    problems = _begin(gin_files, bindings)
    problems += _parse([pair for pair in defaults if pair[0] in _undefined_macros()])
    problems += _missing() + _unread_macros() + _of_wrong_type()
    if problems:
        raise ConfigError(problems)
    with _plain_errors():
        recipe: Recipe = gin.get_configurable(Recipe)()
    return recipe


def exercise(recipe: Recipe, vocab: Vocab) -> str:
    """Builds everything once, without memory or compiling, and returns the config.

    Raises:
        ConfigError: bindings that nothing read, all of them.
    """
    with _plain_errors():
        model = define_model(recipe.make_model(vocab))
        recipe.optimizer(recipe.schedule, model.param_axes)
    dead = list(_dead_bindings())
    if dead:
        raise ConfigError(dead)
    text: str = gin.operative_config_str()
    return text


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
) -> None:
    """Refuses a run that cannot begin, or go on.

    The loop refuses most of it too, but by then the run's files would be replaced.

    Args:
        recipe: the run.
        config_text: its operative config.
        vocab: of its data.
        batches: of its data; moved to where the run stopped.

    Raises:
        ValueError: the directory cannot be written to or holds another run, or a
            checkpoint is missing, beyond the last step, or of another vocabulary or
            text.
    """
    run_directory.check_writable(recipe.model_dir)
    run_directory.check_same_run(recipe.model_dir, config_text)
    if not run_directory.has_checkpoint(recipe.model_dir):
        if recipe.initial_checkpoint is not None:
            initial = checkpoints.read_contract(recipe.initial_checkpoint)
            checkpoints.check_model(initial, recipe.describe_model(vocab))
            checkpoints.check_vocab(initial, vocab)
        return
    saved = checkpoints.read_contract(recipe.model_dir)
    if saved.step > recipe.settings.total_steps:
        raise ValueError(
            f"{recipe.model_dir} holds step {saved.step}, beyond TOTAL_STEPS="
            f"{recipe.settings.total_steps}; raise it or choose another MODEL_DIR."
        )
    checkpoints.check_vocab(saved, vocab)
    if saved.data_position is not None:
        batches.seek(saved.data_position)


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
    problems = _begin(gin_files, [*lengths, *bindings])
    if "mixture" not in _bound():
        problems += _begin([_DEFAULT_OBJECTIVE, *gin_files], [*lengths, *bindings])
    problems += _unread_macros(allowed=dict(lengths))
    if problems:
        raise ConfigError(problems)
    macros = _macros()
    mixture: Mixture = _bound()["mixture"].scoped_configurable_fn()
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
    check_start(recipe, config_text, vocab, batches)
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
        initial_checkpoint=recipe.initial_checkpoint,
        show_progress=show_progress,
    )
    return loop.train(run, recipe.settings)


def _find(name: str) -> Path:
    """Returns the gin file of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    for root in (Path(), *_ROOTS):
        if (root / name).is_file():
            return root / name
    known = {
        str(path.relative_to(root))
        for root in _ROOTS
        for path in (root / "configs").rglob("*.gin")
    }
    raise ConfigError([f"no gin file {name!r}{_did_you_mean(name, known)}."])


def _begin(gin_files: Sequence[str], bindings: Bindings) -> list[str]:
    """Forgets the last config, parses this one and returns what is wrong in bindings.

    Raises:
        ConfigError: a file is wrong; whatever comes after it would only add to that.
    """
    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = ["", *map(str, _ROOTS)]
    # Files alone: gin's other reader looks a file up among the Python packages, and
    # fails at `configs/` wherever that is on the path.
    gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
    for name in gin_files:
        path = _find(name)
        try:
            gin.parse_config_file(str(path))
        # gin passes on whatever an imported module or a bad value raises.
        except Exception as error:
            raise ConfigError([_one_line(error)]) from None
    return _parse(bindings)


def _parse(bindings: Bindings) -> list[str]:
    """Parses bindings one by one, and returns what is wrong with any."""
    problems = []
    for name, value in bindings:
        try:
            gin.parse_config(f"{name} = {_literal(value)}")
        except Exception as error:
            problems.append(f"--gin.{name}={value}: {_one_line(error)}")
    return problems


def _literal(value: str) -> str:
    """Returns a gin value; what is no literal, reference or macro is a string."""
    if value.startswith(("@", "%")):
        return value
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return repr(os.path.expanduser(value))
    return value


def _macros() -> dict[str, Any]:
    """Returns the macros that are set."""
    return {
        scope: values["value"]
        for (scope, selector), values in gin.config._CONFIG.items()
        if selector == "gin.macro"
    }


def _used_macros() -> dict[str, str]:
    """Returns the macros that something refers to, and what does."""
    used = {}
    for (_, selector), values in gin.config._CONFIG.items():
        for name, value in values.items():
            for reference in gin.config.iterate_references(value):
                if reference.selector == "gin.macro":
                    macro = reference.scoped_selector.removesuffix("/gin.macro")
                    used[macro] = f"{selector}.{name}"
    return used


def _undefined_macros() -> set[str]:
    return _used_macros().keys() - _macros().keys()


def _missing() -> list[str]:
    """Returns everything that a recipe needs and nothing sets."""
    used = _used_macros()
    problems = [
        f"{name} is not set (for {used[name]}): add --gin.{name}=VALUE"
        for name in sorted(_undefined_macros())
    ]
    bound = _bound()
    unbound = [f.name for f in dataclasses.fields(Recipe) if f.name not in bound]
    cures: dict[str, list[str]] = {}
    for name in unbound:
        cures.setdefault(_WHERE.get(name, _RUN_FILE), []).append(name)
    return problems + [
        f"no {', '.join(names)}: {cure}" for cure, names in cures.items()
    ]


def _bound() -> dict[str, Any]:
    """Returns what the fields of the recipe are bound to, as far as they are."""
    try:
        bound: dict[str, Any] = gin.get_bindings(Recipe, resolve_references=False)
    except ValueError:  # nothing names the recipe at all
        return {}
    return bound


def _unread_macros(allowed: Collection[str] = ()) -> list[str]:
    """Returns a line for every macro that nothing refers to."""
    used = _used_macros().keys()
    known = {*used, *allowed}
    return [
        f"nothing reads {name}{_did_you_mean(name, known)}: remove it"
        for name in sorted(_macros().keys() - used)
        if name not in allowed
    ]


def _of_wrong_type() -> list[str]:
    """Returns a line for every number, text or flag that is of another type.

    `--gin.CAP_SPANS=no` is a text, and every text counts as true.
    """
    macros = _macros()
    problems = set()
    for (_, selector), values in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        wanted = inspect.signature(gin.config._REGISTRY[selector].wrapped).parameters
        for parameter in values.keys() & wanted.keys():
            name, value = f"{selector}.{parameter}", values[parameter]
            if isinstance(value, gin.config.ConfigurableReference):
                name = value.scoped_selector.removesuffix("/gin.macro")
                value = macros.get(name, value)
            if isinstance(value, gin.config.ConfigurableReference):
                continue  # made by a function, or reported as missing
            kinds = _plain_types(wanted[parameter].annotation)
            if kinds and type(value) not in kinds:
                problems.add(_wrong_type(name, value, kinds))
    return sorted(problems)


def _wrong_type(name: str, value: Any, kinds: Sequence[type]) -> str:
    allowed = " or ".join(kind.__name__ for kind in kinds)
    quoted = f": add --gin.{name}=\"'{value}'\"" if kinds[0] is str else ""
    return f"{name} = {value!r} is no {allowed}{quoted}"


def _plain_types(annotation: Any) -> tuple[type, ...]:
    """Returns the types that an annotation allows, if it names plain ones alone.

    float | None   ->   (float, NoneType, int)
    """
    union = isinstance(annotation, types.UnionType)
    kinds = annotation.__args__ if union else (annotation,)
    if not set(kinds) <= {int, float, str, bool, types.NoneType}:
        return ()
    return (*kinds, int) if float in kinds and int not in kinds else kinds


def _dead_bindings() -> Iterator[str]:
    """Yields a line for every parameter that is bound and was never asked for."""
    read_values = gin.config._OPERATIVE_CONFIG
    for key, values in gin.config._CONFIG.items():
        _, selector = key
        if selector == "gin.macro":
            continue
        for name in values.keys() - read_values.get(key, {}).keys():
            yield f"{selector}.{name} is dead, nothing calls {selector}: remove it"


def _did_you_mean(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Takes off what gin adds to the errors of what it calls.

    Raises:
        ConfigError: a value was refused, or one that has no default was not given.
    """
    try:
        yield
    except ValueError as error:
        if not is_ours(error):
            raise
        raise ConfigError([_one_line(error)]) from None
    except TypeError as error:
        if "required" not in str(error):
            raise
        raise ConfigError([_one_line(error)]) from None


def _one_line(error: BaseException) -> str:
    """Returns an error of gin's, which draws pictures, as one line."""
    text = str(error) or type(error).__name__
    for picture in ("In bindings string line", "In call to configurable"):
        text = text.split(picture)[0]
    return " ".join(line.strip(" ^") for line in text.splitlines() if line.strip(" ^"))
