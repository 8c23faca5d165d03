"""The training loop, in the order in which things must happen.

    init -> restore (state and data both move, or neither) -> for each step:
        place the next batch, dispatch the update, read the metrics of the update
        before, evaluate, save; the best by an evaluation is saved at once, and kept

A signal ends it after the step at hand, or between two batches of an evaluation, which
is then made when the run goes on.

`step` counts updates done. The loop makes exactly `total_steps` updates, and a
checkpoint is named after the update it follows. Nothing here knows about
configuration files, tokenizers or the shape of a model.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from ul2.batch import Batch
from ul2.run_files import METRICS
from ul2.sharding.placement import place
from ul2.sharding.rules import replicated
from ul2.training.checkpoints import Contract
from ul2.training.diagnosis import Diagnosis
from ul2.training.evaluate import Evaluation, EvaluationStoppedError
from ul2.training.events import Events, PassedBatches
from ul2.training.guard import LOG, Guard, GuardSettings
from ul2.training.history import History
from ul2.training.losses import AUTO
from ul2.training.metrics import Clock, Metrics, multiplied_params
from ul2.training.origin import Origin
from ul2.training.preemption import Preemption
from ul2.training.run import Programs, Run, scorer
from ul2.training.run_checkpoints import Checkpoints
from ul2.training.run_directory import foreign_to
from ul2.training.state import (
    TrainState,
    float32_of,
    init_state,
    state_of,
    with_shardings,
)
from ul2.training.step import (
    LOSS_NORMALIZERS,
    StepSettings,
)
from ul2.training.updates import Reporter, RollBackError, Updates, go_back
from ul2.training.watchdog import DATA, DIAGNOSIS, EVALUATION, SAVE, Watchdog
from ul2.training.writers import ProgressLine, Writer, open_writers


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
        guard: what is done about numbers that are not finite, and about spikes.
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
    guard: GuardSettings = dataclasses.field(default_factory=GuardSettings)

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
        if self.stall_seconds < 0:
            raise ValueError(
                f"stall_seconds={self.stall_seconds} must be 0 (wait forever) or more; "
                "set STALL_SECONDS."
            )
        if self.save_retry_seconds < 0:
            raise ValueError(
                f"save_retry_seconds={self.save_retry_seconds} must be 0 (end at once) "
                "or more; set SAVE_RETRY_SECONDS."
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
        FloatingPointError: an update was bad, and that is to stop the run.
        StorageError: nothing could be saved for too long.
    """
    programs = programs or Programs(
        run, step_settings(settings, len(run.denoiser_names))
    )
    bad: RollBackError | None = None
    start = run.batches.position()
    with Watchdog(settings.stall_seconds) as watchdog:
        while True:
            try:
                return _train(run, settings, programs, watchdog, clock, bad)
            except RollBackError as error:
                bad = error
                # Where there is no checkpoint, to the very beginning.
                run.batches.seek(start)


def _train(
    run: Run,
    settings: TrainSettings,
    programs: Programs,
    watchdog: Watchdog,
    clock: Clock,
    bad: RollBackError | None,
) -> TrainSummary:
    """Does what `train` says, up to a roll-back, and tells the watchdog what it does.

    Args:
        run: what is trained.
        settings: how long, and what to do on the way.
        programs: of the run.
        watchdog: is told what is going on.
        clock: tells the time.
        bad: for what the run goes back to its last checkpoint; None for no reason.
    """
    evaluation: Evaluation | None = None
    history = History(run.model_dir)
    checkpoints = Checkpoints(
        run.model_dir,
        keep=settings.keep_checkpoints,
        contract=Contract(
            step=0,
            data_position=None,
            vocab=run.vocab,
            config_text=run.config_text,
            mixture=run.mixture,
            model=run.model,
        ),
        best=lambda: evaluation.best_step if evaluation else None,
        is_foreign=foreign_to(run.config_text),
        on_save=history.saved,
        retry_seconds=settings.save_retry_seconds,
    )
    state, prior_steps = _first_state(run, settings, programs, checkpoints)
    first_step = int(state.step)
    batches = PassedBatches(run.batches, run.model_dir)
    if bad is not None:
        go_back(bad, batches, first_step, settings.guard)
    watchdog.moved(first_step)
    _tell_prior_steps(run, settings, prior_steps)
    evaluation = Evaluation(
        scorer(run, programs),
        run.model_dir,
        first_step,
        is_due=_is_due(first_step, settings.eval_every_steps, settings.total_steps),
        best_metric=settings.best_metric,
    )
    metrics = Metrics(
        denoiser_names=run.denoiser_names,
        log_every_steps=settings.log_every_steps,
        multiplied=multiplied_params(programs.model),
        writers=_open_writers(run, settings, first_step),
        rollbacks=batches.rollbacks,
        clock=clock,
    )

    events = Events(run.model_dir)

    def diagnose(state: TrainState, batch: Batch) -> Diagnosis:
        with watchdog.phase(DIAGNOSIS):
            return programs.diagnose(state, batch)

    updates = Updates(
        state,
        first_step,
        programs.train_step(prior_steps),
        settings=settings.guard,
        metrics=metrics,
        events=events,
        diagnose=diagnose,
        reporter=Reporter(run.denoiser_names, run.model_dir, checkpoints.finished_step),
    )
    # An update consumes the state that it is given: nobody else may hold it.
    del state
    with (
        history.of_run(lambda: updates.step) as ending,
        Preemption(run.mesh) as preemption,
        contextlib.closing(checkpoints),
        contextlib.closing(evaluation),
        contextlib.closing(metrics),
        contextlib.closing(events),
    ):
        preempted = _Loop(
            settings=settings,
            place=lambda rows: place(rows, run.mesh, run.rules, settings.microbatches),
            prior_steps=prior_steps,
            watchdog=watchdog,
            batches=batches,
            updates=updates,
            evaluation=evaluation,
            checkpoints=checkpoints,
            metrics=metrics,
            preemption=preemption,
        ).run()
        ending.stopped = preempted
    return TrainSummary(
        updates.step,
        metrics.last,
        evaluation.last,
        preempted,
        evaluation.best_to_json(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
    """What takes its turn in a step.

    Attributes:
        settings: how long, and how often what is done.
        place: puts the rows of a batch on the devices.
        prior_steps: updates that the optimizer had done before this run began.
    """

    settings: TrainSettings
    place: Callable[[Batch], Batch]
    prior_steps: int
    watchdog: Watchdog
    batches: PassedBatches
    updates: Updates
    evaluation: Evaluation
    checkpoints: Checkpoints
    metrics: Metrics
    preemption: Preemption

    def run(self) -> bool:
        """Goes on to the end, or until a signal asks to stop.

        Returns:
            Whether one did; either way, all is saved.
        """
        preempted = False
        try:
            if self.evaluation.is_missing:
                self._evaluate_and_save()
            while self.updates.step < self.settings.total_steps and not preempted:
                self._update()
                self._evaluate_and_save()
                step = self.updates.step
                preempted = (
                    step < self.settings.total_steps and self.preemption.requested(step)
                )
        except EvaluationStoppedError:
            preempted = True
        if preempted:
            self.preemption.saving()
            self._save()
            logging.warning("stopped by a signal; saving step %d.", self.updates.step)
        while not self._is_saved():
            self._save()
        return preempted

    def _update(self) -> None:
        """Starts an update with the next batch, and reads the one before."""
        with self.watchdog.phase(DATA):
            rows = self.metrics.wait_for(self.batches.__next__)
        self.metrics.note(*self.batches.jumped)
        batch, position = self.place(rows), self.batches.position()
        self.updates.start(batch, self.batches.read_from, position)
        self.preemption.listen()
        self.watchdog.moved(self.updates.step)
        self.updates.read()

    def _evaluate_and_save(self) -> None:
        """Does what is due after an update."""
        step = self.updates.step
        if self._is_due(self.settings.eval_every_steps):
            self.updates.settle()
            with self.metrics.paused(), self.watchdog.phase(EVALUATION):
                params = self.updates.state.params
                self.evaluation.run(step, params, self.preemption.requested)
        must_save = self.checkpoints.must_save(step)  # asked by all after every update
        if (
            must_save
            or self.evaluation.is_best(step)
            or self._is_due(self.settings.save_every_steps)
        ):
            self._save()

    def _is_due(self, every_steps: int) -> bool:
        return _is_due(self.updates.step, every_steps, self.settings.total_steps)

    def _save(self) -> None:
        # First, so that the lines of a saved step are never missing.
        self.updates.settle()
        self.metrics.flush()
        step = self.updates.step
        is_best = self.evaluation.is_best(step)
        with self.metrics.paused(), self.watchdog.phase(SAVE):
            self.checkpoints.save(
                step,
                self.updates.state,
                self.batches.position(),
                prior_steps=self.prior_steps,
                then=self.evaluation.propose() if is_best else None,
            )

    def _is_saved(self) -> bool:
        with self.watchdog.phase(SAVE):
            return self.checkpoints.wait()


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
    """Returns the state to start from, with a guard; moves the batches if need be."""
    state, prior_steps = _unguarded(run, settings, programs, checkpoints)
    guard = Guard.from_json(state.guard, len(run.denoiser_names))
    return state._replace(guard=guard.placed(replicated(run.mesh))), prior_steps


def _unguarded(
    run: Run, settings: TrainSettings, programs: Programs, checkpoints: Checkpoints
) -> tuple[TrainState, int]:
    """Returns the state to start from, with the guard as it was saved.

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


def step_settings(settings: TrainSettings, num_denoisers: int) -> StepSettings:
    """Picks what is compiled into the step."""
    return StepSettings(
        seed=settings.seed,
        num_denoisers=num_denoisers,
        microbatches=settings.microbatches,
        loss_normalizer=settings.loss_normalizer,
        z_loss=settings.z_loss,
        loss_chunk=settings.loss_chunk,
        spike_threshold=settings.guard.spike_threshold,
        holds_spikes=settings.guard.on_spike != LOG,
    )


def _open_writers(
    run: Run, settings: TrainSettings, restored_step: int
) -> list[Writer]:
    """Returns where the measurements of training go."""
    writers = open_writers(run.model_dir, METRICS, "train", restored_step)
    if writers and run.show_progress:
        steps = settings.total_steps
        writers.append(ProgressLine(steps, restored_step, label=run.label))
    return writers
