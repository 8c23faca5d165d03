"""`Corpus`: text under a mixture of denoisers, as a run's data."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ul2.batch import Batch, padding_fraction
from ul2.data.loader import Source
from ul2.data.moving_stream import MovingStream
from ul2.data.packing import pack
from ul2.data.run_data import Example, Layout, Measured, RunData
from ul2.data.source_kinds import source_kinds
from ul2.data.stream import Stream
from ul2.data.token_store import TokenStore
from ul2.denoising import preflight
from ul2.denoising.denoisers import Examples, Fit
from ul2.denoising.mixture import Mixture
from ul2.denoising.moving import MovingMixture
from ul2.denoising.preflight import Declared, Distribution
from ul2.vocab import MODES, Vocab

# Enough examples that a denoiser used once in a hundred is measured too.
_LEAST_EXAMPLES: Final = 2048
_MOST_EXAMPLES: Final = 65_536
_NOTEWORTHY_PADDING: Final = 0.03


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A token store, what is done to its text, and how batches are laid out.

    Attributes:
        store: the text.
        mixture: the denoisers.
        layout: of the batches.
        mode_convention: how R, S and X are written; None keeps the store's.
        pieces: returns the characters of every id, for denoisers with a rule.
    """

    store: TokenStore
    mixture: Mixture
    layout: Layout
    mode_convention: str | None = None
    pieces: Callable[[], Sequence[str]] | None = None

    @functools.cached_property
    def vocab(self) -> Vocab:
        """Of the store; it writes modes as the recipe says."""
        vocab = self.store.vocab
        if self.mode_convention is None:
            return vocab
        return vocab.with_mode_convention(self.mode_convention)

    @property
    def tokenizer(self) -> bytes:
        """The tokenizer of the store."""
        return self.store.tokenizer_path.read_bytes()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the denoisers."""
        return self.mixture.names

    def to_json(self) -> Any:
        """Returns the denoisers and their rates."""
        return dataclasses.asdict(self.mixture)

    def candidates(self) -> Mapping[str, RunData]:
        """Returns nothing: every denoiser has its mode."""
        return {}

    def stream(self, split: str) -> Stream:
        """Returns the examples of a split of the store.

        Held-out examples have a seed of their own, and a mixture that stands still:
        runs and steps are compared on the same.
        """
        layout = self.layout
        is_train = split == "train"
        fields: dict[str, Any] = {
            "split": self.store.split(split),
            "mixture": self.mixture if is_train else self.mixture.settled,
            "vocab": self.vocab,
            "inputs_length": layout.inputs_length,
            "targets_length": layout.targets_length,
            "batch_size": layout.batch_size,
            "seed": layout.seed if is_train else 0,
            "pieces": self.pieces,
        }
        moves = isinstance(fields["mixture"], MovingMixture)
        return MovingStream(**fields) if moves else Stream(**fields)

    def source(self, split: str) -> Source:
        """Returns this host's rows of every batch of a split."""
        stream = self.stream(split)
        packing = pack(
            stream,
            self.layout.architecture,
            shards=self.layout.shards,
            column_shards=self.layout.column_shards,
            examples_per_row=self.layout.examples_per_row,
        )
        text = self.store.fingerprint(split)
        return Source(stream, packing, self.layout.host, text)

    def held_out_batches(
        self, count: int | None
    ) -> Callable[[], Iterator[Batch]] | None:
        """Returns a function that makes the same held-out batches each time.

        Raises:
            ValueError: the held-out text is too short for one round of the mixture.
        """
        if count is None or count < 0:
            raise ValueError(f"EVAL_BATCHES={count} must be at least 0.")
        if not count:
            return None
        try:
            source = self.source("held_out")
        except ValueError as error:
            raise ValueError(f"{error} Or set EVAL_BATCHES = 0.") from None
        return lambda: (source[index] for index in range(count))

    def in_mode(self, mode: str | None) -> "Corpus":
        """Returns the same text with the same spans, announced by one mode or none.

        Whatever the mode, as much room is kept for it as the longest takes, so that
        each example is cut at the same tokens.
        """
        longest = max(len(self.vocab.mode(one)) for one in MODES)
        room = self.layout.inputs_length - longest + len(self.vocab.mode(mode))
        return dataclasses.replace(
            self,
            mixture=self.mixture.in_mode(mode),
            layout=dataclasses.replace(self.layout, inputs_length=room),
        )

    def held_out_by_source(
        self, count: int
    ) -> tuple[tuple[str, ...], Callable[[], Iterator[Batch]]]:
        """Returns names of sources, and held-out batches that are told apart by them.

        The batches are those of `held_out_batches`, but that `denoiser_ids` say from
        which source the text of an example is: that of the document it starts in.
        """
        source = self.source("held_out")
        documents = [
            [
                source.stream.split.document_of(start).source
                for index in range(len(self.mixture.denoisers))
                for start in source.stream.starts(index, plan).tolist()
            ]
            for plan in map(source.stream.plan, range(count))
        ]
        kinds = source_kinds([name for batch in documents for name in batch])
        names = tuple(dict.fromkeys(kinds.values()))
        ids = [
            np.array([names.index(kinds[name]) for name in batch], np.int32)
            for batch in documents
        ]

        def of_source(index: int) -> Batch:
            batch, places = source.with_places(index)
            segments = batch.decoder.segment_ids
            owners = ids[index][places]
            told = np.take_along_axis(owners, np.maximum(segments - 1, 0), axis=1)
            return batch._replace(
                denoiser_ids=np.where(segments > 0, told, -1).astype(np.int32)
            )

        return names, lambda: (of_source(index) for index in range(count))

    def measure(self) -> Measured:
        """Returns what the stream really does, measured over whole periods of it.

        Of a mixture that moves: at the beginning, half-way and at the end, each row
        with its `step`; distributions at the beginning.

        Returns:
            In the report: `denoisers` (see `preflight.Measurement`),
            `padding_fraction` of the packed rows, what the rows look like, and
            `warnings`.
        """
        source = self.source("train")
        stream, packing = source.stream, source.packing
        whole = Source(stream, packing)
        rows, paddings, distributions = [], [], dict[str, Distribution]()
        for stretch in _stretches(stream):
            made = _gather(stream, stretch.batches)
            measured = preflight.measure(
                stretch.declared, stretch.fits, made, stream.vocab
            )
            rows += [{**dataclasses.asdict(one), **stretch.label} for one in measured]
            paddings += [padding_fraction(whole[batch]) for batch in stretch.batches]
            distributions = distributions or {
                denoiser.name: preflight.distribution(denoiser, one, stream.vocab)
                for denoiser, one in zip(stretch.declared.denoisers, made, strict=True)
            }
        padding = float(np.mean(paddings))
        report = {
            "denoisers": rows,
            "padding_fraction": padding,
            "batch_size": stream.batch_size,
            "rows": packing.rows,
            "examples_per_row": packing.examples_per_row,
            "row_lengths": list(packing.widths),
            "batches_per_epoch": stream.batches_per_epoch,
            "sentinels": len(stream.vocab.sentinel_ids),
            "warnings": self._padding_warnings(padding),
        }
        return Measured(report, distributions)

    def declared(self, split: str, step: int) -> list[dict[str, Any]]:
        """Returns the share and the noise density of each denoiser at a step."""
        mixture = self.stream(split).mixture
        denoisers, shares = mixture.denoisers, mixture.shares
        if isinstance(mixture, MovingMixture):
            denoisers, shares = mixture.over(step, step + 1)
        return [
            {
                "name": denoiser.name,
                "mode": denoiser.mode,
                "share": share,
                "noise_density": denoiser.noise_density,
            }
            for denoiser, share in zip(denoisers, shares, strict=True)
        ]

    def verify(self) -> None:
        """Reads all of the store, and compares it with its checksums."""
        self.store.verify()

    def warnings(self) -> list[str]:
        """Returns a line on a store whose damage training cannot see."""
        if self.store.has_checksums:
            return []
        return [
            f"{self.store.path} was made before blocks of tokens had checksums, so "
            "damage to it shows in `ul2 check --verify_data` alone"
        ]

    def examples(self, split: str, batch: int) -> Iterator[Example]:
        """Yields the examples of a batch."""
        stream = self.stream(split)
        plan = stream.plan(batch)
        number = batch * stream.batch_size
        for index, made in enumerate(stream.examples(batch)):
            denoiser = stream.mixture.denoisers[index]
            for row, start in enumerate(stream.starts(index, plan)):
                place = stream.split.document_of(int(start))
                yield Example(
                    number=number,
                    denoiser=denoiser.name,
                    mode=denoiser.mode,
                    source=f"{place.source}:{place.record}",
                    inputs=made.inputs[row, : made.input_lengths[row]],
                    targets=made.targets[row, : made.target_lengths[row]],
                )
                number += 1

    def _padding_warnings(self, padding: float) -> list[str]:
        """Returns what to do where rows stay emptier than they need to."""
        if padding <= _NOTEWORTHY_PADDING:
            return []
        if isinstance(self.mixture, MovingMixture):
            return [
                f"{padding:.1%} of all columns are padding: rows are as wide as the "
                "fullest batch of any step needs"
            ]
        # Two rounds fill a row: mirrored pairs of the S-denoiser included.
        shards, batch_size = self.layout.shards, self.layout.batch_size
        unit = 2 * self.mixture.round_size * shards
        fuller = max(1, round(batch_size / unit)) * unit
        return [
            f"{padding:.1%} of all columns are padding; BATCH_SIZE={fuller} fills the "
            f"rows of {shards} parts better than {batch_size}"
        ]


def _gather(stream: Stream, batches: range) -> list[Examples]:
    """Returns the examples of some batches, by denoiser."""
    gathered: list[list[Examples]] = [[] for _ in stream.mixture.denoisers]
    for batch in batches:
        for kept, made in zip(gathered, stream.examples(batch), strict=True):
            kept.append(made)
    return [_concatenate(made) for made in gathered]


class _Stretch(NamedTuple):
    """Batches that are measured together."""

    batches: range
    declared: Declared
    fits: Sequence[Fit]
    label: dict[str, int]  # for the rows of the report


def _stretches(stream: Stream) -> list[_Stretch]:
    """Returns what to measure: whole periods, or three stretches of a way."""
    most = max(1, _MOST_EXAMPLES // stream.batch_size)
    if not isinstance(stream, MovingStream):
        period = len(stream.compositions)
        periods = max(1, math.ceil(_LEAST_EXAMPLES / (period * stream.batch_size)))
        batches = range(min(period * periods, most))
        return [_Stretch(batches, stream.mixture, stream.fits, {})]
    count = min(math.ceil(_LEAST_EXAMPLES / stream.batch_size), most)
    last = stream.mixture.last
    return [
        _Stretch(
            range(step, step + count),
            stream.mixture.over(step, step + count),
            stream.fits_at(step + count // 2),
            {"step": step},
        )
        for step in (0, last // 2, last)
    ]


def _concatenate(made: Sequence[Examples]) -> Examples:
    """Joins examples of one denoiser; rows of a suffix differ in length."""
    inputs = max(one.inputs.shape[1] for one in made)
    targets = max(one.targets.shape[1] for one in made)

    def widen(rows: NDArray[np.int32], width: int) -> NDArray[np.int32]:
        return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))

    return Examples(
        np.concatenate([widen(one.inputs, inputs) for one in made]),
        np.concatenate([one.input_lengths for one in made]),
        np.concatenate([widen(one.targets, targets) for one in made]),
        np.concatenate([one.target_lengths for one in made]),
    )
