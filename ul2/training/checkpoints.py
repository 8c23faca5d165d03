"""Checkpoints: one atomic directory per saved step, holding all of a run or nothing.

    checkpoints/1000/           1,000 updates done
        params/                 the parameters alone, so that inference reads only them
        train_state/            step and optimizer state
        contract/               JSON: data position, vocab, config text, mixture

Saving copies to host memory and returns; a thread writes on. A directory appears under
its name only when it is complete. Restoring checks everything that can be checked
before it moves anything, then moves the state and the data iterator together. Arrays
are read straight into the shards of the mesh at hand, which may differ from the mesh
that wrote them.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.sharding.rules import DEFAULT_RULES, Rules, named_shardings
from ul2.training.state import (
    MakeModel,
    Params,
    TrainState,
    define_model,
    with_shardings,
)
from ul2.vocab import Vocab

PARAMS, TRAIN_STATE, CONTRACT = "params", "train_state", "contract"


class Batches(Protocol):
    """An endless iterator of this host's rows; its position is that of all hosts."""

    def __next__(self) -> Batch:
        """Returns the next batch."""
        ...

    def position(self) -> dict[str, Any]:
        """Returns where the next batch starts, as JSON values."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a place that `position` returned."""
        ...


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a checkpoint holds beside its arrays.

    Attributes:
        step: updates done.
        data_position: where the next batch starts; None where it was not written.
        vocab: the ids the parameters were trained on.
        config_text: the operative configuration.
        mixture: the denoisers, as JSON values.
    """

    step: int
    data_position: dict[str, Any] | None
    vocab: Vocab
    config_text: str
    mixture: Any


def checkpoints_dir(directory: str | Path) -> Path:
    """Returns where the checkpoints of a run are; takes either folder."""
    path = Path(directory).resolve()
    return path if path.name == "checkpoints" else path / "checkpoints"


class Checkpoints:
    """Saves and restores the checkpoints of one run."""

    def __init__(
        self,
        model_dir: str | Path,
        *,
        keep: int,
        vocab: Vocab,
        config_text: str,
        mixture: Any = None,
    ) -> None:
        self._directory = checkpoints_dir(model_dir)
        self._vocab = vocab
        self._config_text = config_text
        self._mixture = mixture
        policy = ocp.checkpoint_managers.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
        )

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts saving; does nothing where this step is already saved."""
        if self.latest_step() == step:
            return
        contract = {
            "step": step,
            "data_position": position,
            "vocab": self._vocab.to_json(),
            "config_text": self._config_text,
            "mixture": self._mixture,
        }
        items = {
            PARAMS: ocp.args.StandardSave(state.params),
            TRAIN_STATE: ocp.args.StandardSave(_without_params(state)),
            CONTRACT: ocp.args.JsonSave(contract),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(self, abstract: TrainState, batches: Batches) -> TrainState:
        """Returns the newest state and moves `batches` to where it stopped.

        Args:
            abstract: shapes and shardings wanted (`with_shardings`).
            batches: is not touched unless the whole state could be read.

        Raises:
            ValueError: the checkpoint belongs to another vocabulary, or lacks the
                data position.
        """
        step = self.latest_step()
        assert step is not None, "restore_latest needs a checkpoint"
        contract = read_contract(self._directory, step)
        if contract.data_position is None:
            raise ValueError(
                f"checkpoint step {step} has no data position, so resuming would "
                "repeat data; start a new MODEL_DIR with INITIAL_CHECKPOINT="
                f"{self._directory} to begin the data anew."
            )
        check_vocab(contract, self._vocab)
        items = {
            PARAMS: ocp.args.StandardRestore(abstract.params),
            TRAIN_STATE: ocp.args.StandardRestore(_without_params(abstract)),
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = found[TRAIN_STATE]
        batches.seek(contract.data_position)
        return TrainState(rest["step"], found[PARAMS], rest["opt_state"])

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_contract(directory: str | Path, step: int | None = None) -> Contract:
    """Reads what a checkpoint holds beside its arrays.

    Args:
        directory: a run, or its `checkpoints` folder.
        step: the newest by default.

    Raises:
        ValueError: there is no such checkpoint.
    """
    with _reader(directory) as manager:
        step = _existing_step(manager, directory, step)
        items = ocp.args.Composite(**{CONTRACT: ocp.args.JsonRestore()})
        fields = manager.restore(step, args=items)[CONTRACT]
    return Contract(
        step=fields["step"],
        data_position=fields.get("data_position"),
        vocab=Vocab.from_json(fields["vocab"]),
        config_text=fields["config_text"],
        mixture=fields["mixture"],
    )


def read_params(
    directory: str | Path, abstract_params: Params, step: int | None = None
) -> Params:
    """Reads the parameters alone, into the shardings of `abstract_params`."""
    with _reader(directory) as manager:
        step = _existing_step(manager, directory, step)
        items = {PARAMS: ocp.args.StandardRestore(abstract_params)}
        params: Params = manager.restore(step, args=ocp.args.Composite(**items))[PARAMS]
    return params


def load_model(
    directory: str | Path,
    make_model: MakeModel,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    step: int | None = None,
) -> tuple[nnx.Module, Contract]:
    """Returns a trained model for inference, and what it was trained on.

    Args:
        directory: a run, or its `checkpoints` folder.
        make_model: builds the model that was trained: `make_model(rngs=...)`.
        mesh: where to put it; any mesh will do.
        rules: logical axis to mesh axis.
        step: the newest by default.
    """
    model = define_model(make_model)
    shardings = named_shardings(model.abstract_params, model.param_axes, mesh, rules)
    contract = read_contract(directory, step)
    abstract = with_shardings(model.abstract_params, shardings)
    return model.merge(read_params(directory, abstract, contract.step)), contract


def _without_params(state: TrainState) -> dict[str, Any]:
    """Returns the part of the state that only training needs."""
    return {"step": state.step, "opt_state": state.opt_state}


def _reader(directory: str | Path) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run without the right to change them."""
    path = checkpoints_dir(directory)
    if not path.is_dir():
        raise ValueError(f"no checkpoint in {directory}: {path} does not exist.")
    options = ocp.CheckpointManagerOptions(read_only=True)
    return ocp.CheckpointManager(path, options=options)


def _existing_step(
    manager: ocp.CheckpointManager, directory: str | Path, step: int | None
) -> int:
    """Returns `step`, or the newest; both must exist."""
    steps = sorted(manager.all_steps())
    if not steps or (step is not None and step not in steps):
        wanted = "any step" if step is None else f"step {step}"
        raise ValueError(f"no checkpoint of {wanted} in {directory}; found {steps}.")
    return steps[-1] if step is None else step


def check_vocab(contract: Contract, vocab: Vocab) -> None:
    """Refuses to go on with parameters of another vocabulary."""
    theirs, ours = contract.vocab.to_json(), vocab.to_json()
    differing = [name for name, value in ours.items() if theirs[name] != value]
    if differing:
        raise ValueError(
            f"checkpoint step {contract.step} was trained on another vocabulary "
            f"({', '.join(differing)} differ); set DATA to the store it was trained on."
        )
