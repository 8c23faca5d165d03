"""Checkpoints: one atomic directory per saved step, holding all of a run or nothing.

    checkpoints/1000/           1,000 updates done
        params/                 the parameters alone, so that inference reads only them
        train_state/            step and optimizer state; an imported one may lack it
        contract/               JSON: model, vocab, data position, config text, mixture

Saving copies to host memory and returns; a thread writes on. A directory appears under
its name only when it is complete. Restoring checks everything that can be checked
before it moves anything, then moves the state and the data iterator together. Arrays
are read straight into the shards of the mesh at hand, which may differ from the mesh
that wrote them.

Whoever reads a checkpoint may name the run, its `checkpoints` folder, or one
checkpoint in it.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from ul2.batch import Batch
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.sharding.rules import DEFAULT_RULES, Rules, named_shardings
from ul2.training.state import (
    MakeModel,
    Params,
    TrainState,
    define_model,
    with_shardings,
)
from ul2.vocab import Vocab

# The folder in a run, and the items in the folder of a step.
CHECKPOINTS: Final = "checkpoints"
PARAMS, TRAIN_STATE, CONTRACT = "params", "train_state", "contract"
# What orbax raises at a file that is no JSON, or another JSON than its own.
_DAMAGES: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# What two models may differ in and still have the same parameters.
_NOT_OF_PARAMS: Final = ("dtype", "remat", "dropout_rate")


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
        step: updates that this run has done.
        data_position: where the next batch starts; None where it was not written.
        vocab: the ids the parameters were trained on.
        config_text: the operative configuration.
        mixture: the denoisers, as JSON values.
        model: the model, as `models.architectures.to_json` writes it; None in a
            checkpoint from before models were written.
        prior_steps: updates that the optimizer had done before this run began: those
            of the run it was taken over from.
    """

    step: int
    data_position: dict[str, Any] | None
    vocab: Vocab
    config_text: str
    mixture: Any
    model: dict[str, Any] | None = None
    prior_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns the contract as plain JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "vocab": self.vocab.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Contract":
        """Reads what `to_json` wrote, now or before a field was added.

        Raises:
            ValueError: a field is missing, or no such value is possible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        later = {"data_position", "model", "prior_steps"}
        missing = known - later - set(fields)
        if missing:
            raise ValueError(f"contract: missing {sorted(missing)}.")
        values = {name: fields[name] for name in known & set(fields)}
        for name in ("step", "prior_steps"):
            value = values.get(name, 0)
            if type(value) is not int or value < 0:
                raise ValueError(f"contract: {name}={value!r} is no number of updates.")
        for name, kind in {"config_text": str, "data_position": dict | None}.items():
            if not isinstance(values.get(name), kind):
                raise ValueError(f"contract: {name} is of another kind.")
        return cls(**{**values, "vocab": Vocab.from_json(values["vocab"])})


def checkpoints_dir(path: str | Path) -> Path:
    """Returns where the checkpoints are: those of a run, or beside the one given."""
    path = Path(path).resolve()
    if is_step_dir(path):
        return path.parent
    return path if path.name == CHECKPOINTS else path / CHECKPOINTS


def step_dir(path: str | Path, step: int) -> Path:
    """Returns the folder of one checkpoint."""
    return checkpoints_dir(path) / str(step)


def is_step_dir(path: str | Path) -> bool:
    """Returns whether a path is one checkpoint, not a run."""
    path = Path(path).resolve()
    return path.name.isdecimal() and (path / CONTRACT).is_dir()


def model_of(contract: Contract) -> tuple[str, ModelConfig]:
    """Returns the architecture and the config of the model in a checkpoint.

    Raises:
        ValueError: the checkpoint does not say.
    """
    if contract.model is None:
        raise ValueError(
            f"checkpoint step {contract.step} does not say which model it holds: it "
            "was written before checkpoints did; go on with its run by one more step."
        )
    return architectures.from_json(contract.model)


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """Keeps the newest checkpoints, and one more, however old it is."""

    newest: int
    best: Callable[[], int | None]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Says which of the checkpoints, oldest first, are kept."""
        del context
        first = len(checkpoints) - self.newest
        return [
            index >= first or info.step == self.best()
            for index, info in enumerate(checkpoints)
        ]


class Checkpoints:
    """Saves and restores the checkpoints of one run."""

    def __init__(
        self,
        model_dir: str | Path,
        *,
        keep: int,
        contract: Contract,
        best: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Opens the checkpoints of a run, or makes room for them.

        Args:
            model_dir: of the run.
            keep: how many of the newest to keep.
            contract: what every checkpoint says, but for step, data position and
                prior steps.
            best: returns a step that is kept, however old it is.
        """
        self._directory = checkpoints_dir(model_dir)
        self._contract = contract
        policy = _NewestAndBest(keep, best)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(preservation_policy=policy),
        )

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        step: int | None = self._manager.latest_step()
        return step

    def save(
        self,
        step: int,
        state: TrainState,
        position: dict[str, Any],
        *,
        prior_steps: int,
    ) -> None:
        """Starts saving; does nothing where this step is already saved."""
        if self.latest_step() == step:
            return
        contract = dataclasses.replace(
            self._contract, step=step, data_position=position, prior_steps=prior_steps
        )
        items = {
            PARAMS: ocp.args.StandardSave(state.params),
            TRAIN_STATE: ocp.args.StandardSave(_without_params(state)),
            CONTRACT: ocp.args.JsonSave(contract.to_json()),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(
        self, abstract: TrainState, batches: Batches
    ) -> tuple[TrainState, int]:
        """Returns the newest state, and moves `batches` to where it stopped.

        Args:
            abstract: shapes and shardings wanted (`with_shardings`).
            batches: is not touched unless the whole state could be read.

        Returns:
            The state, and how many updates its optimizer did before this run.

        Raises:
            ValueError: the checkpoint belongs to another vocabulary, or lacks the
                data position.
        """
        step = self.latest_step()
        assert step is not None, "restore_latest needs a checkpoint"
        contract = read_contract(self._directory, step)
        check_position(contract, self._directory)
        what = f"checkpoint step {step}"
        check_vocab(contract.vocab, self._contract.vocab, what=what)
        items = {
            PARAMS: ocp.args.StandardRestore(abstract.params),
            TRAIN_STATE: ocp.args.StandardRestore(_without_params(abstract)),
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = found[TRAIN_STATE]
        assert contract.data_position is not None
        batches.seek(contract.data_position)
        state = TrainState(rest["step"], found[PARAMS], rest["opt_state"])
        return state, contract.prior_steps

    def wait(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and gives everything back."""
        self.wait()
        self._manager.close()


def read_contract(path: str | Path, step: int | None = None) -> Contract:
    """Reads what a checkpoint holds beside its arrays.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint.
        step: the newest by default.

    Raises:
        ValueError: there is no such checkpoint, or its contract is damaged.
    """
    with _reader(path) as manager:
        step = _existing_step(manager, path, step)
        items = ocp.args.Composite(**{CONTRACT: ocp.args.JsonRestore()})
        try:
            contract = Contract.from_json(manager.restore(step, args=items)[CONTRACT])
        except (*_DAMAGES, OSError) as error:
            text = " ".join(str(error).split())
            raise ValueError(
                f"{step_dir(path, step)} is no checkpoint of a run, or damaged: {text}"
            ) from None
    if contract.step != step:
        raise ValueError(
            f"{step_dir(path, step)} says that it is step {contract.step}."
        )
    return contract


def read_params(
    path: str | Path, abstract_params: Params, step: int | None = None
) -> Params:
    """Reads the parameters alone, into the shardings and dtype of `abstract_params`."""
    with _reader(path) as manager:
        step = _existing_step(manager, path, step)
        items = {PARAMS: ocp.args.StandardRestore(abstract_params)}
        params: Params = manager.restore(step, args=ocp.args.Composite(**items))[PARAMS]
    return params


def opt_state_shapes(path: str | Path, step: int) -> dict[str, tuple[int, ...]] | None:
    """Returns the shape of every array of the optimizer's state, by dotted path.

    None where a checkpoint has no such state, as imported ones may.
    """
    folder = step_dir(path, step) / TRAIN_STATE
    if not folder.is_dir():
        return None
    tree = _metadata(folder)["opt_state"]
    return {
        _dotted(keys): tuple(leaf.shape)
        for keys, leaf in jax.tree.leaves_with_path(tree)
    }


def read_opt_state(
    path: str | Path, abstract: Any, step: int, *, within: str = ""
) -> Any:
    """Reads the optimizer's state, or some of it, into the shardings of a tree.

    Args:
        path: of a run.
        abstract: what is wanted; what else there is stays unread.
        step: of the checkpoint.
        within: dotted path to what is wanted, from the top of the state.
    """
    folder = step_dir(path, step) / TRAIN_STATE
    top = ".".join(("opt_state", *filter(None, (within,))))
    wanted = {
        f"{top}.{_dotted(keys)}": leaf
        for keys, leaf in jax.tree.leaves_with_path(abstract)
    }
    item = jax.tree.map_with_path(
        lambda keys, _: wanted.get(_dotted(keys), ocp.PLACEHOLDER), _metadata(folder)
    )
    args = ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(folder, args=args)
    found = {_dotted(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}
    return jax.tree.unflatten(
        jax.tree.structure(abstract), [found[name] for name in wanted]
    )


def load_model(
    path: str | Path,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    step: int | None = None,
    make_model: MakeModel | None = None,
) -> tuple[nnx.Module, Contract]:
    """Returns a trained model for inference, and what it was trained on.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint.
        mesh: where to put it; any mesh will do.
        rules: logical axis to mesh axis.
        step: the newest by default.
        make_model: builds a model that is not one of `models.architectures`; by
            default the checkpoint says which it is.

    Raises:
        ValueError: there is no such checkpoint, or it does not say what model it is.
    """
    contract = read_contract(path, step)
    if make_model is None:
        make_model = architectures.make_model(*model_of(contract))
    model = define_model(make_model)
    shardings = named_shardings(model.abstract_params, model.param_axes, mesh, rules)
    abstract = with_shardings(model.abstract_params, shardings)
    return model.merge(read_params(path, abstract, contract.step)), contract


def _metadata(folder: Path) -> Any:
    """Returns the tree of an item, with the shape of each array."""
    with ocp.StandardCheckpointer() as reader:
        return reader.metadata(folder).item_metadata.tree


def _dotted(keys: tuple[Any, ...]) -> str:
    """Returns a path through a tree as text."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _without_params(state: TrainState) -> dict[str, Any]:
    """Returns the part of the state that only training needs."""
    return {"step": state.step, "opt_state": state.opt_state}


def _reader(path: str | Path) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run without the right to change them."""
    folder = checkpoints_dir(path)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint in {path}: {folder} does not exist.")
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        return ocp.CheckpointManager(folder, options=options)
    except _DAMAGES as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{folder} is damaged: {text}.") from None


def _existing_step(
    manager: ocp.CheckpointManager, path: str | Path, step: int | None
) -> int:
    """Returns `step`, the one that the path names, or the newest; it must exist."""
    steps = sorted(manager.all_steps())
    if is_step_dir(path):
        named = int(Path(path).resolve().name)
        steps = [one for one in steps if one == named]
    if not steps or (step is not None and step not in steps):
        wanted = "any step" if step is None else f"step {step}"
        raise ValueError(f"no checkpoint of {wanted} in {path}; found {steps}.")
    return steps[-1] if step is None else step


def check_position(contract: Contract, path: str | Path) -> None:
    """Refuses to go on with a run whose place in the data is unknown.

    Raises:
        ValueError: it is; an imported checkpoint has none.
    """
    if contract.data_position is None:
        raise ValueError(
            f"checkpoint step {contract.step} has no data position, so resuming would "
            f"repeat data; start a new MODEL_DIR with INITIAL_CHECKPOINT={path} to "
            "begin the data anew."
        )


def check_vocab(
    theirs: Vocab, ours: Vocab, *, what: str, fields: Collection[str] | None = None
) -> None:
    """Refuses to go on with parameters of another vocabulary.

    Args:
        theirs: what the parameters were trained on.
        ours: what they shall be trained on.
        what: names the parameters.
        fields: what is known of theirs; all by default.

    Raises:
        ValueError: it differs; names the knob that sets it.
    """
    old, new = theirs.to_json(), ours.to_json()
    differing = [
        name
        for name in new
        if old[name] != new[name] and (fields is None or name in fields)
    ]
    if differing == ["mode_convention"]:
        raise ValueError(
            f"{what} was trained with modes in the {theirs.mode_convention!r} "
            f"convention, not {ours.mode_convention!r}; set MODE_CONVENTION="
            f"{theirs.mode_convention}."
        )
    if differing:
        raise ValueError(
            f"{what} was trained on another vocabulary ({', '.join(differing)} "
            "differ); set DATA to the store it was trained on, or one made with its "
            "tokenizer."
        )


def check_model(theirs: Contract, ours: dict[str, Any] | None, *, what: str) -> None:
    """Refuses parameters of another model.

    Args:
        theirs: of the checkpoint.
        ours: the model that the parameters shall be for; None is not compared.
        what: names the checkpoint.

    Raises:
        ValueError: they differ; names every field with both values.
    """
    if ours is None:
        return
    old, new = _flat(architectures.to_json(*model_of(theirs))), _flat(ours)
    differing = [
        f"{name} {old.get(name)!r}, not {new.get(name)!r}"
        for name in {**new, **old}
        if name not in _NOT_OF_PARAMS and old.get(name) != new.get(name)
    ]
    if differing:
        cure = "choose the --gin_file=configs/models/NAME.gin it was trained with"
        if old["vocab_size"] != new["vocab_size"]:
            cure = "set DATA to a store made with its vocabulary"
        raise ValueError(f"{what} is of another model: {', '.join(differing)}; {cure}.")


def _flat(model: dict[str, Any]) -> dict[str, Any]:
    """Returns the architecture, and the fields of the config that mean something."""
    config = model["config"]
    other = {"relative": "rope_", "rope": "relative_"}[config["positions"]]
    kept = {name: value for name, value in config.items() if not name.startswith(other)}
    if config["num_kv_heads"] == config["num_heads"]:
        kept["num_kv_heads"] = None  # says the same
    return {"architecture": model["architecture"], **kept}
