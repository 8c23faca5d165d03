"""`ul2 eval`: trained models to scores."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ul2.cli.command import (
    add_command,
    add_gin_files,
    add_import_module,
    check_at_least,
    check_can_write,
    import_modules,
    make_console,
    say,
)
from ul2.cli.model import (
    add_decoding_flags,
    add_dtype,
    add_model_flags,
    opening_options,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ul2.denoising.mixture import Mixture
    from ul2.evaluation.candidates import Candidate
    from ul2.evaluation.held_out import HeldOutText
    from ul2.evaluation.prediction import Model
    from ul2.evaluation.settings import EvaluationSettings
    from ul2.tasks.text_task import TextTask

_MODES: Final = ("R", "S", "X", "none")
_MODEL_OPTIONS: Final = ("dtype", "mode_convention", "activation", "vocab")


def add(commands: Any) -> None:
    """Adds the command and its flags."""
    text = "Score checkpoints on tasks and on held-out text, in any mode."
    command = add_command(commands, "eval", _run, text)
    _add_what(command)
    add_import_module(command)
    _add_how(command)
    _add_decoding(command)
    _add_text(command)
    add_gin_files(command)


def _add_what(command: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is evaluated on what."""
    group = command.add_argument_group("what")
    group.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="DIR",
        help="a run, a step of it, a T5X or Hugging Face directory; several allowed",
    )
    group.add_argument(
        "--step",
        metavar="N,N",
        help="steps of each --checkpoint, `all` or `best`; else the newest",
    )
    add_model_flags(group)
    add_dtype(group)
    group.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help="a task or a mixture of tasks; several allowed",
    )
    group.add_argument(
        "--mode",
        metavar="MODE",
        help="R, S, X, none, several with commas, or all four: `all`; text knows "
        "`own`, too. Tasks: none unless given; text: own",
    )
    group.add_argument(
        "--split", default="validation", help="train, validation or test"
    )
    group.add_argument("--limit", type=int, help="the first so many examples of a task")
    group.add_argument("--data_dir", metavar="DIR", help="where the data sets lie")
    group.add_argument(
        "--reference",
        metavar="DIR",
        help="one of the checkpoints, or the --out of another evaluation: report the "
        "normalised relative gain over it",
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        help="results and predictions; goes on after a kill",
    )


def _add_how(command: argparse.ArgumentParser) -> None:
    """Adds the flags that say how examples become predictions."""
    group = command.add_argument_group("how")
    group.add_argument(
        "--method",
        default="auto",
        help="generate, rank (the likeliest choice), teacher_forced, or auto: rank "
        "where every example has choices",
    )
    group.add_argument(
        "--shots", type=int, default=0, metavar="K", help="exemplars per example"
    )
    group.add_argument(
        "--num_samples",
        type=int,
        nargs="?",
        const=40,
        default=0,
        metavar="N",
        help="self-consistency: N outputs vote (40 if only the flag is given), drawn "
        "at temperature 0.5 among the 40 likeliest tokens unless set otherwise",
    )
    group.add_argument(
        "--calculator",
        action="store_true",
        help="put the equations of an output right before its answer is read",
    )
    group.add_argument(
        "--infill",
        action="store_true",
        help="end inputs with a blank that the output fills, as in pre-training",
    )
    group.add_argument(
        "--forbid_sentinels",
        action="store_true",
        help="let no output hold a sentinel, instead of counting those that do",
    )
    group.add_argument(
        "--choice_score",
        default="sum",
        help="rank by the sum of log probabilities, per_token or per_character",
    )
    group.add_argument(
        "--road", default="auto", help="direct, seqio (its Evaluator), or auto"
    )
    group.add_argument("--seed", type=int, default=0, help="of exemplars and samples")
    group.add_argument(
        "--inputs_length", type=int, help="longest inputs in tokens; else the task's"
    )
    group.add_argument(
        "--batch_size", type=int, default=32, help="sequences at once on all devices"
    )
    group.add_argument("--mesh", default="auto", help="as MESH in training")


def _add_decoding(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `DecodingSettings`."""
    group = command.add_argument_group("decoding")
    group.add_argument("--max_tokens", type=int, help="longest output; else the task's")
    add_decoding_flags(group)


def _add_text(command: argparse.ArgumentParser) -> None:
    """Adds the flags of held-out text."""
    group = command.add_argument_group(
        "held-out text",
        "Loss per denoiser of the run's own objective, lengths and batches, or those "
        "of --gin_file=configs/objectives/NAME.gin.",
    )
    group.add_argument("--data", metavar="STORE", help="a token store")
    group.add_argument("--text_inputs_length", type=int)
    group.add_argument("--text_targets_length", type=int)
    group.add_argument("--text_batch_size", type=int)
    group.add_argument("--text_batches", type=int)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from ul2.evaluation import run as evaluation
    from ul2.evaluation.candidates import find_candidates
    from ul2.evaluation.evaluator import TaskEvaluator
    from ul2.evaluation.results import Results
    from ul2.evaluation.summary import check_reference, print_table, summarize
    from ul2.sharding.mesh import make_mesh
    from ul2.tasks.examples import read_examples

    settings = _settings(options)
    import_modules(options)
    tasks, mixtures = _find_tasks(options.task)
    modes, text_modes = _find_modes(options.mode)
    if not tasks and not options.data:
        raise ValueError("nothing to evaluate on; add --task NAME or --data STORE.")
    if options.out:
        check_can_write("out", str(Path(options.out) / "results.json"))
    candidates = find_candidates(options.checkpoint, _steps(options.step))
    if options.reference:
        check_reference(options.reference, candidates)
    mesh = make_mesh(options.mesh)
    plan = evaluation.Plan(
        candidates=candidates,
        tasks=tasks,
        modes=modes,
        text_modes=text_modes,
        settings=settings,
        text=_text(options) if options.data else None,
        mesh=mesh,
        model_options={name: vars(options)[name] for name in _MODEL_OPTIONS},
    )
    results = Results(Path(options.out) if options.out else None)
    evaluator = TaskEvaluator(settings, mesh, read_examples, tasks)
    found = evaluation.run(plan, _opener(options, mesh), evaluator, results, say)
    summary = summarize(found, mixtures, options.reference)
    results.write(summary)
    print_table(found, summary, make_console(options))
    return {**summary, "results": found}


def _settings(options: argparse.Namespace) -> "EvaluationSettings":
    """Returns how tasks are evaluated."""
    import dataclasses

    from ul2.decoding.settings import DecodingSettings
    from ul2.evaluation.settings import EvaluationSettings

    given = vars(options)
    names = {field.name for field in dataclasses.fields(DecodingSettings)}
    # `EvaluationSettings` has the longest output and the seed.
    decoding = {name: given[name] for name in names & set(given) if name not in _BOTH}
    names = {field.name for field in dataclasses.fields(EvaluationSettings)}
    ours = {name: given[name] for name in names & set(given)}
    return EvaluationSettings(**ours, decoding=DecodingSettings(**decoding))


_BOTH: Final = ("max_tokens", "seed")


def _find_tasks(
    names: Sequence[str],
) -> tuple[list["TextTask"], dict[str, list[str]]]:
    """Returns the tasks, each once, and the tasks of each mixture."""
    from ul2.tasks import registry

    mixtures = {
        name: [task for task, _ in registry.find_mixture(name)]
        for name in names
        if name in registry.MIXTURES
    }
    flat = [task for name in names for task in mixtures.get(name, [name])]
    return [registry.find(name) for name in dict.fromkeys(flat)], mixtures


def _find_modes(text: str | None) -> tuple[list[str | None], list[str | None]]:
    """Returns the modes of tasks, and of text.

    Raises:
        ValueError: a mode is unknown.
    """
    from ul2.evaluation.held_out import OWN_MODES
    from ul2.vocab import mode_meant

    if text is None:
        return [None], [OWN_MODES]
    names = [*_MODES] if text == "all" else text.split(",")
    for name in names:
        if name not in (*_MODES, OWN_MODES):
            raise ValueError(
                f"--mode={name} is not one of {', '.join(_MODES)}, {OWN_MODES}, all"
                f"{mode_meant(name)}."
            )
    modes = [None if name == "none" else name for name in dict.fromkeys(names)]
    own = [OWN_MODES] if text == "all" else []
    return [mode for mode in modes if mode != OWN_MODES], [*own, *modes]


def _steps(text: str | None) -> list[int] | str | None:
    """Reads `--step`: 1000,2000 or all or best."""
    if text in (None, "all", "best"):
        return text
    steps = text.split(",")
    if not all(step.isdecimal() for step in steps):
        raise ValueError(f"--step={text}: write numbers with commas, all or best.")
    return [int(step) for step in steps]


def _text(options: argparse.Namespace) -> "Callable[[Candidate], HeldOutText]":
    """Returns what masks the held-out text of each candidate."""
    from ul2.evaluation.held_out import text_of_run
    from ul2.training.checkpoints import read_contract

    names = ("inputs_length", "targets_length", "batch_size", "batches")
    given = {name: getattr(options, f"text_{name}") for name in names}
    for name, value in given.items():
        check_at_least(1, f"text_{name}", value)
    mixture = _read_mixture(options) if options.gin_file else None

    def text(candidate: "Candidate") -> "HeldOutText":
        contract = None
        if candidate.is_run:
            contract = read_contract(candidate.path, candidate.step)
        return text_of_run(options.data, contract, mixture, given, options.split)

    return text


def _read_mixture(options: argparse.Namespace) -> "Mixture":
    """Returns the objective of the gin files.

    Raises:
        ValueError: there is none, or a binding is wrong.
    """
    from ul2 import gin_checks, gin_config
    from ul2.denoising.mixture import Mixture

    problems = gin_config.begin(options.gin_file, options.bindings)
    problems += gin_checks.unread_macros()
    if problems:
        raise gin_config.ConfigError(problems)
    bound = gin_config.recipe_bindings().get("mixture")
    mixture = None
    if bound is not None:
        with gin_config.plain_errors():
            mixture = bound.scoped_configurable_fn()
    if not isinstance(mixture, Mixture):
        raise ValueError(
            f"--gin_file={','.join(options.gin_file)} holds no objective; add "
            "--gin_file=configs/objectives/NAME.gin."
        )
    return mixture


def _opener(
    options: argparse.Namespace, mesh: "Mesh"
) -> "Callable[[Candidate], Model]":
    """Returns what loads a candidate."""
    from ul2.inference.opening import open_model

    of_each = max(1, options.num_beams, options.num_samples)

    def open_candidate(candidate: "Candidate") -> "Model":
        model = open_model(
            candidate.path,
            step=candidate.step,
            mesh=mesh,
            dtype=options.dtype,
            **opening_options(options),
        )
        at_once = max(1, options.batch_size // of_each)
        batched: Model = dataclasses.replace(model, batch_size=at_once)
        return batched

    return open_candidate
