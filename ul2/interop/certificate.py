"""The card of an export: where it came from, and that it is the same model.

After a conversion the export is opened as anybody would open it, and read against its
source: every parameter, piece by piece, and the logits of one batch. The card is JSON
beside the export; whoever converts it again finds out whether a byte has changed since.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ul2 import json_files
from ul2.batch import Batch, one_per_row
from ul2.interop import streamed
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.tensors import Tensor, finite_pieces

CARD: Final = "conversion.json"
_MAX_CARD_BYTES: Final = 2**26
_ROWS: Final = ((23, 11), (14, 17))  # lengths of inputs and targets, of each example


def arrays(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Returns shape, dtype and hash of every parameter.

    Raises:
        ValueError: one cannot be read, or holds NaN or infinity.
    """
    return {
        path: {
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "sha256": _digest(tensor),
        }
        for path, tensor in checkpoint.params.items()
    }


def compare(source: Checkpoint, export: Checkpoint) -> None:
    """Reads every parameter of an export against its source.

    Raises:
        ValueError: one differs, beyond being rounded to the export's dtype.
    """
    pairs = [(path, source.params[path], one) for path, one in export.params.items()]
    for path, before, after in pairs:
        for region in after.regions():
            wanted = before.read(region).astype(after.dtype)
            if not np.array_equal(wanted, after.read(region)):
                raise ValueError(
                    f"{path} is another one in the export ({after.name}) than in its "
                    f"source ({before.name}); was {source.path} changed meanwhile?"
                )


def max_logit_difference(source: Checkpoint, export: Checkpoint) -> float:
    """Returns how far the logits of two checkpoints are apart, on the same batch."""
    batch = probe(source)
    before, after = (streamed.logits(one, batch) for one in (source, export))
    valid = np.asarray(batch.decoder.segment_ids) > 0
    return float(np.abs(before - after)[valid].max())


def probe(checkpoint: Checkpoint) -> Batch:
    """Returns a batch of random tokens for a checkpoint: two examples, some padding."""
    rng = np.random.default_rng(0)
    size = checkpoint.vocab.size
    # Few ids: each is a row that has to be read from the file.
    ids = rng.integers(2, size, 24)
    inputs = [rng.choice(ids, length).tolist() for length, _ in _ROWS]
    targets = [rng.choice(ids, length).tolist() for _, length in _ROWS]
    start = checkpoint.vocab.start_id
    if checkpoint.architecture == "encoder_decoder":
        shifted = [[start, *row[:-1]] for row in targets]
        return _batch(one_per_row(inputs), one_per_row(shifted), [0, 0])
    rows = [[*a, *b] for a, b in zip(inputs, targets, strict=True)]
    return _batch(None, one_per_row(rows), [len(row) for row in inputs])


def _batch(encoder: Any, decoder: Any, prefix_lengths: list[int]) -> Batch:
    """Returns a batch without a loss."""
    nothing = np.zeros_like(decoder.tokens)
    return Batch(
        encoder=encoder,
        decoder=decoder,
        targets=nothing,
        loss_weights=nothing.astype(np.float32),
        denoiser_ids=nothing,
        prefix_lengths=np.array(prefix_lengths, np.int32)[:, None],
    )


def write_card(
    directory: Path, report: Mapping[str, Any], export: Checkpoint | None
) -> None:
    """Writes the card of an export: its report, and shape and hash of every array."""
    card = {**report, "arrays": {} if export is None else arrays(export)}
    (directory / CARD).write_text(json.dumps(card, indent=1))


def check_card(checkpoint: Checkpoint) -> None:
    """Refuses an export of ours that is not what its card says any more.

    Raises:
        ValueError: an array has changed; names it.
    """
    file = checkpoint.path / CARD
    if not file.is_file():
        return
    try:
        carded = json_files.read(file, most_bytes=_MAX_CARD_BYTES)["arrays"]
        wanted = {path: entry["sha256"] for path, entry in carded.items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{file} is damaged; remove it to do without.") from None
    for path, tensor in checkpoint.params.items():
        if path in wanted and _digest(tensor) != wanted[path]:
            raise ValueError(
                f"{tensor.name} has changed since {checkpoint.path} was written: its "
                f"hash is not the one in {CARD}; copy it again."
            )


def _digest(tensor: Tensor) -> str:
    """Returns a hash of all pieces, in order."""
    digest = hashlib.sha256()
    for _, block in finite_pieces(tensor):
        digest.update(np.ascontiguousarray(block).view(np.uint8).data)
    return digest.hexdigest()


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what a checkpoint is, as JSON values."""
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "preset": checkpoint.preset,
        "architecture": checkpoint.architecture,
        "config": checkpoint.config.to_json(),
        "step": checkpoint.step,
        "optimizer_state": checkpoint.moments is not None,
        "assumed": list(checkpoint.assumed),
    }
