"""Opens a checkpoint of any format that is read here."""

import dataclasses
from pathlib import Path

from ul2.interop import huggingface, own, presets, t5x
from ul2.interop.checkpoint import Checkpoint
from ul2.spelling import did_you_mean


def open_checkpoint(
    path: str | Path,
    *,
    step: int | None = None,
    preset: str | None = None,
    activation: str | None = None,
    vocab_file: str | Path | None = None,
    mode_convention: str | None = None,
) -> Checkpoint:
    """Finds out what is at a path and opens it; no array is read yet.

    Args:
        path: a run of ours, a T5X checkpoint or a directory of them, or a directory
            that Hugging Face's `save_pretrained` wrote.
        step: which checkpoint, where there are several; the newest by default.
        preset: what it must be; see `ul2.interop.presets`.
        activation: of a T5X checkpoint, which does not hold it.
        vocab_file: the SentencePiece model that it was trained with.
        mode_convention: how modes are written; a key of `ul2.vocab.MODE_CONVENTIONS`.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it is not what it must be.
    """
    path = Path(path).expanduser()
    vocab_file = None if vocab_file is None else Path(vocab_file)
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        meant = did_you_mean(path.name, [one.name for one in beside])
        raise ValueError(
            f"no checkpoint at {path}{meant}; give a directory (models of a hub or a "
            "bucket must be downloaded first)."
        )
    if t5x.is_here(path):
        return t5x.read(
            path,
            step=step,
            preset=preset,
            activation=activation,
            vocab_file=vocab_file,
            mode_convention=mode_convention,
        )
    if own.is_here(path):
        found = own.read(path, step=step)
    elif huggingface.is_here(path):
        found = huggingface.read(
            path, vocab_file=vocab_file, mode_convention=mode_convention
        )
    else:
        raise ValueError(
            f"{path} holds no checkpoint of ul2, T5X (`checkpoint`) or Hugging Face "
            "(`config.json`); a StableHLO export is for serving alone."
        )
    if preset is not None:
        presets.check(preset, found.architecture, found.config)
        found = dataclasses.replace(found, preset=preset)
    if activation is not None and activation != found.config.activation:
        raise ValueError(
            f"--activation {activation}: {path} says {found.config.activation} itself."
        )
    return found
