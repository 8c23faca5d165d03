"""Draws the pictures of the documentation, from what the code really does.

python scripts/docs_pictures.py [FOLDER]     docs/pictures, unless another is named
"""

import html
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ul2.data.packing import pack
from ul2.data.stream import MixtureBatches
from ul2.denoising import spans
from ul2.denoising.denoisers import Denoiser, Fit
from ul2.denoising.mixture import S_DENSITIES, Mixture, named
from ul2.models.masks import Causal, Keys, Prefix
from ul2.vocab import MODE_CONVENTIONS, Vocab

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LENGTH = 512  # of inputs and of targets
COLOURS = {"R": "#4477aa", "S": "#228833", "X": "#cc6677"}
KEPT, PALE, INK = "#d5d9de", "#eef0f2", "#222222"
WIDTH = 760
# Every mode one id, and sentinels enough for anything drawn here.
VOCAB = Vocab(
    size=4000,
    padded_size=4096,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=tuple(range(1000, 2000)),
    mode_ids={
        text: (10 + i,)
        for texts in MODE_CONVENTIONS.values()
        for i, text in enumerate(texts.values())
    },
    mode_convention="paper",
    tokenizer_sha256="",
)


def rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    """Returns a bar."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{fill}"/>'
    )


def text(x: float, y: float, what: str, anchor: str = "start", more: str = "") -> str:
    """Returns one piece of text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{INK}" {more}>'
        f"{html.escape(what)}</text>"
    )


def picture(title: str, height: float, body: Iterable[str]) -> str:
    """Returns the whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" font-family="sans-serif" font-size="12">'
    )
    name = f"<title>{html.escape(title)}</title>"
    return "\n".join(
        [head, name, rect(0, 0, WIDTH, height, "white"), *body, "</svg>\n"]
    )


def _fits(mixture: Mixture, length: int = LENGTH) -> list[tuple[Denoiser, Fit]]:
    fits = mixture.fit(length, length, VOCAB)
    return list(zip(mixture.denoisers, fits, strict=True))


def denoisers() -> str:
    """Draws one example of each denoiser: what is kept, what goes to the targets."""
    left, scale, body = 110, 0.48, []
    for row, (denoiser, fit) in enumerate(_fits(named("ul2"))):
        y = 34 + row * 34
        rng = np.random.default_rng(row)
        lengths = spans.place(
            denoiser.placement, rng, 1, fit.text, fit.noise, fit.spans
        )[0]
        body.append(text(left - 10, y + 13, denoiser.name, "end"))
        x = float(left)
        for index, count in enumerate(lengths):
            fill = COLOURS[denoiser.mode or "R"] if index % 2 else KEPT
            body.append(rect(x, y, count * scale, 18, fill))
            x += count * scale
        noise = int(lengths[1::2].sum())
        body.append(text(x + 8, y + 13, f"{noise} of {fit.text}"))
    legend = ((KEPT, "kept: inputs"), *((COLOURS[m], f"{m}: targets") for m in "RSX"))
    for index, (fill, what) in enumerate(legend):
        body += [rect(left + index * 120, 8, 12, 12, fill)]
        body += [text(left + 18 + index * 120, 18, what)]
    return picture("One text under each of UL2's seven denoisers at 512/512", 276, body)


def s_denoiser() -> str:
    """Draws how long S's suffix is under both definitions, over many draws."""
    draws, bins, body = 200_000, 32, []
    left, base, height = 60, 190, 150
    for index, name in enumerate(S_DENSITIES):
        mixture = named("ul2", s_denoiser=name)
        denoiser = next(one for one in mixture.denoisers if one.is_suffix)
        fit = denoiser.fit(LENGTH, LENGTH, len(VOCAB.mode("S")))
        rng = np.random.default_rng(1)
        drawn = spans.place("suffix", rng, draws, fit.text, fit.noise, 1)[:, 1]
        counts, _ = np.histogram(drawn, bins, (0, LENGTH))
        x, step = left + index * 350, 300 / bins
        for place, count in enumerate(counts):
            tall = height * count / draws * bins / 2.2
            at = x + place * step
            body.append(rect(at, base - tall, step - 1, tall, COLOURS["S"]))
        body.append(rect(x, base, 300, 1, INK))
        for value in (0, 128, 256, 384, 512):
            at = x + 300 * value / LENGTH
            body.append(text(at, base + 16, str(value), "middle"))
        mean = float(drawn.mean())
        at = x + 300 * mean / LENGTH
        body.append(rect(at, 30, 1, base - 30, INK))
        body.append(text(at + 5, 40, f"mean {mean:.0f}"))
        label = f"S_DENOISER = '{name}'"
        body.append(text(x, 20, label, more='font-weight="bold"'))
    body.append(text(380, 228, "tokens of the suffix, of 510 (512/512)", "middle"))
    return picture("The two definitions of S: how long the suffix is", 240, body)


def shares() -> str:
    """Draws what share of the examples, and of the loss, each denoiser has."""
    left, body = 150, []
    pairs = _fits(named("ul2"))
    targets = np.array([_mean_targets(*pair) for pair in pairs])
    rows = {
        "examples": np.full(len(pairs), 1 / len(pairs)),
        "targets (the loss)": targets / targets.sum(),
    }
    for row, (name, parts) in enumerate(rows.items()):
        y, x = 20 + row * 46, float(left)
        body.append(text(left - 10, y + 19, name, "end"))
        for (denoiser, _), part in zip(pairs, parts, strict=True):
            wide = part * 580
            body.append(rect(x, y, wide - 1, 30, COLOURS[denoiser.mode or "R"]))
            shown = f"{part:.0%}" if wide < 62 else f"{denoiser.name} {part:.0%}"
            white = 'style="fill:white" font-size="10"'
            body.append(text(x + wide / 2, y + 19, shown, "middle", white))
            x += wide
    return picture("Share of examples and of target tokens", 110, body)


def _mean_targets(denoiser: Denoiser, fit: Fit) -> float:
    """Returns the mean number of targets: of S, half of what two of them hold."""
    if denoiser.placement == "suffix":
        return fit.noise / 2 + 1
    return float(fit.targets)


def sentinels() -> str:
    """Draws how many sentinels each denoiser needs, by length, beside T5's hundred."""
    left, body, y = 150, [], 30.0
    by_length = {n: dict(_by_name(named("ul2"), n)) for n in (512, 1024, 2048)}
    for name in by_length[512]:
        body.append(text(left - 10, y + 22, name, "end"))
        for length, shade in ((512, 1.0), (1024, 0.7), (2048, 0.45)):
            count = by_length[length][name]
            bar = rect(left, y, count, 11, COLOURS["R" if name[0] == "r" else "X"])
            body.append(bar.replace("/>", f' fill-opacity="{shade}"/>'))
            small = 'font-size="10"'
            label = f"{count}  at {length}"
            body.append(text(left + count + 6, y + 9, label, more=small))
            y += 13
        y += 9
    body.insert(0, rect(left + 100, 22, 1, y - 26, "#999999"))
    body.append(text(left + 104, 18, "T5's vocabulary: 100"))
    return picture("Sentinels that each denoiser needs", y + 4, body)


def _by_name(mixture: Mixture, length: int) -> Iterable[tuple[str, int]]:
    for denoiser, fit in _fits(mixture, length):
        if denoiser.sentinels:
            yield denoiser.name, fit.spans


def masks() -> str:
    """Draws which keys each query sees, in both architectures."""
    size, prefix, cell, body = 16, 9, 11, []
    places = jnp.arange(size)
    everything = Keys(jnp.ones((1, 1, size), bool))
    drawn = {
        "encoder": everything,
        "decoder of an encoder-decoder": Causal(),
        "decoder-only: prefix LM": Causal() | Prefix(jnp.array([[prefix]])),
    }
    for index, (name, mask) in enumerate(drawn.items()):
        seen = np.asarray(mask.materialize(places, places))
        seen = np.broadcast_to(seen, (1, 1, size, size))[0, 0]
        x, y = 20 + index * 250, 34
        body.append(text(x, 22, name))
        for row, column in np.ndindex(seen.shape):
            fill = COLOURS["R"] if seen[row, column] else PALE
            at = x + column * cell, y + row * cell
            body.append(rect(*at, cell - 1, cell - 1, fill))
    body.append(text(20, 34 + size * cell + 18, "a line is a query, a column a key"))
    return picture("Attention masks within one example", 236, body)


def packing() -> str:
    """Draws a packed row of fourteen examples, and the same examples padded."""
    mixture = named("ul2")
    pairs = [pair for pair in _fits(mixture) for _ in range(2)]
    batches = MixtureBatches(
        mixture=mixture,
        vocab=VOCAB,
        inputs_length=LENGTH,
        targets_length=LENGTH,
        batch_size=len(pairs),
    )
    plan = pack(batches, "encoder_decoder", examples_per_row=len(pairs))
    sides: dict[str, Callable[[Denoiser, Fit], float]] = {
        "inputs": lambda denoiser, fit: (
            fit.text + 3 - _mean_targets(denoiser, fit)
            if denoiser.is_suffix
            else fit.inputs
        ),
        "targets": _mean_targets,
    }
    body = [text(20, 20, "fourteen examples, one to a row, padded to 512 and 512")]
    for number, pair in enumerate(pairs):
        for side, (name, length) in enumerate(sides.items()):
            x, y = 20 + side * 370, 30 + number * 9
            body.append(rect(x, y, 340, 7, PALE))
            filled = 340 * length(*pair) / LENGTH
            body.append(rect(x, y, filled, 7, COLOURS[pair[0].mode or "R"]))
            if not number:
                body.append(text(x + 340, 20, name, "end"))
    body.append(text(20, 184, "the same, back to back in one row"))
    scale = 720 / max(plan.widths)
    for side, (name, length) in enumerate(sides.items()):
        x, y, wide = 20.0, 194 + side * 26, plan.widths[side]
        body.append(rect(x, y, wide * scale, 20, PALE))
        for pair in pairs:
            filled = length(*pair) * scale
            body.append(rect(x, y, filled - 0.5, 20, COLOURS[pair[0].mode or "R"]))
            x += filled
        white = 'style="fill:white"'
        body.append(text(24, y + 14, f"{name}: {wide} columns", more=white))
    return picture("Padded rows and a packed one", 256, body)


PICTURES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (denoisers, s_denoiser, shares, sentinels, masks, packing)
}


def main(arguments: Sequence[str]) -> None:
    """Draws all pictures into a folder."""
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main(sys.argv[1:])
