"""Checkpoints: one atomic directory per saved step, holding all of a run or nothing.

    checkpoints/1000/           1,000 updates done
        params/                 the parameters alone, so that inference reads only them
        train_state/            step and optimizer state; an imported one may lack it
        contract/               JSON: model, vocab, data position, config text, mixture
        checksums.json          of all files; older and imported ones lack it

This file says what is in a checkpoint, and reads it. Arrays are read straight into the
shards of the mesh at hand, which may differ from the mesh that wrote them. Training
writes and restores its own by `run_checkpoints`.

Whoever reads a checkpoint may name the run, its `checkpoints` folder, or one
checkpoint in it. A damaged one is refused by name; nobody is handed an older one
unasked.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from ul2 import json_files
from ul2.batch import Batch
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.run_files import CHECKPOINTS, saved_steps
from ul2.sharding.processes import Exchange
from ul2.sharding.rules import DEFAULT_RULES, Rules, named_shardings
from ul2.training import integrity
from ul2.training.state import MakeModel, Params, define_model, with_shardings
from ul2.vocab import Vocab

# The items in the folder of a step.
PARAMS, TRAIN_STATE, CONTRACT = "params", "train_state", "contract"
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
        guard: what updates are judged by, as `training.guard.Guard.to_json` writes
            it; None in a checkpoint from before there was one.
    """

    step: int
    data_position: dict[str, Any] | None
    vocab: Vocab
    config_text: str
    mixture: Any
    model: dict[str, Any] | None = None
    prior_steps: int = 0
    guard: dict[str, Any] | None = None

    @property
    def optimizer_steps(self) -> int:
        """Updates that the optimizer has done: none that this run left out."""
        skipped: int = (self.guard or {}).get("skipped", 0)
        return self.prior_steps + self.step - skipped

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
        later = {"data_position", "model", "prior_steps", "guard"}
        missing = known - later - set(fields)
        if missing:
            raise ValueError(f"contract: missing {sorted(missing)}.")
        values = {name: fields[name] for name in known & set(fields)}
        for name in ("step", "prior_steps"):
            value = values.get(name, 0)
            if type(value) is not int or value < 0:
                raise ValueError(f"contract: {name}={value!r} is no number of updates.")
        skipped = (values.get("guard") or {}).get("skipped", 0)
        if type(skipped) is not int or not 0 <= skipped <= values["step"]:
            raise ValueError(f"contract: {skipped!r} updates of it were left out.")
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
    is_inside = path.parent.name == CHECKPOINTS and path.is_dir()
    return path.name.isdecimal() and (is_inside or (path / CONTRACT).is_dir())


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


def read_contract(path: str | Path, step: int | None = None) -> Contract:
    """Reads what a checkpoint holds beside its arrays.

    The files of the arrays are looked at, but not read: those that read them do.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint.
        step: the newest by default; an older one is never taken silently.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged; names others.
    """
    step = _existing_step(path, step)
    found = contract_or_damage(path, step)
    if isinstance(found, str):
        raise ValueError(_damaged(path, step, found))
    return found


def contract_or_damage(path: str | Path, step: int) -> Contract | str:
    """Returns what a checkpoint holds beside its arrays, or what is wrong with it.

    One that is copied to be read only may lack the optimizer's state.
    """
    items = [PARAMS, CONTRACT]
    if (step_dir(path, step) / TRAIN_STATE).is_dir():
        items.append(TRAIN_STATE)
    damage = find_damage(path, step, [CONTRACT])
    damage = damage or find_damage(path, step, items, contents=False)
    if damage is not None:
        return damage
    try:
        contract = load_contract(path, step)
    except ValueError as error:
        return str(error)
    if contract.step != step:
        return f"its contract says that it is step {contract.step}"
    return contract


def load_contract(path: str | Path, step: int) -> Contract:
    """Reads a contract, whatever else there is.

    Raises:
        ValueError: it is none, in the words of whoever tried to read it.
    """
    try:
        fields = json_files.read(_contract_file(step_dir(path, step)))
        return Contract.from_json(fields)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"its contract cannot be read: {text}") from None


def find_damage(
    path: str | Path,
    step: int,
    items: Collection[str] | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    contents: bool = True,
) -> str | None:
    """Returns what is wrong with a checkpoint's files; see `integrity.find_damage`."""
    folder = step_dir(path, step)
    if not integrity.has_list(folder):
        with contextlib.suppress(OSError, ValueError):
            if b'"checksums"' in _contract_file(folder).read_bytes():
                return f"{integrity.CHECKSUMS}: is missing"
        return None
    return integrity.find_damage(folder, items=items, part=part, contents=contents)


def check_whole(path: str | Path, step: int, items: Collection[str]) -> None:
    """Refuses to read arrays that are not those that were written.

    Several processes share the work, so that all must call it.

    Raises:
        ValueError: a file is damaged; names it, and the other checkpoints.
    """
    part = (jax.process_index(), jax.process_count())
    damage = find_damage(path, step, items, part=part)
    answers = Exchange(f"whole/{next(_numbers)}")(damage or "")
    if found := next(filter(None, answers), None):
        raise ValueError(_damaged(path, step, found))


# Two of a process must not meet at the same points.
_numbers = itertools.count()


def _contract_file(folder: Path) -> Path:
    return folder / CONTRACT / "metadata"


def _damaged(path: str | Path, step: int, damage: str) -> str:
    """Returns what a person is told of a checkpoint that cannot be used."""
    others = [other for other in steps_in(path) if other != step]
    return (
        f"{step_dir(path, step)} is damaged: {damage}; choose another step (found "
        f"{others or 'none'}), or copy it again. Training steps over it by itself."
    )


def none_is_whole(path: str | Path, unfit: Iterable[tuple[int, str]]) -> str:
    """Returns what a person is told of a run that cannot go on from any checkpoint."""
    reasons = "; ".join(f"{step}: {reason}" for step, reason in unfit)
    return (
        f"no checkpoint in {checkpoints_dir(path)} can be used ({reasons}); nothing "
        "was removed. Put a good copy in its place, or choose another MODEL_DIR."
    )


def read_params(
    path: str | Path, abstract_params: Params, step: int | None = None
) -> Params:
    """Reads the parameters alone, into the shardings and dtype of `abstract_params`.

    Raises:
        ValueError: there is no such checkpoint, or they are damaged.
    """
    step = _existing_step(path, step)
    check_whole(path, step, [PARAMS])
    params: Params = read_item(path, step, PARAMS, abstract_params)
    return params


def read_item(path: str | Path, step: int, item: str, abstract: Any) -> Any:
    """Reads a tree of arrays into the shardings and dtypes of another."""
    handler = ocp.StandardCheckpointHandler()
    try:
        folder = epath.Path(step_dir(path, step) / item)
        return handler.restore(folder, args=ocp.args.StandardRestore(abstract))
    finally:
        handler.close()


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

    Raises:
        ValueError: it is damaged.
    """
    check_whole(path, step, [TRAIN_STATE])
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


def steps_in(path: str | Path) -> list[int]:
    """Returns the checkpoints of a run, or the one that a path names, in order."""
    if is_step_dir(path):
        return [int(Path(path).resolve().name)]
    return saved_steps(checkpoints_dir(path))


def _existing_step(path: str | Path, step: int | None) -> int:
    """Returns `step`, the one that the path names, or the newest; it must exist."""
    folder = checkpoints_dir(path)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint in {path}: {folder} does not exist.")
    steps = steps_in(path)
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
