"""What a run starts from, or goes on with, whatever the format of the checkpoint."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ul2.inference.modes import modes_of, trained_modes
from ul2.interop.opening import open_checkpoint
from ul2.interop.origins import of_checkpoint
from ul2.interop.vocabulary import open_foreign
from ul2.recipe import Recipe
from ul2.tasks.example_tokenization import tokenizer_of
from ul2.tasks.tokenizer import Tokenizer
from ul2.training import checkpoints, origin, run_directory
from ul2.training.checkpoints import Batches, Contract
from ul2.training.origin import Origin
from ul2.training.state import define_model
from ul2.vocab import Vocab


class Start(NamedTuple):
    """What a run begins with, or goes on with, that lies in a checkpoint.

    Attributes:
        origin: what a new run starts from; None for random parameters, and for a run
            that goes on.
        contract: of the checkpoint; None where there is none.
        modes: that it was trained with; None where nobody knows.
        tokenizer: for tasks; None where none is needed.
    """

    origin: Origin | None = None
    contract: Contract | None = None
    modes: tuple[str, ...] | None = None
    tokenizer: tuple[Tokenizer, Vocab] | None = None

    @property
    def model(self) -> dict[str, Any] | None:
        """What the checkpoint says of its model."""
        return self.contract.model if self.contract else None


def open_start(recipe: Recipe) -> Start:
    """Opens the checkpoint that a run goes on with, or starts from.

    Raises:
        ValueError: it is none or damaged, the directory of the run cannot be written
            to, or there is no tokenizer for tasks.
    """
    run_directory.check_writable(recipe.model_dir)
    convention = recipe.mode_convention
    if run_directory.has_checkpoint(recipe.model_dir):
        step = run_directory.newest_step(recipe.model_dir)
        own = origin.of_run(recipe.model_dir, step)
        modes = modes_of(own.contract.mixture)
        return Start(None, own.contract, modes, _open_tokenizer(recipe, own))
    if recipe.initial_checkpoint is None:
        return Start(tokenizer=_open_tokenizer(recipe, None))
    path = Path(recipe.initial_checkpoint)
    if run_directory.has_checkpoint(path):
        found = origin.of_run(path)
        modes = modes_of(found.contract.mixture)
    else:
        opened = open_checkpoint(
            path, vocab_file=recipe.vocab_file, mode_convention=convention
        )
        for line in opened.assumed:
            logging.warning("%s: assumed %s.", path, line)
        found, modes = of_checkpoint(opened), trained_modes(opened, None)
    return Start(found, found.contract, modes, _open_tokenizer(recipe, found))


def _open_tokenizer(
    recipe: Recipe, found: Origin | None
) -> tuple[Tokenizer, Vocab] | None:
    """Returns what makes the ids of tasks, and the vocabulary of the model.

    Raises:
        ValueError: there is none.
    """
    if not recipe.is_of_tasks:
        return None
    if found is None:
        if recipe.vocab_file is None:
            raise ValueError(
                "no tokenizer: set INITIAL_CHECKPOINT, or VOCAB to a SentencePiece "
                "model to train from scratch."
            )
        opened = open_foreign(Path(recipe.vocab_file))
        tokenizer, vocab = opened, opened.vocab
    else:
        if found.tokenizer is None:
            raise ValueError(
                f"{found.path}: no tokenizer lies beside the checkpoint; set VOCAB to "
                "the SentencePiece model it was trained with."
            )
        vocab = found.contract.vocab
        tokenizer = tokenizer_of(found.path, found.tokenizer, vocab)
    if recipe.mode_convention is not None:
        vocab = vocab.with_mode_convention(recipe.mode_convention)
    return tokenizer, vocab


def check_start(recipe: Recipe, config_text: str, vocab: Vocab, start: Start) -> None:
    """Refuses a run that cannot begin, or go on.

    The loop refuses most of it too, but by then the run's files would be replaced.

    Args:
        recipe: the run, with its model.
        config_text: its operative config.
        vocab: of its data.
        start: what it begins or goes on with.

    Raises:
        ValueError: the directory holds another run, or the checkpoint is beyond the
            last step, or of another model, vocabulary, or optimizer.
    """
    run_directory.check_same_run(recipe.model_dir, config_text)
    found = start.origin
    if found is not None:
        found.check(vocab, recipe.describe_model(vocab))
        if recipe.keeps_optimizer:
            model = define_model(recipe.make_model(vocab))
            optimizer = recipe.param_optimizer(recipe.schedule, model.param_axes)
            found.check_optimizer(jax.eval_shape(optimizer.init, model.abstract_params))
            found.check_schedule(recipe.schedule, recipe.settings.total_steps)
    elif start.contract is not None:
        saved = start.contract
        if saved.step > recipe.settings.total_steps:
            raise ValueError(
                f"{recipe.model_dir} holds step {saved.step}, beyond TOTAL_STEPS="
                f"{recipe.settings.total_steps}; raise it or choose another MODEL_DIR."
            )
        checkpoints.check_vocab(
            saved.vocab, vocab, what=f"checkpoint step {saved.step}"
        )
        checkpoints.check_position(saved, recipe.model_dir)


def seek_start(recipe: Recipe, start: Start, batches: Batches) -> None:
    """Moves the batches to where the run stopped, if it goes on.

    Raises:
        ValueError: it stopped in other data, or processes opened different ones.
    """
    _check_shared(batches)
    if start.origin is None and start.contract is not None:
        assert start.contract.data_position is not None, recipe.model_dir
        batches.seek(start.contract.data_position)


def _check_shared(batches: Batches) -> None:
    """Refuses data that are not the same in all processes; raised by all of them."""
    if jax.process_count() == 1:
        return
    text = json.dumps(batches.position(), sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if others.size:
        raise ValueError(
            f"process {', '.join(map(str, others))} of {len(digests)} has other data "
            "than process 0; give all the same gin files, and the same DATA on each "
            "host."
        )
