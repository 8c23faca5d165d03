"""The files of a run beside its checkpoints: what it is, and that it stays so."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import jax
import numpy as np
from jax.experimental import multihost_utils

from ul2.lock import Lock
from ul2.run_files import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    read_config,
    saved_steps,
    statements,
    values,
)
from ul2.sharding import processes
from ul2.training.checkpoints import (
    Contract,
    checkpoints_dir,
    contract_or_damage,
    is_step_dir,
    none_is_whole,
    steps_in,
)

TOKENIZER: Final = "tokenizer.model"
_LOOKS, _LOOK_AGAIN_SECONDS = 10, 0.5
# What may change while a run goes on. Everything else is what the run is.
_MAY_CHANGE: Final = frozenset(
    {
        "MODEL_DIR",
        "DATA",
        "TOTAL_STEPS",
        "MESH",
        "MICROBATCHES",
        "EXAMPLES_PER_ROW",
        "LOG_EVERY_STEPS",
        "EVAL_EVERY_STEPS",
        "EVAL_BATCHES",
        "SAVE_EVERY_STEPS",
        "KEEP_CHECKPOINTS",
        "STALL_SECONDS",
        "SAVE_RETRY_SECONDS",
        "ON_BAD_NUMBERS",
        "ON_SPIKE",
        "SPIKE_THRESHOLD",
        "MAX_BAD_UPDATES",
        "BEST_METRIC",
        "EVAL_MODES",
        "EVAL_SOURCES",
        "EVAL_SAMPLES",
        "EVAL_DECODE",
        "EVAL_DECODE_LIMIT",
        "EXAMPLES_DIR",
        "VOCAB",
        "REMAT",
        # The same sums in another order.
        "LOSS_CHUNK",
        # Read once, by a run that has no checkpoint yet; it may be gone since.
        "INITIAL_CHECKPOINT",
    }
)
# What a run did that was begun when this could not be said, or that can no longer be.
_UNSAID: Final = {
    "recipe.Recipe.initial_optimizer": "'reset'",
    "recipe.Recipe.dropout_rate": "None",
    "recipe.Recipe.vocab_file": "None",
    "recipe.Recipe.eval_decode": "False",
    "recipe.Recipe.eval_limit": "None",
    "recipe.Recipe.eval_modes": "False",
    "recipe.Recipe.eval_sources": "False",
    "recipe.Recipe.eval_samples": "0",
    "recipe.Recipe.mode_trial_steps": "100",
    "recipe.Recipe.param_dtype": "'float32'",
    "recipe.Recipe.rounding": "'stochastic'",
    "loop.TrainSettings.best_metric": "None",
    "loop.TrainSettings.stall_seconds": "1800",
    "loop.TrainSettings.save_retry_seconds": "1200",
    "loop.TrainSettings.guard": "@guard.GuardSettings()",
    "optimizers.adafactor.factor_stacked": "'by_size'",
    "optimizers.adafactor.epsilon1": "1e-30",
}
_FREE_READERS: Final = (
    "recipe.Recipe.",
    "loop.TrainSettings.",
    "config.ModelConfig.",
    "guard.GuardSettings.",
)


def has_checkpoint(model_dir: str | Path) -> bool:
    """Returns whether a run has saved anything, so that it can go on."""
    with contextlib.suppress(OSError):
        return bool(saved_steps(checkpoints_dir(model_dir)))
    return False


def tokenizer_path(path: str | Path) -> Path:
    """Returns where the tokenizer of a checkpoint is.

    Args:
        path: a run, its `checkpoints` folder, or one checkpoint.
    """
    return checkpoints_dir(path).parent / TOKENIZER


def check_same_run(model_dir: str | Path, config_text: str) -> None:
    """Refuses a directory that holds another run.

    Raises:
        ValueError: it holds checkpoints of a run with another config; the message
            names the differences.
    """
    kept = Path(model_dir) / CONFIG
    if not kept.is_file() or not has_checkpoint(model_dir):
        return
    try:
        before = read_config(kept)
    except (OSError, ValueError):
        raise ValueError(
            f"{kept} is damaged, so that nobody knows which run this is; put it back, "
            "or choose another MODEL_DIR."
        ) from None
    changes = _changes(before, config_text)
    if changes:
        raise ValueError(
            f"{model_dir} holds a run with another config "
            f"({'; '.join(changes)}); choose another MODEL_DIR or set "
            "these back."
        )


def foreign_to(config_text: str) -> Callable[[Contract], str | None]:
    """Returns what says why a checkpoint is of another run than that of a config.

    It returns None for one that is of this run, or does not say of which it is.
    """

    def why(contract: Contract) -> str | None:
        if not (contract.config_text and config_text):
            return None
        return "; ".join(_changes(contract.config_text, config_text)) or None

    return why


def newest_step(model_dir: str | Path) -> int:
    """Returns the newest checkpoint that a run may go on from, as far as is known.

    Its arrays are yet to be read; training verifies them. Where all are of another
    run, the newest of them is for others to refuse.

    Raises:
        ValueError: there is none; says of each what is wrong.
    """
    kept = Path(model_dir) / CONFIG
    is_foreign = foreign_to(kept.read_text() if kept.is_file() else "")
    readable, damaged = [], []
    for step in reversed(steps_in(model_dir)):
        found = contract_or_damage(model_dir, step)
        if isinstance(found, str):
            damaged.append((step, found))
        elif is_foreign(found) is None:
            return step
        else:
            readable.append(step)
    if not readable:
        raise ValueError(none_is_whole(model_dir, damaged))
    return readable[0]


def check_writable(model_dir: str | Path) -> None:
    """Refuses a directory that cannot be made or written to; makes none.

    Raises:
        ValueError: names what is in the way.
    """
    path = Path(model_dir).absolute()
    if path.name == CHECKPOINTS or is_step_dir(path):
        raise ValueError(
            f"{model_dir} is where a run keeps its checkpoints; choose another "
            "MODEL_DIR (to go on with that run: the folder above `checkpoints`)."
        )
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(
            f"cannot write to {model_dir}: {nearest} is no directory that you may "
            "write to; choose another MODEL_DIR."
        )


@contextlib.contextmanager
def claimed(model_dir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a directory; the first process alone holds its lock.

    Call it on all of them.

    Raises:
        ValueError: another run works in it; raised by all.
    """
    lock = Lock(
        Path(model_dir) / LOCK, what=f"{model_dir}", instead="choose another MODEL_DIR"
    )
    refusal = ""
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                Path(model_dir).mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock)
            except ValueError as error:
                refusal = str(error)
            except OSError as error:
                refusal = _cannot_write(model_dir, error)
        refusal = processes.said_by_first("is the run directory free?", refusal)
        if refusal:
            raise ValueError(refusal)
        yield


def keep(model_dir: str | Path, name: str, content: bytes) -> None:
    """Writes a file of the run, whole or not at all; the first process alone does.

    Raises:
        ValueError: the directory cannot be written to.
    """
    if jax.process_index() != 0:
        return
    model_dir = Path(model_dir)
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        partial = model_dir / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(model_dir / name)
    except OSError as error:
        raise ValueError(_cannot_write(model_dir, error)) from None


def _cannot_write(model_dir: str | Path, error: OSError) -> str:
    return f"cannot write to {model_dir}: {error.strerror}; choose another MODEL_DIR."


def check_shared(model_dir: str | Path) -> None:
    """Refuses a directory that is not one and the same for all processes.

    Call it on all of them, once the first has written into it.

    Raises:
        ValueError: some do not see what the first wrote; raised by all.
    """
    if jax.process_count() == 1:
        return
    # A network's file system may show a new file late.
    multihost_utils.sync_global_devices("ul2 the run directory is there")
    for _ in range(_LOOKS):
        if seen := (Path(model_dir) / CONFIG).is_file():
            break
        time.sleep(_LOOK_AGAIN_SECONDS)
    all_seen = np.asarray(multihost_utils.process_allgather(np.asarray(seen)))
    blind = np.flatnonzero(~all_seen)
    if blind.size:
        raise ValueError(
            f"process {', '.join(map(str, blind))} of {len(all_seen)} does not see "
            f"what process 0 wrote to {model_dir}; choose a MODEL_DIR on storage that "
            "all hosts share."
        )


def _changes(before_text: str, now_text: str) -> list[str]:
    """Returns how two configs differ in what a run is."""
    before, now = statements(before_text), statements(now_text)
    names = {name for name in {**before, **now} if "." in name}
    old, new = values(before), values(now)
    changes = {
        f"{_shown(name, {**before, **now})}: "
        f"{old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in names
        if not (_may_change(name, before) or _may_change(name, now))
        and old.get(name, _UNSAID.get(name)) != new.get(name, _UNSAID.get(name))
    }
    return sorted(changes)


def _may_change(name: str, bound: dict[str, str]) -> bool:
    """Returns whether a parameter is set by a macro that may change.

    What a macro may change it may change where the loop or the recipe read it; a
    schedule that reads TOTAL_STEPS is another schedule when that changes.
    """
    is_free = _shown(name, bound) in _MAY_CHANGE
    return is_free and name.startswith(_FREE_READERS)


def _shown(name: str, bound: dict[str, str]) -> str:
    """Returns what a person sets a parameter by: its macro, if it has one."""
    for _ in bound:
        value = bound.get(name, "")
        name = value[1:] if value.startswith("%") else name
    return name
