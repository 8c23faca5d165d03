"""A whole page: style, script and content in one file that fetches nothing."""

import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from ul2.html.elements import Child, Html, escape, join, tag

# Colours of style.css: more things than these share them.
NUM_COLOURS: Final = 8
# The same for images, on light and dark paper alike.
IMAGE_COLOURS: Final = (
    *("#0072b2", "#56b4e9", "#009e73", "#d55e00"),
    *("#e69f00", "#cc79a7", "#8c6d4f", "#7d858f"),
)
# No page of ours asks the network for anything, and a browser holds it to that.
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:"
)


class Section(NamedTuple):
    """A part of a page, under a heading."""

    anchor: str
    title: str
    content: Html


def page(
    title: str, head: Child, sections: Sequence[Section], footer: Child = None
) -> str:
    """Returns a page.

    Args:
        title: of its window, and its first heading.
        head: what stands below the title.
        sections: the rest; each has a link at the top.
        footer: how it was made.
    """
    links = [tag("a", one.title, href=f"#{one.anchor}") for one in sections]
    body = join(
        tag("header", tag("h1", title), head),
        tag("nav", tag("div", links)) if links else None,
        tag("main", map(_section, sections)),
        tag("footer", footer),
        tag("script", _file("page.js")),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_file('style.css')}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write(path: str | Path, content: str) -> None:
    """Writes a page, whole or not at all.

    Raises:
        ValueError: nothing can be written there; says why.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None


def table(
    head: Sequence[Child], rows: Sequence[Sequence[Child]], *, words: bool = False
) -> Html:
    """Returns a table that scrolls where it is too wide.

    Args:
        head: of its columns.
        rows: cells; one that is a `td` (in the head, `th`) already is taken as it is.
        words: it holds text, not numbers.
    """
    body = [tag("tr", map(_cell, row)) for row in rows]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", [_cell(one, "th") for one in head])),
            tag("tbody", body),
            class_="words" if words else None,
        ),
        class_="scroll",
    )


def swatch(colour: int, style: str = "") -> Html:
    """Returns a spot of a colour, or with a style (solid, dashed, dotted) a line."""
    name = f"var(--c{colour % NUM_COLOURS})"
    if not style:
        return tag("span", class_="swatch", style=f"background:{name}")
    return tag("span", class_=f"swatch stroke {style}", style=f"border-color:{name}")


def legend(entries: Sequence[tuple[Html, str]]) -> Html:
    """Returns what spots and lines stand for."""
    return tag("div", [tag("span", *entry) for entry in entries], class_="legend")


def _section(section: Section) -> Html:
    return tag("section", tag("h2", section.title), section.content, id=section.anchor)


def _cell(cell: Child, name: str = "td") -> Html:
    if isinstance(cell, Html) and cell.startswith(f"<{name}"):
        return cell
    return tag(name, cell)


@functools.cache
def _file(name: str) -> Html:
    return Html(resources.files("ul2.html").joinpath(name).read_text("utf-8"))
