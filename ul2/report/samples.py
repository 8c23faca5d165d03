"""What the model wrote at each evaluation, one output under another."""

import re
from collections.abc import Sequence
from typing import Any, Final

from ul2.html import pages
from ul2.html.elements import Child, Html, join, tag
from ul2.report.drawing import Drawing
from ul2.report.run_record import RunRecord

_MOST_EVALUATIONS: Final = 8
_MOST_EXAMPLES: Final = 16
_MOST_CHARACTERS: Final = 2100
_SENTINEL: Final = re.compile(r"<extra_id_(\d{1,5})>")
_EOS: Final = "<eos>"


def samples(drawing: Drawing) -> Html | None:
    """Returns the examples that evaluations decode, with all that was written."""
    parts = [
        join(
            None if drawing.is_single else tag("h3", run.name),
            _of_run(run),
        )
        for run in drawing.runs
        if run.samples
    ]
    if not parts:
        return None
    text = (
        "Held-out examples, decoded greedily: what the model read, what was masked, "
        "and what it wrote after so many updates."
    )
    return join(tag("p", text), parts)


def _of_run(run: RunRecord) -> Html:
    shown = spread_out(run.samples, _MOST_EVALUATIONS)
    newest = shown[-1][1][:_MOST_EXAMPLES]
    return join(_card(sample, shown, run) for sample in newest)


def spread_out(some: Sequence[Any], most: int) -> list[Any]:
    """Returns at most so many, evenly, the first and the last among them."""
    if len(some) <= most:
        return list(some)
    last = len(some) - 1
    return [some[round(n * last / (most - 1))] for n in range(most)]


def _card(
    sample: dict[str, Any],
    evaluations: Sequence[tuple[int, list[dict[str, Any]]]],
    run: RunRecord,
) -> Html:
    names = run.evaluations.groups("denoisers")
    denoiser = _text(sample, "denoiser")
    colour = (names.index(denoiser) if denoiser in names else 0) % pages.NUM_COLOURS
    sides: list[tuple[Child, str]] = [
        ("inputs", _text(sample, "inputs")),
        ("targets", _text(sample, "targets")),
    ]
    for step, others in evaluations:
        same = next((o for o in others if o.get("index") == sample.get("index")), None)
        if same is not None:
            sides.append((f"{step:,}", _text(same, "output")))
    return tag(
        "article",
        tag(
            "div",
            tag("b", f"#{_text(sample, 'index')}"),
            tag("span", denoiser, class_="chip", style=f"background:var(--s{colour})"),
            tag("span", f"mode {sample.get('mode') or 'none'}", class_="chip mode"),
            tag("span", _text(sample, "source"), class_="quiet"),
            class_="head",
        ),
        [
            tag(
                "div",
                tag("b", name),
                tag("div", _marked(text, colour), class_="text clip"),
                class_="side",
            )
            for name, text in sides
        ],
        class_="card",
    )


def _marked(text: str, colour: int) -> Html:
    """Returns a text with its sentinels as numbers, as `ul2 inspect` shows them."""
    style = f"background:var(--c{colour});color:var(--paper)"
    pieces = _SENTINEL.split(text)
    marks = [
        tag("span", number, class_="sentinel", style=style, data_span=number)
        for number in pieces[1::2]
    ]
    texts = map(_ending, pieces[::2])
    return join(next(texts), zip(marks, texts, strict=True))


def _ending(text: str) -> Html:
    body = text.removesuffix(_EOS)
    return join(body, tag("span", _EOS, class_="end") if body != text else None)


def _text(sample: dict[str, Any], name: str) -> str:
    return str(sample.get(name, ""))[:_MOST_CHARACTERS]
