"""Batches, ahead of time: this host's rows, prefetched, with a position to save.

Batch s is a function of (seed, s), so the position is one number. It does not depend
on the number of hosts, and going there reads nothing.
"""

import dataclasses
from typing import Any, Final, Protocol

import grain
import numpy as np
from numpy.typing import NDArray

from ul2.batch import ALL_ROWS, Batch, HostRows
from ul2.data.features import to_batch
from ul2.data.packing import Packing
from ul2.data.stream import Stream
from ul2.denoising.moving import MovingMixture

# Of the order of the examples: a position saved under another one means other text.
VERSION: Final = 1
# How a mixture moves, in a position; not there for one that does not.
MOVES: Final = "moves"
_FOR_EVER: Final = 2**48


class BatchSource(Protocol):
    """This host's rows of every batch, by number."""

    def __getitem__(self, batch: int) -> Batch:
        """Returns one batch."""

    def identity(self) -> dict[str, Any]:
        """Returns what makes these batches these, as JSON values.

        A position in them means nothing in others.
        """


@dataclasses.dataclass(frozen=True)
class Source:
    """This host's rows of every batch of a stream, by number.

    Attributes:
        stream: the examples.
        packing: their rows.
        host: which of them this host reads.
        text: fingerprint of the text; a saved position is refused in another one.
    """

    stream: Stream
    packing: Packing
    host: HostRows = ALL_ROWS
    text: str = ""

    def __post_init__(self) -> None:
        self.host.check(self.packing.rows)

    def __getitem__(self, batch: int) -> Batch:
        return self.with_places(batch)[0]

    def with_places(self, batch: int) -> tuple[Batch, NDArray[np.int64]]:
        """Returns a batch, and [rows, examples per row]: which examples stand where.

        They are numbered in the order of `stream.examples`.
        """
        dealt, shape = self.packing.deal_batch(self.stream.plan(batch))
        mine: NDArray[np.int64] = self.host.of(dealt)
        examples = self.stream.examples(batch)
        return to_batch(examples, mine, shape, self.stream.vocab), mine

    def identity(self) -> dict[str, Any]:
        """Returns the seed, the lengths, the mixture and the text."""
        stream = self.stream
        mixture = stream.mixture
        moves = {}
        if isinstance(mixture, MovingMixture):
            moves = {MOVES: mixture.to_json()}
        return {
            **moves,
            "version": VERSION,
            "seed": stream.seed,
            "batch_size": stream.batch_size,
            "inputs_length": stream.inputs_length,
            "targets_length": stream.targets_length,
            "denoisers": [
                list(dataclasses.astuple(denoiser)) for denoiser in mixture.denoisers
            ],
            "rates": list(mixture.counts),
            "cap_spans": mixture.cap_spans,
            "tokens": stream.split.num_tokens,
            "text": self.text,
        }


@dataclasses.dataclass(frozen=True)
class _Endless:
    """Batches as grain reads them: it asks how many there are."""

    batches: BatchSource

    def __len__(self) -> int:
        return _FOR_EVER

    def __getitem__(self, batch: int) -> Batch:
        return self.batches[batch]


class Loader:
    """An endless iterator over batches that prefetches, and can be moved.

    Args:
        source: what to read.
        prefetch: batches to hold ready.
    """

    def __init__(self, source: BatchSource, *, prefetch: int = 4) -> None:
        self._source = source
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        self._iterator = iter(
            grain.MapDataset.source(_Endless(source)).to_iter_dataset(options)
        )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        batch: Batch = next(self._iterator)
        return batch

    def position(self) -> dict[str, Any]:
        """Returns where the next batch is, and of which batches."""
        return {
            **self._source.identity(),
            "batch": self._iterator.get_state()["next_index"],
        }

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a position that `position` returned.

        Raises:
            ValueError: it is a position in another stream, or none.
        """
        batch = position.get("batch")
        if type(batch) is not int or not 0 <= batch < _FOR_EVER:
            raise ValueError(
                f"the checkpoint's data position is damaged: batch {str(batch)[:40]}."
            )
        here = self._source.identity()
        other = {
            key: (position.get(key), here.get(key))
            for key in (*here, *({MOVES} - here.keys()))
            if position.get(key) != here.get(key)
        }
        if other:
            changes = ", ".join(f"{k}: {a} -> {b}" for k, (a, b) in other.items())
            cure = "restore the old values or start in a new MODEL_DIR"
            if other.keys() <= {"text", "tokens"}:
                cure = (
                    "DATA is not what the run has read so far (changed, appended to, "
                    "or tokenized again): set it to the old store, or start in a new "
                    "MODEL_DIR"
                )
            raise ValueError(
                f"the checkpoint's data position is of another stream ({changes}); "
                f"{cure}."
            )
        self._iterator.set_state({"next_index": batch})
