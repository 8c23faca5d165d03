"""The training loop, in the order in which things must happen.

    init -> restore (state and data both move, or neither) -> for each step:
        place the next batch, dispatch the update, read the metrics of the update
        before, evaluate, save

`step` counts updates done. The loop makes exactly `total_steps` updates, and a
checkpoint is named after the update it follows. Nothing here knows about
configuration files, tokenizers or the shape of a model.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES, Rules
from ul2.training.checkpoints import (
    Batches,
    Checkpoints,
    Contract,
)
from ul2.training.evaluate import evaluate
from ul2.training.metrics import Clock, Metrics, multiplied_params
from ul2.training.optimizers import Optimizer
from ul2.training.origin import Origin
from ul2.training.preemption import Preemption
from ul2.training.state import (
    MakeModel,
    ModelDef,
    Params,
    TrainState,
    abstract_state,
    define_model,
    init_state,
    state_of,
    with_shardings,
)
from ul2.training.step import (
    LOSS_NORMALIZERS,
    StepSettings,
    make_eval_step,
    make_train_step,
)
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
        loss_chunk: columns whose logits exist at once.
        log_every_steps: updates per line of metrics.
        eval_every_steps: updates between evaluations; 0 evaluates only at the end.
        save_every_steps: updates between checkpoints; 0 saves only at the end.
        keep_checkpoints: how many of the newest to keep.
    """

    total_steps: int
    seed: int
    microbatches: int = 1
    z_loss: float = 1e-4
    loss_normalizer: str = "target_tokens"
    loss_chunk: int = 128
    log_every_steps: int = 10
    eval_every_steps: int = 1000
    save_every_steps: int = 1000
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "microbatches",
            "loss_chunk",
            "log_every_steps",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1; set "
                    f"{name.upper()}."
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
    """

    step: int
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    preempted: bool


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


def train(
    run: Run, settings: TrainSettings, *, clock: Clock = time.perf_counter
) -> TrainSummary:
    """Trains until `total_steps` updates are done, or a signal asks to stop.

    Raises:
        ValueError: the batch does not fit the mesh, or the checkpoint the run.
        FloatingPointError: the loss is no longer finite.
    """
    model = define_model(run.make_model)
    optimizer = run.optimizer(run.schedule, model.param_axes)
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
    )
    state, shardings, prior_steps = _first_state(run, settings, optimizer, checkpoints)
    first_step = int(state.step)
    if prior_steps:
        rates = [
            float(run.schedule(prior_steps + n)) for n in (0, settings.total_steps)
        ]
        logging.warning(
            "the optimizer had done %d updates when this run began; the learning rate "
            "goes from %.3g to %.3g over its %d updates.",
            prior_steps,
            *rates,
            settings.total_steps,
        )
    train_step = make_train_step(
        model,
        optimizer,
        _shifted(run.schedule, prior_steps),
        run.mesh,
        run.rules,
        state_shardings=shardings,
        settings=_step_settings(run, settings),
    )
    evaluation = _Evaluation(run, settings, model, shardings, first_step)
    metrics = Metrics(
        denoiser_names=run.denoiser_names,
        log_every_steps=settings.log_every_steps,
        multiplied=multiplied_params(model),
        writers=_train_writers(run, settings, first_step),
        clock=clock,
    )

    def save(step: int, state: TrainState) -> None:
        position = run.batches.position()
        checkpoints.save(step, state, position, prior_steps=prior_steps)

    with (
        contextlib.closing(checkpoints),
        contextlib.closing(evaluation),
        contextlib.closing(metrics),
        Preemption(run.mesh) as preemption,
    ):
        step = first_step
        while step < settings.total_steps and not preemption.requested():
            rows = metrics.wait_for(run.batches.__next__)
            batch = place(rows, run.mesh, run.rules, settings.microbatches)
            state, sums = train_step(state, batch)
            step += 1
            metrics.record(step, sums)
            if _is_due(step, settings.eval_every_steps, settings.total_steps):
                with metrics.paused():
                    evaluation.run(step, state.params)
            if _is_due(step, settings.save_every_steps, settings.total_steps):
                # First, so that the lines of a saved step are never missing.
                metrics.flush()
                with metrics.paused():
                    save(step, state)
        preempted = step < settings.total_steps
        if preempted:
            metrics.flush()
            save(step, state)
            logging.warning("stopped by a signal; saving step %d.", step)
    return TrainSummary(step, metrics.last, evaluation.last, preempted)


def _is_due(step: int, every_steps: int, total_steps: int) -> bool:
    """Returns whether to act after update `step`: every so often, and at the end."""
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)


def _first_state(
    run: Run,
    settings: TrainSettings,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
) -> tuple[TrainState, TrainState, int]:
    """Returns the state to start from; moves the batches if need be.

    In order: the newest checkpoint of this run; a trained model; fresh random
    parameters.

    Returns:
        The state, its shardings, and the updates its optimizer did before this run.
    """
    abstract, shardings = abstract_state(run.make_model, optimizer, run.mesh, run.rules)
    found = checkpoints.latest_step()
    if found is not None and found > settings.total_steps:
        raise ValueError(
            f"{run.model_dir} holds step {found}, beyond TOTAL_STEPS="
            f"{settings.total_steps}; raise it or choose another MODEL_DIR."
        )
    if found is not None:
        wanted = with_shardings(abstract, shardings)
        state, prior_steps = checkpoints.restore_latest(wanted, run.batches)
        return state, shardings, prior_steps
    if run.origin is None:
        state = init_state(
            run.make_model, optimizer, run.mesh, run.rules, seed=settings.seed
        )
        return state, shardings, 0
    return _state_of_origin(run.origin, run, optimizer, abstract, shardings)


def _state_of_origin(
    origin: Origin,
    run: Run,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    shardings: TrainState,
) -> tuple[TrainState, TrainState, int]:
    """Returns the same as `_first_state`, for a run that starts from a trained model.

    Raises:
        ValueError: it is another model, vocabulary or optimizer.
    """
    origin.check(run.vocab, run.model)
    wanted = with_shardings(abstract, shardings)
    opt_state, prior_steps = None, 0
    if run.keep_optimizer:
        origin.check_optimizer(abstract.opt_state)
        opt_state, prior_steps = origin.read_opt_state(wanted), origin.steps
    params = origin.read_params(wanted.params)
    return (
        state_of(params, opt_state, optimizer, shardings),
        shardings,
        prior_steps,
    )


def _shifted(schedule: optax.Schedule, prior_steps: int) -> optax.Schedule:
    """Returns the schedule as a function of this run's updates."""
    return (lambda step: schedule(step + prior_steps)) if prior_steps else schedule


def _step_settings(run: Run, settings: TrainSettings) -> StepSettings:
    """Picks what is compiled into the step."""
    return StepSettings(
        seed=settings.seed,
        num_denoisers=len(run.denoiser_names),
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
        writers.append(ProgressLine(settings.total_steps, restored_step))
    return writers


class _Evaluation:
    """The held-out batches, the compiled step that scores them, and its writers."""

    def __init__(
        self,
        run: Run,
        settings: TrainSettings,
        model: ModelDef,
        shardings: TrainState,
        restored_step: int,
    ) -> None:
        self._run = run
        self._step = make_eval_step(
            model,
            run.mesh,
            run.rules,
            param_shardings=shardings.params,
            num_denoisers=len(run.denoiser_names),
            vocab_size=run.vocab.padded_size,
            loss_chunk=settings.loss_chunk,
        )
        self._writers: list[Writer] = []
        if run.eval_batches is not None and jax.process_index() == 0:
            model_dir = Path(run.model_dir)
            self._writers = [
                JsonLines(model_dir / "eval.jsonl", restored_step),
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
        self.last = {"step": step, **scores}
        for writer in self._writers:
            writer.write(self.last)

    def close(self) -> None:
        """Closes the writers."""
        for writer in self._writers:
            writer.close()
