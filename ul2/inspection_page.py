"""A step's batch as a page: what the mixture declares and does, rows, masks, text.

Everything is read off the real stream and the model's own masks; see `ul2.inspection`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ul2 import inspection
from ul2.batch import Batch, Packed, padding_fraction
from ul2.data.run_data import Example, Measured
from ul2.html import pages
from ul2.html.charts import histogram
from ul2.html.elements import Child, Html, join, tag
from ul2.html.images import png_url
from ul2.html.pages import IMAGE_COLOURS, NUM_COLOURS, Section
from ul2.html.scales import percent
from ul2.tasks.tokenizer import Tokenizer

# Of a batch; more make a page that is slow to read.
MOST_EXAMPLES: Final = 112
_MOST_ROWS: Final = 24
_ROW_PIXELS: Final = 600
_EXAMPLE_PIXELS: Final = 128
_MOST_BARS: Final = 48
_ALONE: Final = "decoder alone"
_READS: Final = {
    "encoder": "encoder: inputs see inputs",
    "decoder": "decoder: a token sees those before it",
    "cross": "cross: targets see inputs",
    _ALONE: "decoder: inputs see each other, targets what is before them",
}


def spread_out(examples: Sequence[Example], most: int) -> list[Example]:
    """Returns at most so many examples, of all denoisers: a batch has them in turn."""
    places = np.linspace(0, len(examples) - 1, min(most, len(examples)))
    return [examples[place] for place in places.astype(int)]


class InspectionPage:
    """The page of one batch.

    Args:
        names: of denoisers or tasks, by `denoiser_ids`.
        tokenizer: of the data.
        measured: what `RunData.measure` returned.
    """

    def __init__(
        self, names: Sequence[str], tokenizer: Tokenizer, measured: Measured
    ) -> None:
        self._names, self._tokenizer = tuple(names), tokenizer
        self._measured, self._distributions = measured

    def make(
        self, step: int, split: str, batch: Batch, examples: Sequence[Example], of: int
    ) -> str:
        """Returns the page.

        Args:
            step: that is shown.
            split: of the data.
            batch: what a model reads at that step.
            examples: of the batch, those whose text is shown.
            of: how many it has.
        """
        architecture = "decoder-only" if batch.encoder is None else "encoder-decoder"
        head = join(
            tag(
                "p",
                f"The batch that a state of step {step:,} is updated on"
                if split == "train"
                else f"Batch {step:,} of {split}",
                f": {of:,} examples in {len(batch.targets):,} packed rows, "
                f"{padding_fraction(batch):.2%} padding, {architecture}.",
                class_="quiet",
            ),
            pages.legend([(pages.swatch(n), one) for n, one in enumerate(self._names)]),
        )
        sections = [
            Section("objective", "Declared and measured", self._objective()),
            Section("rows", "Packed rows", self._rows(batch)),
            Section("masks", "Attention masks of the first row", self._masks(batch)),
            Section("examples", "Examples", self._examples(examples, of)),
        ]
        title = f"ul2 inspect, step {step:,}"
        footer = "Made by ul2 inspect --html; the page needs no network."
        return pages.page(title, head, sections, footer)

    def _objective(self) -> Html:
        """Returns the numbers of `ul2 check`, and what they are the means of."""
        measured = self._measured
        rows = f"{measured['rows']:,} rows of {measured['examples_per_row']:,} examples"
        widths = " + ".join(f"{width:,}" for width in measured["row_lengths"])
        if not measured.get("denoisers"):
            head = ("task", "mode", "share", "examples", "mean inputs", "mean targets")
            body = [self._task(row) for row in measured["tasks"]]
            return join(tag("p", f"{rows}, {widths} columns."), pages.table(head, body))
        head = ("denoiser", "mode", "share", "density", "span length", "sentinels")
        lengths = ("text", "inputs", "targets", "of all targets")
        return join(
            tag(
                "p",
                "What ul2 check measures on the very stream that trains; what the "
                f"mixture declares stands in brackets. {rows}, {widths} columns.",
            ),
            pages.table(
                (*head, *lengths), [self._denoiser(r) for r in measured["denoisers"]]
            ),
            tag("h3", "Rates: examples of each denoiser"),
            tag("div", map(self._rate, measured["denoisers"]), class_="rates"),
            tag("h3", "Lengths of spans"),
            tag("div", map(self._span_lengths, measured["denoisers"]), class_="charts"),
            tag("h3", "Noise density of examples"),
            tag("div", map(self._densities, measured["denoisers"]), class_="charts"),
        )

    def _task(self, row: Mapping[str, Any]) -> list[Child]:
        return [
            self._named(row["name"]),
            row["mode"] or "none",
            percent(row["share"]),
            f"{row['examples']:,}",
            f"{row['mean_inputs']:.1f}",
            f"{row['mean_targets']:.1f}",
        ]

    def _denoiser(self, row: Mapping[str, Any]) -> list[Child]:
        def pair(measured: str, declared: str) -> Html:
            return join(measured, " ", tag("span", f"({declared})", class_="small"))

        return [
            self._named(row["name"]),
            row["mode"] or "none",
            pair(f"{row['measured_share']:.2%}", f"{row['rate']:.2%}"),
            pair(f"{row['measured_noise_density']:.4f}", f"{row['noise_density']:.4f}"),
            pair(
                f"{row['measured_mean_span_length']:.2f}",
                f"{row['mean_span_length']:.2f}",
            ),
            f"{row['sentinels_needed']:,}",
            f"{row['text_length']:,}",
            f"{row['measured_inputs_length']:.1f}",
            f"{row['measured_targets_length']:.1f}",
            percent(row["target_share"]),
        ]

    def _named(self, name: str) -> Html:
        return join(pages.swatch(self._colour(name)), " ", name)

    def _rate(self, row: Mapping[str, Any]) -> Html:
        """Returns a bar as long as the measured rate, with a line at the declared."""
        most = max(
            max(one["rate"], one["measured_share"])
            for one in self._measured["denoisers"]
        )
        colour = f"var(--c{self._colour(row['name'])})"
        wide = row["measured_share"] / most * 100
        return tag(
            "div",
            tag("span", row["name"]),
            tag(
                "span",
                tag("i", style=f"width:{wide:.2f}%;background:{colour}"),
                tag("b", style=f"left:{row['rate'] / most * 100:.2f}%"),
                class_="bar",
            ),
            tag("span", f"{row['measured_share']:.2%} (declared {row['rate']:.2%})"),
        )

    def _span_lengths(self, row: Mapping[str, Any]) -> Html:
        lengths = self._distributions[row["name"]].span_lengths
        mean = row["measured_mean_span_length"]
        return histogram(
            row["name"],
            f"tokens per span, {len(lengths):,} spans, mean {mean:.4g}",
            _counted(lengths),
            colour=self._colour(row["name"]),
            declared=row["mean_span_length"],
        )

    def _densities(self, row: Mapping[str, Any]) -> Html:
        densities = self._distributions[row["name"]].noise_densities
        mean = row["measured_noise_density"]
        return histogram(
            row["name"],
            f"noise tokens / tokens of text, mean {mean:.4g}",
            _in_hundredths(densities),
            colour=self._colour(row["name"]),
            declared=row["noise_density"],
            within=(0.0, 1.0),
        )

    def _colour(self, name: str) -> int:
        return self._names.index(name) % NUM_COLOURS if name in self._names else 0

    def _rows(self, batch: Batch) -> Html:
        """Returns the rows as strips, a segment per example."""
        sides = [("decoder", batch.decoder)]
        if batch.encoder is not None:
            sides.insert(0, ("encoder", batch.encoder))
        shown = min(len(batch.targets), _MOST_ROWS)
        text = (
            "A row holds several examples back to back, as wide as they are long; "
            "hatched columns are padding. Example n of an encoder row is read by "
            "example n of the decoder row beside it."
        )
        if shown < len(batch.targets):
            text += f" The first {shown} of {len(batch.targets):,} rows."
        owners = _owners(batch)
        return join(
            tag("p", text),
            [
                tag(
                    "div",
                    tag("h3", f"{name}, {side.tokens.shape[1]:,} columns"),
                    [self._strip(side, row, owners[row]) for row in range(shown)],
                )
                for name, side in sides
            ],
        )

    def _strip(self, side: Packed, row: int, owners: NDArray[np.int32]) -> Html:
        places = []
        for number, columns in enumerate(side.columns[row]):
            length, name = int((columns >= 0).sum()), self._names[owners[number]]
            colour = owners[number] % NUM_COLOURS
            places.append(
                tag(
                    "span",
                    name,
                    style=f"flex:{length} 1 0;background:var(--s{colour});"
                    f"border-color:var(--c{colour})",
                    title=f"row {row}, example {number}: {name}, {length} tokens",
                )
            )
        empty = int((side.segment_ids[row] == 0).sum())
        if empty:
            places.append(
                tag(
                    "span",
                    class_="empty",
                    style=f"flex:{empty} 1 0",
                    title=f"{empty} columns of padding",
                )
            )
        return tag(
            "div", tag("b", row), tag("div", places, class_="strip"), class_="row"
        )

    def _masks(self, batch: Batch) -> Html:
        """Returns the masks of the first row: of all of it, and of single examples."""
        owners = _owners(batch)[0]
        views = inspection.views(batch)
        wholes = [
            tag(
                "figure",
                tag("figcaption", _READS[view.name if len(views) > 1 else _ALONE]),
                _image(view.of_row(owners % NUM_COLOURS + 1, _ROW_PIXELS), view.name),
            )
            for view in views
        ]
        first: dict[int, int] = {}
        for number, owner in enumerate(owners.tolist()):
            first.setdefault(owner, number)
        singles = [
            tag(
                "figure",
                tag("figcaption", self._names[owner]),
                tag("div", (self._view(view, number, owner) for view in views)),
            )
            for owner, number in sorted(first.items())
        ]
        return join(
            tag(
                "p",
                "A line is a query, a column a key; colour is where a query sees a "
                "key. These are the masks that the model itself makes of this batch: "
                "attention runs inside one example at a time, so blocks never meet.",
            ),
            tag("div", wholes, class_="masks"),
            tag("h3", "One example of each denoiser"),
            tag("div", singles, class_="views"),
        )

    def _view(self, view: inspection.View, number: int, owner: int) -> Html:
        queries, keys = view.lengths(number)
        cells = view.of_example(number, _EXAMPLE_PIXELS)
        return tag(
            "span",
            _image(cells * (owner % NUM_COLOURS + 1), f"{view.name}, {number}"),
            f"{view.name}, {queries} by {keys}",
        )

    def _examples(self, examples: Sequence[Example], of: int) -> Html:
        kinds = [
            name for name in self._names if any(e.denoiser == name for e in examples)
        ]
        buttons = [tag("button", "all", aria_pressed="true")]
        buttons += [
            tag("button", name, data_kind=name, aria_pressed="false") for name in kinds
        ]
        some = f"{len(examples):,} of {of:,}" if len(examples) < of else f"All {of:,}"
        return join(
            tag(
                "p",
                f"{some} examples. What the denoiser masked has its colour; a number "
                "is a sentinel, and what it stands for lights up under the pointer.",
            ),
            tag("div", buttons, class_="filter", data_cards="example"),
            map(self._card, examples),
        )

    def _card(self, example: Example) -> Html:
        colour = self._colour(example.denoiser)
        vocab = self._tokenizer.vocab
        spans = int(np.isin(example.targets, vocab.sentinel_ids).sum())
        chip = f"background:var(--s{colour})"
        sides = _Sides(example, self._tokenizer, colour)
        return tag(
            "article",
            tag(
                "div",
                tag("b", f"#{example.number:,}"),
                tag("span", example.denoiser, class_="chip", style=chip),
                tag("span", f"mode {example.mode or 'none'}", class_="chip mode"),
                tag(
                    "span",
                    f"inputs {len(example.inputs):,} tokens, "
                    f"targets {len(example.targets):,}"
                    + (f", {spans:,} sentinels" if spans else ""),
                ),
                tag("span", example.source, class_="quiet"),
                class_="head",
            ),
            [
                tag(
                    "div",
                    tag("b", name),
                    tag("div", text, class_="text clip"),
                    class_="side",
                )
                for name, text in (
                    ("text", sides.text()),
                    ("inputs", sides.inputs()),
                    ("targets", sides.targets()),
                )
            ],
            class_="card example",
            data_kind=example.denoiser,
        )


class _Sides:
    """The two sides of an example, and the text it was made of, as HTML."""

    def __init__(self, example: Example, tokenizer: Tokenizer, colour: int) -> None:
        vocab = tokenizer.vocab
        self._numbers = {token: n for n, token in enumerate(vocab.sentinel_ids)}
        self._modes = {token for ids in vocab.mode_ids.values() for token in ids}
        self._colour = colour
        self._inputs = list(inspection.pieces(example.inputs, tokenizer))
        self._targets = list(inspection.pieces(example.targets, tokenizer))

    def text(self) -> Html:
        """Returns the text, what is masked in colour."""
        spans: dict[int | None, list[str]] = {}
        number: int | None = None
        for token, piece in self._targets:
            number = self._numbers.get(token, number) if token is not None else number
            if token is None:
                spans.setdefault(number, []).append(piece)
        shown: list[Child] = []
        for token, piece in self._inputs:
            if token is None:
                shown.append(piece)
            elif token in self._numbers:
                number = self._numbers[token]
                shown.append(self._span("".join(spans.get(number, ())), number))
        return join(*shown, self._span("".join(spans.get(None, ())), None))

    def inputs(self) -> Html:
        """Returns what the model reads."""
        return join(
            piece if token is None else self._special(token, piece)
            for token, piece in self._inputs
        )

    def targets(self) -> Html:
        """Returns what it is to write."""
        shown: list[Child] = []
        number: int | None = None
        for token, piece in self._targets:
            if token is None:
                shown.append(self._span(piece, number))
            else:
                number = self._numbers.get(token, number)
                shown.append(self._special(token, piece))
        return join(*shown)

    def _span(self, piece: str, number: int | None) -> Html:
        if not piece:
            return Html("")
        style = f"background:var(--s{self._colour})"
        span = None if number is None else str(number)
        return tag("span", piece, class_="span", style=style, data_span=span)

    def _special(self, token: int, piece: str) -> Html:
        if token in self._numbers:
            number = str(self._numbers[token])
            style = f"background:var(--c{self._colour});color:var(--paper)"
            return tag(
                "span",
                number,
                class_="sentinel",
                style=style,
                data_span=number,
                title=piece,
            )
        return tag("span", piece, class_="modeword" if token in self._modes else "end")


def _owners(batch: Batch) -> NDArray[np.int32]:
    """Returns [B, N]: the denoiser of each example of each row."""
    columns = batch.decoder.columns
    last = np.take_along_axis(columns, (columns >= 0).sum(-1, keepdims=True) - 1, -1)
    rows = np.arange(len(columns))[:, None]
    owners: NDArray[np.int32] = batch.denoiser_ids[rows, last[..., 0]]
    return owners


def _image(cells: NDArray[Any], name: str) -> Html:
    pixels = [row.tobytes() for row in cells.astype(np.uint8)]
    return tag("img", src=png_url(pixels, IMAGE_COLOURS), alt=name, class_="mask")


def _counted(lengths: NDArray[np.int64]) -> list[tuple[float, float, float]]:
    """Returns bars of whole numbers: one for each length, or for several."""
    low, high = int(lengths.min(initial=1)), int(lengths.max(initial=1))
    wide = -(-(high - low + 1) // _MOST_BARS)
    counts = np.bincount((lengths - low) // wide)
    return [
        (low + n * wide - 0.5, low + (n + 1) * wide - 0.5, count / max(len(lengths), 1))
        for n, count in enumerate(counts.tolist())
    ]


def _in_hundredths(densities: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """Returns bars a hundredth wide, with a round number in the middle of each."""
    counts = np.bincount(np.rint(densities * 100).astype(int))
    first = int(np.argmax(counts > 0)) if counts.any() else 0
    return [
        ((n - 0.5) / 100, (n + 0.5) / 100, int(counts[n]) / max(len(densities), 1))
        for n in range(first, len(counts))
    ]
