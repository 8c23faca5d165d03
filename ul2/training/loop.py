"""The training loop, in the order in which things must happen.

    init -> restore (state and data both move, or neither) -> for each step:
        place the next batch, dispatch the update, read the metrics of the update
        before, evaluate, save; the best by an evaluation is saved at once, and kept

`step` counts updates done. The loop makes exactly `total_steps` updates, and a
checkpoint is named after the update it follows. Nothing here knows about
configuration files, tokenizers or the shape of a model.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES, Rules
from ul2.training.best import EVALUATIONS, BestRecord
from ul2.training.checkpoints import Batches, Contract
from ul2.training.evaluate import evaluate
from ul2.training.losses import AUTO
from ul2.training.metrics import Clock, Metrics, multiplied_params
from ul2.training.optimizers import Optimizer
from ul2.training.origin import Origin
from ul2.training.preemption import Preemption
from ul2.training.run_checkpoints import Checkpoints
from ul2.training.run_directory import foreign_to
from ul2.training.state import (
    MakeModel,
    Params,
    TrainState,
    abstract_state,
    define_model,
    float32_of,
    init_state,
    state_of,
    with_shardings,
)
from ul2.training.step import (
    LOSS_NORMALIZERS,
    EvalStep,
    StepSettings,
    TrainStep,
    make_eval_step,
    make_train_step,
)
from ul2.training.watchdog import DATA, EVALUATION, SAVE, Watchdog
from ul2.training.writers import JsonLines, ProgressLine, TensorBoard, Writer
from ul2.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long to train, and what to do on the way.

    Attributes:
        total_steps: updates of the whole run, counted over all its restarts.
        seed: of the parameters and of dropout.
        microbatches: parts of a batch that run one after another; they need memory
            for one of them only and give the same update.
        z_loss: factor of the squared log normalizer; 0 switches it off.
        loss_normalizer: `target_tokens` or `sum`.
        loss_chunk: columns whose logits exist at once; `auto` for as many as half a
            gigabyte of them on a device allows.
        log_every_steps: updates per line of metrics.
        eval_every_steps: updates between evaluations; 0 evaluates only at the end.
        save_every_steps: updates between checkpoints; 0 saves only at the end.
        keep_checkpoints: how many of the newest to keep.
        best_metric: of the evaluations; the checkpoint that is best by it is kept
            too. None for no such choice.
        stall_seconds: how long nothing may move before the run says so; it ends when
            as much has passed again. 0 waits forever.
        save_retry_seconds: how long saving may fail before the run ends; 0 ends it at
            once.
    """

    total_steps: int
    seed: int
    microbatches: int = 1
    z_loss: float = 1e-4
    loss_normalizer: str = "target_tokens"
    loss_chunk: int | str = AUTO
    log_every_steps: int = 10
    eval_every_steps: int = 1000
    save_every_steps: int = 1000
    keep_checkpoints: int = 3
    best_metric: str | None = None
    stall_seconds: float = 1800.0
    save_retry_seconds: float = 1200.0

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "microbatches",
            "log_every_steps",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1; set "
                    f"{name.upper()}."
                )
        for name, zero in (
            ("stall_seconds", "wait forever"),
            ("save_retry_seconds", "end at once"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be 0 ({zero}) or more; set "
                    f"{name.upper()}."
                )
        if self.loss_chunk != AUTO and not (
            isinstance(self.loss_chunk, int) and self.loss_chunk >= 1
        ):
            raise ValueError(
                f"loss_chunk={self.loss_chunk!r} must be {AUTO}, or at least 1; set "
                "LOSS_CHUNK."
            )
        if self.loss_normalizer not in LOSS_NORMALIZERS:
            raise ValueError(
                f"loss_normalizer={self.loss_normalizer!r} is not one of "
                f"{', '.join(LOSS_NORMALIZERS)}; set LOSS_NORMALIZER."
            )


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """How a run ended.

    Attributes:
        step: updates done.
        metrics: the last measurement.
        evaluation: the last evaluation; empty without held-out batches.
        preempted: a signal ended the run before `total_steps`.
        best: the metric, and the step of the best checkpoint and its value; None
            where no metric chooses.
        modes: what the trials of the modes measured; None where none were made.
    """

    step: int
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    preempted: bool
    best: dict[str, Any] | None = None
    modes: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run is made of but its settings.

    Attributes:
        model_dir: where checkpoints, metrics and TensorBoard events go.
        make_model: `make_model(rngs=...)`; called inside a compiled function.
        optimizer: `optimizer(schedule, param_axes)`, e.g. `adafactor` itself.
        schedule: learning rate as a function of updates done.
        mesh: the devices.
        batches: this host's rows, without end.
        denoiser_names: index i names `denoiser_ids == i`.
        vocab: saved with, and compared against, every checkpoint.
        config_text: the operative configuration, saved with every checkpoint.
        eval_batches: makes the same held-out batches each time; None for none.
        mixture: the denoisers as JSON values, saved with every checkpoint.
        model: what `make_model` makes, as `models.architectures.to_json` writes it;
            saved with every checkpoint. None for a model that is not one of those.
        origin: what a new run starts from; None for random parameters.
        keep_optimizer: go on with the origin's optimizer too.
        rules: logical axis to mesh axis.
        show_progress: tell a person how it goes.
        label: what a person is told it is, where there are several.
        score_params: measures parameters in further ways when they are evaluated,
            e.g. decodes and scores the answers.
    """

    model_dir: str | Path
    make_model: MakeModel
    optimizer: Optimizer
    schedule: optax.Schedule
    mesh: Mesh
    batches: Batches
    denoiser_names: Sequence[str]
    vocab: Vocab
    config_text: str
    eval_batches: Callable[[], Iterable[Batch]] | None = None
    mixture: Any = None
    model: dict[str, Any] | None = None
    origin: Origin | None = None
    keep_optimizer: bool = False
    rules: Rules = dataclasses.field(default_factory=lambda: DEFAULT_RULES)
    show_progress: bool = True
    label: str = ""
    score_params: Callable[[Params], Mapping[str, float]] | None = None


class Programs:
    """The model and what is compiled of it; runs that differ in data alone share it.

    Args:
        run: any of those runs.
        settings: of all of them.
    """

    def __init__(self, run: Run, settings: TrainSettings) -> None:
        self.model = define_model(run.make_model)
        self.optimizer = run.optimizer(run.schedule, self.model.param_axes)
        self.abstract, self.shardings = abstract_state(
            run.make_model, self.optimizer, run.mesh, run.rules
        )
        self._run, self._settings = run, settings
        self.train_step = functools.cache(self._make_train_step)

    def _make_train_step(self, prior_steps: int) -> TrainStep:
        """Returns the update of an optimizer that had done so many before."""
        run = self._run
        return make_train_step(
            self.model,
            self.optimizer,
            _shifted(run.schedule, prior_steps),
            run.mesh,
            run.rules,
            state_shardings=self.shardings,
            settings=step_settings(self._settings, len(run.denoiser_names)),
        )

    @functools.cached_property
    def eval_step(self) -> EvalStep:
        """The evaluation of one batch."""
        run = self._run
        return make_eval_step(
            self.model,
            run.mesh,
            run.rules,
            param_shardings=self.shardings.params,
            num_denoisers=len(run.denoiser_names),
            vocab_size=run.vocab.padded_size,
            loss_chunk=self._settings.loss_chunk,
        )


def train(
    run: Run,
    settings: TrainSettings,
    *,
    programs: Programs | None = None,
    clock: Clock = time.perf_counter,
) -> TrainSummary:
    """Trains until `total_steps` updates are done, or a signal asks to stop.

    Args:
        run: what is trained.
        settings: how long, and what to do on the way.
        programs: of an earlier run that differs in its data, its directory and its
            number of steps alone; nothing is compiled again.
        clock: tells the time.

    Raises:
        ValueError: the batch does not fit the mesh, or the checkpoint the run.
        FloatingPointError: the loss is no longer finite.
        StorageError: nothing could be saved for too long.
    """
    programs = programs or Programs(run, settings)
    with Watchdog(settings.stall_seconds) as watchdog:
        return _train(run, settings, programs, watchdog, clock)


def _train(
    run: Run,
    settings: TrainSettings,
    programs: Programs,
    watchdog: Watchdog,
    clock: Clock,
) -> TrainSummary:
    """Does what `train` says, and tells the watchdog what it is doing."""
    best: BestRecord | None = None
    checkpoints = Checkpoints(
        run.model_dir,
        keep=settings.keep_checkpoints,
        contract=Contract(0, None, run.vocab, run.config_text, run.mixture, run.model),
        best=lambda: best.step if best else None,
        is_foreign=foreign_to(run.config_text),
        retry_seconds=settings.save_retry_seconds,
    )
    state, prior_steps = _first_state(run, settings, programs, checkpoints)
    first_step = int(state.step)
    watchdog.moved(first_step)
    if settings.best_metric is not None and run.eval_batches is not None:
        best = BestRecord(run.model_dir, settings.best_metric, first_step)
    _tell_prior_steps(run, settings, prior_steps)
    train_step = programs.train_step(prior_steps)
    evaluation = _Evaluation(run, programs, first_step)
    metrics = Metrics(
        denoiser_names=run.denoiser_names,
        log_every_steps=settings.log_every_steps,
        multiplied=multiplied_params(programs.model),
        writers=_train_writers(run, settings, first_step),
        saved_step=checkpoints.latest_step,
        clock=clock,
    )

    def is_best(step: int) -> bool:
        """Whether this very state has been scored, and better than all before."""
        scores = evaluation.last
        return (
            best is not None and scores.get("step") == step and best.is_better(scores)
        )

    def save(step: int, state: TrainState) -> None:
        # First, so that the lines of a saved step are never missing.
        metrics.flush()
        then = best.propose(evaluation.last) if best and is_best(step) else None
        with watchdog.phase(SAVE), metrics.paused():
            checkpoints.save(
                step, state, run.batches.position(), prior_steps=prior_steps, then=then
            )

    def is_saved() -> bool:
        with watchdog.phase(SAVE):
            return checkpoints.wait()

    with (
        contextlib.closing(checkpoints),
        contextlib.closing(evaluation),
        contextlib.closing(metrics),
        Preemption(run.mesh) as preemption,
    ):
        step = first_step
        while step < settings.total_steps and not preemption.requested():
            with watchdog.phase(DATA):
                rows = metrics.wait_for(run.batches.__next__)
            batch = place(rows, run.mesh, run.rules, settings.microbatches)
            state, sums = train_step(state, batch)
            step += 1
            watchdog.moved(step)
            metrics.record(step, sums)
            if _is_due(step, settings.eval_every_steps, settings.total_steps):
                with watchdog.phase(EVALUATION), metrics.paused():
                    evaluation.run(step, state.params)
            # Asked of all processes, after every update.
            must_save = checkpoints.must_save(step) or is_best(step)
            must_save |= _is_due(step, settings.save_every_steps, settings.total_steps)
            if must_save:
                save(step, state)
        preempted = step < settings.total_steps
        if preempted:
            save(step, state)
            logging.warning("stopped by a signal; saving step %d.", step)
        while not is_saved():
            save(step, state)
    chosen = best.to_json() if best else None
    return TrainSummary(step, metrics.last, evaluation.last, preempted, chosen)


def _tell_prior_steps(run: Run, settings: TrainSettings, prior_steps: int) -> None:
    """Warns that the schedule does not begin at its beginning."""
    if not prior_steps:
        return
    rates = [float(run.schedule(prior_steps + n)) for n in (0, settings.total_steps)]
    logging.warning(
        "the optimizer had done %d updates when this run began; the learning rate "
        "goes from %.3g to %.3g over its %d updates.",
        prior_steps,
        *rates,
        settings.total_steps,
    )


def _is_due(step: int, every_steps: int, total_steps: int) -> bool:
    """Returns whether to act after update `step`: every so often, and at the end."""
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)


def _first_state(
    run: Run, settings: TrainSettings, programs: Programs, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """Returns the state to start from; moves the batches if need be.

    In order: the newest checkpoint of this run; a trained model; fresh random
    parameters.

    Returns:
        The state, and the updates its optimizer did before this run.
    """
    found = checkpoints.latest_step()
    if found is not None and found > settings.total_steps:
        raise ValueError(
            f"{run.model_dir} holds step {found}, beyond TOTAL_STEPS="
            f"{settings.total_steps}; raise it or choose another MODEL_DIR."
        )
    if found is not None:
        wanted = with_shardings(programs.abstract, programs.shardings)
        return checkpoints.restore_latest(wanted, run.batches)
    if run.origin is None:
        state = init_state(
            run.make_model, programs.optimizer, run.mesh, run.rules, seed=settings.seed
        )
        return state, 0
    return _state_of_origin(run.origin, run, programs)


def _state_of_origin(
    origin: Origin, run: Run, programs: Programs
) -> tuple[TrainState, int]:
    """Returns the same as `_first_state`, for a run that starts from a trained model.

    Raises:
        ValueError: it is another model, vocabulary or optimizer.
    """
    origin.check(run.vocab, run.model)
    wanted = with_shardings(programs.abstract, programs.shardings)
    kept, prior_steps = None, 0
    if run.keep_optimizer:
        origin.check_optimizer(programs.abstract.opt_state)
        kept, prior_steps = origin.read_opt_state(wanted), origin.steps
    # The bits that the parameters may not have are for the optimizer's master copy.
    params = origin.read_params(float32_of(wanted.params))
    return state_of(params, kept, programs.optimizer, wanted), prior_steps


def _shifted(schedule: optax.Schedule, prior_steps: int) -> optax.Schedule:
    """Returns the schedule as a function of this run's updates."""
    return (lambda step: schedule(step + prior_steps)) if prior_steps else schedule


def step_settings(settings: TrainSettings, num_denoisers: int) -> StepSettings:
    """Picks what is compiled into the step."""
    return StepSettings(
        seed=settings.seed,
        num_denoisers=num_denoisers,
        microbatches=settings.microbatches,
        loss_normalizer=settings.loss_normalizer,
        z_loss=settings.z_loss,
        loss_chunk=settings.loss_chunk,
    )


def _train_writers(
    run: Run, settings: TrainSettings, restored_step: int
) -> list[Writer]:
    """Returns where the measurements of training go; the first host alone writes."""
    if jax.process_index() != 0:
        return []
    model_dir = Path(run.model_dir)
    writers: list[Writer] = [
        JsonLines(model_dir / "metrics.jsonl", restored_step),
        TensorBoard(model_dir / "tensorboard", "train", restored_step),
    ]
    if run.show_progress:
        steps = settings.total_steps
        writers.append(ProgressLine(steps, restored_step, label=run.label))
    return writers


class _Evaluation:
    """The held-out batches, the compiled step that scores them, and its writers."""

    def __init__(self, run: Run, programs: Programs, restored_step: int) -> None:
        self._run = run
        self._step = programs.eval_step
        self._writers: list[Writer] = []
        if run.eval_batches is not None and jax.process_index() == 0:
            model_dir = Path(run.model_dir)
            self._writers = [
                JsonLines(model_dir / EVALUATIONS, restored_step),
                TensorBoard(model_dir / "tensorboard", "eval", restored_step),
            ]
        self.last: dict[str, Any] = {}

    def run(self, step: int, params: Params) -> None:
        """Scores the held-out batches, if there are any."""
        if self._run.eval_batches is None:
            return
        scores = evaluate(
            self._step,
            params,
            self._run.eval_batches(),
            lambda rows: place(rows, self._run.mesh, self._run.rules),
            self._run.denoiser_names,
        )
        if self._run.score_params is not None:
            scores |= self._run.score_params(params)
        self.last = {"step": step, **scores}
        for writer in self._writers:
            writer.write(self.last)

    def close(self) -> None:
        """Closes the writers."""
        for writer in self._writers:
            writer.close()
