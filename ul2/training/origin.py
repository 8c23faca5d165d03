"""What a new run starts from: a trained model, and perhaps its optimizer's state.

`of_run` opens a checkpoint of this project, `of_arrays` any other whose arrays can be
read region by region. Opening reads no array. Reading puts each region straight into
the device that shall hold it, so every host reads its own shards alone.

A run counts its own updates from 0, whatever it starts from. The state of an optimizer
counts too (for the decay of its moments, and for the schedule); where it is kept, it
goes on counting, and is ahead of the run by `Origin.steps`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import jax
import numpy as np
import optax
from flax import traverse_util

from ul2 import axes
from ul2.models import architectures
from ul2.training import checkpoints, precision, run_directory
from ul2.training.checkpoints import Contract
from ul2.training.state import Params, TrainState, define_model
from ul2.vocab import Vocab

Shapes = Mapping[str, tuple[int, ...]]
# Where `optax.chain(adafactor, scale_by_learning_rate)` keeps things.
_ADAFACTOR: Final = "0"
_SCHEDULE_COUNT: Final = "1.count"
_SLOTS: Final = ("v_row", "v_col", "v")
# What stands where, in the state of an optimizer that rounds.
_ROUNDING: Final = re.compile(r"\d+\.(rounded_updates$|master\.)")
_MASTER: Final = re.compile(r"\d+\.master(?=\.)")
# What is true of a vocabulary even where its tokenizer is not at hand.
_IDS: Final = (
    "padded_size",
    "pad_id",
    "eos_id",
    "unk_id",
    "start_id",
    "sentinel_ids",
)


class Array(Protocol):
    """An array that is somewhere else."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    def read(self, region: tuple[slice, ...] | None, /) -> np.ndarray:
        """Returns a region of it."""


class Moments(Protocol):
    """The state of `optimizers.adafactor`; see `ul2.interop.checkpoint.Moments`."""

    @property
    def step(self) -> int:
        """Updates done."""

    @property
    def v_row(self) -> Mapping[str, Array]:
        """Row means, by the parameter's dotted path."""

    @property
    def v_col(self) -> Mapping[str, Array]:
        """Column means."""

    @property
    def v(self) -> Mapping[str, Array]:
        """Second moments that are not factored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """A trained model that a new run can start from.

    Attributes:
        path: what a person named.
        contract: its model, its vocabulary, and the updates it has seen.
        vocab_fields: what is known of its vocabulary.
        opt_shapes: shape of every array of the optimizer's state, by dotted path,
            but for the link that rounds; None where there is no such state.
        read_params: returns the parameters, given their shapes and shardings; of
            those that are rounded, the float32 master copy if there is one.
        read_opt_state: returns the optimizer's state, without the link that rounds,
            given the shapes and shardings of the whole state.
        tokenizer: the SentencePiece model it was trained with, if it is there.
    """

    path: Path
    contract: Contract
    vocab_fields: Collection[str]
    opt_shapes: Shapes | None
    read_params: Callable[[Params], Params]
    read_opt_state: Callable[[TrainState], Any]
    tokenizer: bytes | None = None

    @property
    def steps(self) -> int:
        """Updates that its optimizer has done."""
        return self.contract.optimizer_steps

    def check(self, vocab: Vocab, model: dict[str, Any] | None) -> None:
        """Refuses to start a run of another model or vocabulary.

        Args:
            vocab: of the run.
            model: of the run, as `models.architectures.to_json` writes it; None is
                not compared.

        Raises:
            ValueError: names what differs.
        """
        what = f"INITIAL_CHECKPOINT={self.path}"
        checkpoints.check_model(self.contract, model, what=what)
        theirs = _with_sentinels_of(self.contract.vocab, vocab)
        checkpoints.check_vocab(theirs, vocab, what=what, fields=self.vocab_fields)

    def check_optimizer(self, abstract_opt_state: Any) -> None:
        """Refuses to keep the state of another optimizer.

        Raises:
            ValueError: there is none, or it is another's; names the knob.
        """
        found = self.opt_shapes
        if found is None:
            raise ValueError(
                f"INITIAL_CHECKPOINT={self.path} has no optimizer state to keep; set "
                "INITIAL_OPTIMIZER=reset."
            )
        inner, _ = precision.split_state(abstract_opt_state)
        wanted = {name: leaf.shape for name, leaf in dotted(inner).items()}
        if wanted.keys() != found.keys():
            raise ValueError(
                f"INITIAL_CHECKPOINT={self.path} has the state of another optimizer "
                f"({_example(found, wanted)}); choose the run file of that optimizer, "
                "or set INITIAL_OPTIMIZER=reset."
            )
        differing = [name for name in wanted if wanted[name] != found[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"INITIAL_CHECKPOINT={self.path} has other second moments factored: "
                f"{name.removeprefix(f'{_ADAFACTOR}.')} is {list(found[name])}, not "
                f"{list(wanted[name])}; set "
                "MIN_DIM_SIZE_TO_FACTOR and FACTOR_STACKED as it was trained with, or "
                "INITIAL_OPTIMIZER=reset."
            )

    def check_schedule(self, schedule: optax.Schedule, total_steps: int) -> None:
        """Refuses a schedule that has come to its end before the run begins.

        Args:
            schedule: of the optimizer that is kept, and goes on counting.
            total_steps: updates of the run.

        Raises:
            ValueError: no update would change anything.
        """
        steps = self.steps + np.arange(0, total_steps, max(1, total_steps // 100))
        if not any(float(schedule(int(step))) for step in steps):
            raise ValueError(
                f"the learning rate is 0 at all {total_steps} steps: the optimizer of "
                f"INITIAL_CHECKPOINT={self.path} has done {self.steps}, and the "
                f"schedule is over; set SCHEDULE_STEPS={self.steps + total_steps}, or "
                "INITIAL_OPTIMIZER=reset."
            )


def of_run(path: str | Path, step: int | None = None) -> Origin:
    """Opens a run of ours, its `checkpoints` folder, or one checkpoint.

    Args:
        path: of any of them.
        step: the newest by default.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    contract = checkpoints.read_contract(path, step)
    step = contract.step
    tokenizer = run_directory.tokenizer_path(path)
    shapes = checkpoints.opt_state_shapes(path, step)
    master = next((m[0] for name in shapes or () if (m := _MASTER.match(name))), None)

    def read_params(abstract: Params) -> Params:
        if master is None:
            return checkpoints.read_params(path, abstract, step)
        params: Params = checkpoints.read_opt_state(path, abstract, step, within=master)
        return params

    def read_opt_state(abstract: TrainState) -> Any:
        inner, _ = precision.split_state(abstract.opt_state)
        return checkpoints.read_opt_state(path, inner, step)

    return Origin(
        path=Path(path),
        contract=contract,
        vocab_fields=[field.name for field in dataclasses.fields(Vocab)],
        opt_shapes=shapes and _without_rounding(shapes),
        read_params=read_params,
        read_opt_state=read_opt_state,
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
    )


def of_arrays(
    path: Path,
    contract: Contract,
    params: Mapping[str, Array],
    moments: Moments | None,
    *,
    tokenizer: bytes | None,
) -> Origin:
    """Returns the origin that arrays are, by dotted parameter path.

    Args:
        path: what a person named.
        contract: its model and vocabulary, and how many updates it has seen.
        params: every parameter.
        moments: Adafactor's, if they are there.
        tokenizer: what the vocabulary was read from; without one, only the ids that
            no tokenizer is needed for are compared. How modes are written is compared
            with our own runs alone: others do not say.
    """
    fields: tuple[str, ...] = _IDS
    if tokenizer is not None:
        every = (field.name for field in dataclasses.fields(Vocab))
        fields = tuple(name for name in every if name != "mode_convention")
    opt_state: dict[str, Array] = {}
    if moments is not None:
        opt_state = _opt_state(contract, params, moments)
    shapes = {name: array.shape for name, array in opt_state.items()}
    return Origin(
        path=path,
        contract=contract,
        vocab_fields=fields,
        opt_shapes=shapes or None,
        read_params=lambda abstract: _read_tree(params, abstract),
        read_opt_state=lambda abstract: _read_tree(
            opt_state, precision.split_state(abstract.opt_state)[0]
        ),
        tokenizer=tokenizer,
    )


def dotted(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path: of a tuple with a dict, `0.decoder.scale`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@dataclasses.dataclass(frozen=True)
class _Constant:
    """An array of one number."""

    shape: tuple[int, ...]
    value: float

    def read(self, region: tuple[slice, ...] | None, /) -> np.ndarray:
        return np.full(self.shape, self.value)[region]


def _with_sentinels_of(theirs: Vocab, ours: Vocab) -> Vocab:
    """Returns their vocabulary with as many sentinels as ours, if they begin alike.

    Rows that were padding may become sentinels: longer spans need more of them.
    """
    shared = min(len(theirs.sentinel_ids), len(ours.sentinel_ids))
    alike = theirs.sentinel_ids[:shared] == ours.sentinel_ids[:shared]
    if not alike or theirs.padded_size != ours.padded_size:
        return theirs
    return dataclasses.replace(theirs, size=ours.size, sentinel_ids=ours.sentinel_ids)


def _without_rounding(shapes: Shapes) -> Shapes:
    """Returns the shapes of an optimizer's state but for the link that rounds."""
    return {name: shapes[name] for name in shapes if not _ROUNDING.match(name)}


def _opt_state(
    contract: Contract, params: Mapping[str, Array], moments: Moments
) -> dict[str, Array]:
    """Returns what Adafactor's chain would hold after these updates."""
    model = define_model(architectures.make_model(*checkpoints.model_of(contract)))
    param_axes = traverse_util.flatten_dict(model.param_axes, sep=".")
    arrays: dict[str, Array] = {
        f"{_ADAFACTOR}.step": _Constant((), moments.step),
        _SCHEDULE_COUNT: _Constant((), moments.step),
    }
    for slot in _SLOTS:
        of_slot: Mapping[str, Array] = getattr(moments, slot)
        for path, param in params.items():
            # A form that is not used is a single zero, in each layer.
            layers = param.shape[:1] if param_axes[path][:1] == (axes.LAYERS,) else ()
            unused = _Constant((*layers, 1), 0)
            arrays[f"{_ADAFACTOR}.{slot}.{path}"] = of_slot.get(path, unused)
    return arrays


def _read_tree(arrays: Mapping[str, Array], abstract: Any) -> Any:
    """Reads arrays into the shapes, dtypes and shardings of a tree of that paths."""

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda region: arrays[name].read(region).astype(leaf.dtype),
        )

    return jax.tree.map_with_path(read, abstract)


def _example(found: Shapes, wanted: Shapes) -> str:
    """Returns one name that only one of the two has."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted)
    return f"no {missing[0]}" if missing else f"{extra[0]} besides"
