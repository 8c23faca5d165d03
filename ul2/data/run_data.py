"""What a run learns from, whatever that is: text under a mixture, or tasks.

`Corpus` makes examples out of text, for pre-training; `Supervised` has those of tasks,
for fine-tuning. Whoever trains, checks or inspects asks for `RunData` and never which
of the two it is.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ul2.batch import ALL_ROWS, Batch, HostRows
from ul2.data.loader import BatchSource
from ul2.denoising.preflight import Distribution
from ul2.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How long examples are, and how batches of them are laid out.

    Attributes:
        architecture: a key of `models.architectures.ARCHITECTURES`.
        inputs_length: longest inputs of an example, mode and EOS included.
        targets_length: longest targets of an example, EOS included.
        batch_size: examples per batch, over all devices.
        seed: with the number of a batch, the only source of chance.
        shards: the rows of a batch divide into this many equal parts.
        column_shards: the columns of a packed row of text do, into this many.
        host: which rows to read.
        examples_per_row: None packs rows as full as is worth it.
    """

    architecture: str
    inputs_length: int
    targets_length: int
    batch_size: int
    seed: int
    shards: int = 1
    column_shards: int = 1
    host: HostRows = ALL_ROWS
    examples_per_row: int | None = None


class Example(NamedTuple):
    """One example of a run, and where it came from."""

    number: int  # in the whole run
    denoiser: str  # or task
    mode: str | None
    source: str  # file:record of the document in which it starts, or split:number
    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


class Measured(NamedTuple):
    """What batches really hold."""

    report: dict[str, Any]  # of `ul2 check`
    distributions: Mapping[str, Distribution]  # by denoiser; empty of tasks


class RunData(Protocol):
    """Batches for ever, held-out ones, and what there is to say about them."""

    @property
    def vocab(self) -> Vocab:
        """Where the ids of the examples live."""

    @property
    def tokenizer(self) -> bytes:
        """The SentencePiece model that made the ids."""

    @property
    def names(self) -> Sequence[str]:
        """Index i names `denoiser_ids == i`."""

    def to_json(self) -> Any:
        """Returns what checkpoints say of the objective."""

    def candidates(self) -> "Mapping[str, RunData]":
        """Returns the same data in each mode that it is to be chosen from, by name.

        Empty where nothing is left to choose; otherwise it makes no batches itself.
        """

    def source(self, split: str) -> BatchSource:
        """Returns this host's rows of every batch of `train` or `held_out`."""

    def held_out_batches(
        self, count: int | None
    ) -> Callable[[], Iterator[Batch]] | None:
        """Returns a function that makes the same held-out batches each time.

        Args:
            count: how many batches; 0 for no evaluation; None for every example once,
                where there is an end to them.
        """

    def measure(self) -> Measured:
        """Returns what the batches really hold."""

    def verify(self) -> None:
        """Reads all there is, and compares it with its checksums.

        Raises:
            ValueError: a file is damaged; names it.
        """

    def warnings(self) -> list[str]:
        """Returns what a person should know before training on it, a line each."""

    def declared(self, split: str, step: int) -> list[dict[str, Any]]:
        """Returns name, mode and share of each denoiser or task at a step."""

    def examples(self, split: str, batch: int) -> Iterator[Example]:
        """Yields the examples of a batch, for `ul2 inspect`."""
