"""HTML as values that cannot be escaped wrongly.

    tag("p", "a < b", class_="note")   ->   <p class="note">a &lt; b</p>

A child is text, and is escaped, unless it is `Html`, which only this module and the
files of this package make. So whatever a run, a corpus or a model wrote is shown as it
was written, and is never obeyed.
"""

import html
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"br", "hr", "img", "input", "meta"})
# What shows nothing, or changes the order of what stands beside it.
_INVISIBLE: Final = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (
        *(c for c in range(32) if chr(c) not in "\t\n"),
        127,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | Iterable["Child"] | None


def tag(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """Returns an element.

    Args:
        name: of the element.
        *children: text, elements, or iterables of them; None is nothing.
        **attributes: `class_` is `class`, `data_x` is `data-x`; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Returns children one after another."""
    return Html("".join(map(_child, children)))


def escape(text: str) -> str:
    """Returns text that means nothing to a browser, in elements and in attributes."""
    # A surrogate that a JSON file holds alone cannot be written as UTF-8.
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return html.escape(sound.translate(_INVISIBLE))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, int):
        return str(child)
    return "".join(map(_child, child))


def _plain(value: str | float) -> str:
    """Returns an attribute; a place in a drawing to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
