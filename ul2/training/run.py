"""What a run is made of, and what is compiled of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES, Rules
from ul2.training.checkpoints import Batches
from ul2.training.diagnosis import Diagnoser
from ul2.training.evaluate import Score, evaluate
from ul2.training.optimizers import Optimizer
from ul2.training.origin import Origin
from ul2.training.state import (
    MakeModel,
    Params,
    abstract_state,
    define_model,
    guarded,
)
from ul2.training.step import (
    EvalStep,
    StepSettings,
    TrainStep,
    make_eval_step,
    make_train_step,
)
from ul2.vocab import Vocab

MakeBatches = Callable[[], Iterable[Batch]]
ScoreParams = Callable[[Params, Callable[[], None]], Mapping[str, Any]]


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
            e.g. decodes and scores the answers; calls its second argument now and
            then, which raises when the run shall stop.
        mode_batches: makes the held-out batches again under each mode, by name; the
            denoisers are the same.
        source_batches: names of sources, and what makes the held-out batches with the
            number of a source in place of that of a denoiser; None for no such scores.
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
    eval_batches: MakeBatches | None = None
    mixture: Any = None
    model: dict[str, Any] | None = None
    origin: Origin | None = None
    keep_optimizer: bool = False
    rules: Rules = dataclasses.field(default_factory=lambda: DEFAULT_RULES)
    show_progress: bool = True
    label: str = ""
    score_params: ScoreParams | None = None
    mode_batches: Mapping[str, MakeBatches] = dataclasses.field(default_factory=dict)
    source_batches: tuple[Sequence[str], MakeBatches] | None = None


class Programs:
    """The model and what is compiled of it; runs that differ in data alone share it.

    Args:
        run: any of those runs.
        settings: of the steps of all of them.
    """

    def __init__(self, run: Run, settings: StepSettings) -> None:
        self.model = define_model(run.make_model)
        self.optimizer = run.optimizer(run.schedule, self.model.param_axes)
        self.abstract, self.shardings = abstract_state(
            run.make_model, self.optimizer, run.mesh, run.rules
        )
        self._run, self._settings = run, settings
        _, self._guarded_shardings = guarded(
            self.abstract, self.shardings, len(run.denoiser_names), run.mesh
        )
        self.train_step = functools.cache(self._make_train_step)
        self.eval_step = functools.cache(self._make_eval_step)

    def _make_train_step(self, prior_steps: int) -> TrainStep:
        """Returns the update of an optimizer that had done so many before."""
        run = self._run
        return make_train_step(
            self.model,
            self.optimizer,
            run.schedule,
            run.mesh,
            run.rules,
            state_shardings=self._guarded_shardings,
            settings=self._settings,
            prior_steps=prior_steps,
        )

    @functools.cached_property
    def diagnose(self) -> Diagnoser:
        """Finds what went bad in an update."""
        return Diagnoser(
            self.model,
            self._run.mesh,
            self._run.rules,
            param_shardings=self.shardings.params,
            settings=self._settings,
        )

    def _make_eval_step(self, num_kinds: int) -> EvalStep:
        """Returns the evaluation of one batch, whose targets are of so many kinds."""
        run = self._run
        return make_eval_step(
            self.model,
            run.mesh,
            run.rules,
            param_shardings=self.shardings.params,
            num_denoisers=num_kinds,
            vocab_size=run.vocab.padded_size,
            loss_chunk=self._settings.loss_chunk,
        )


def scorer(run: Run, programs: Programs) -> Score | None:
    """Returns what measures parameters on the held-out batches, if there are any."""
    make_batches = run.eval_batches
    if make_batches is None:
        return None

    def score_on(
        params: Params,
        make: MakeBatches,
        names: Sequence[str],
        check: Callable[[], None],
    ) -> dict[str, Any]:
        return evaluate(
            programs.eval_step(len(names)),
            params,
            make(),
            lambda rows: place(rows, run.mesh, run.rules),
            names,
            before_batch=check,
        )

    def score(params: Params, check: Callable[[], None]) -> dict[str, Any]:
        scores = score_on(params, make_batches, run.denoiser_names, check)
        if run.mode_batches:
            scores["modes"] = {
                mode: score_on(params, make, run.denoiser_names, check)
                for mode, make in run.mode_batches.items()
            }
        if run.source_batches is not None:
            names, make = run.source_batches
            scores["sources"] = score_on(params, make, names, check)["denoisers"]
        if run.score_params is not None:
            scores |= run.score_params(params, check)
        return scores

    return score
