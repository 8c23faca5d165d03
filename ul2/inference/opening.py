"""Opens a checkpoint of any format as a model that reads and writes text."""

import dataclasses
import functools
import hashlib
import re
from pathlib import Path
from typing import Any, Final, Literal

from jax.sharding import Mesh

from ul2.decoding.text_model import TextModel
from ul2.inference.modes import trained_modes
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import build
from ul2.interop.opening import open_checkpoint
from ul2.sharding.mesh import make_mesh
from ul2.tasks.tokenizer import Tokenizer
from ul2.training import checkpoints

# Norms and biases tell two checkpoints of a model apart; larger arrays are not read.
_SMALL: Final = 2**20
_INPUTS_LENGTH: Final = re.compile(
    r"^(?:INPUTS_LENGTH|[\w.]+\.inputs_length) = (\d+)$", re.MULTILINE
)


def open_model(
    path: str | Path,
    *,
    step: int | None = None,
    mesh: str | Mesh = "auto",
    dtype: Literal["float32", "bfloat16"] | None = None,
    **options: Any,
) -> TextModel:
    """Opens a trained model, whatever the format.

    Args:
        path: a run of ours, a T5X checkpoint, or a directory of Hugging Face.
        step: which checkpoint, where there are several; the newest by default.
        mesh: where to put it; see `ul2.sharding.mesh`.
        dtype: of the computation; None for what the checkpoint says.
        **options: those of `open_checkpoint`: `preset`, `activation`, `vocab_file`,
            `mode_convention`.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or no tokenizer is known.
    """
    checkpoint = open_checkpoint(path, step=step, **options)
    objective, inputs_length = None, None
    if checkpoint.format == "ul2":
        contract = checkpoints.read_contract(path, step)
        objective = contract.mixture
        inputs_length = _inputs_length(contract.config_text)
        checkpoint = _with_options(checkpoint, **options)
    tokenizer = _open_tokenizer(checkpoint)
    if dtype is not None:
        config = dataclasses.replace(checkpoint.config, dtype=dtype)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    placed = make_mesh(mesh) if isinstance(mesh, str) else mesh
    return TextModel(
        model=build(checkpoint, placed),
        tokenizer=tokenizer,
        vocab=checkpoint.vocab,
        trained_modes=trained_modes(checkpoint, objective),
        inputs_length=inputs_length,
        identity=_identity(checkpoint),
        mesh=placed,
    )


def _with_options(
    checkpoint: Checkpoint,
    *,
    vocab_file: str | Path | None = None,
    mode_convention: str | None = None,
    **others: Any,
) -> Checkpoint:
    """Returns a checkpoint of ours with another tokenizer file, or other modes."""
    del others
    if vocab_file is not None:
        try:
            tokenizer = Path(vocab_file).read_bytes()
        except OSError as error:
            raise ValueError(
                f"cannot read --vocab {vocab_file}: {error.strerror}."
            ) from None
        checkpoint = dataclasses.replace(checkpoint, tokenizer=tokenizer)
    if mode_convention is not None:
        vocab = checkpoint.vocab.with_mode_convention(mode_convention)
        checkpoint = dataclasses.replace(checkpoint, vocab=vocab)
    return checkpoint


def _open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Opens the tokenizer as it was when the checkpoint was trained."""
    vocab = checkpoint.vocab
    if checkpoint.tokenizer is None:
        raise ValueError(
            f"{checkpoint.path}: no tokenizer lies beside the checkpoint; give --vocab "
            "the SentencePiece model it was trained with."
        )
    read = functools.partial(
        Tokenizer,
        checkpoint.path,
        checkpoint.tokenizer,
        mode_convention=vocab.mode_convention,
    )
    plain = read(extra_sentinels=0)
    if plain.sha256 != vocab.tokenizer_sha256:
        raise ValueError(
            f"the tokenizer of {checkpoint.path} is {plain.sha256}, but the vocabulary "
            f"came from {vocab.tokenizer_sha256}; put that file back."
        )
    added = vocab.size - plain.vocab.size
    return read(extra_sentinels=added) if added else plain


def _inputs_length(config_text: str) -> int | None:
    """Returns the longest inputs that a run was trained on, if its config says."""
    found = _INPUTS_LENGTH.search(config_text)
    return int(found[1]) if found else None


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what tells a checkpoint from others, and from itself when it changes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.params.items()):
        if tensor.size <= _SMALL:
            digest.update(name.encode() + tensor.read().tobytes())
    return {
        "checkpoint": str(checkpoint.path.resolve()),
        "step": checkpoint.step,
        "parameters": digest.hexdigest(),
    }
