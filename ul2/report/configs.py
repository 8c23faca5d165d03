"""What runs are: where their configs differ, and all that they say."""

from collections.abc import Mapping
from typing import Final

from ul2.html import pages
from ul2.html.elements import Child, Html, join, tag
from ul2.report.drawing import Drawing

_MOST_CHARACTERS: Final = 400
_UNSET: Final = "unset"


def configs(drawing: Drawing) -> Html | None:
    """Returns a table of differences, and the whole configs behind a click."""
    runs = [run for run in drawing.runs if run.config]
    if not runs:
        return None
    parts: list[Child] = []
    if len(runs) > 1:
        rows = differences({run.name: run.config for run in runs})
        parts.append(
            pages.table(
                ("name", *(run.name for run in runs)),
                [
                    (
                        name,
                        *(
                            tag("td", v[:_MOST_CHARACTERS], class_="wrap")
                            for v in values
                        ),
                    )
                    for name, values in rows
                ],
                words=True,
            )
            if rows
            else tag("p", "The configs say the same.")
        )
    parts += [
        tag(
            "details",
            tag("summary", f"All of {run.name}"),
            pages.table(
                ("name", "value"),
                [
                    (name, tag("td", value[:_MOST_CHARACTERS], class_="wrap"))
                    for name, value in sorted(run.config.items(), key=_order)
                ],
                words=True,
            ),
        )
        for run in runs
    ]
    return join(parts)


def differences(
    configs: Mapping[str, Mapping[str, str]],
) -> list[tuple[str, list[str]]]:
    """Returns the names whose values differ, with the value of each config.

    A parameter that every config takes from a macro of the same value as it shows is
    left out: the macro, in capitals, says it. `ul2.config_entries.differences` is for
    two configs of which it is known who set what, so that it leaves out defaults, too.
    """
    names = {name for config in configs.values() for name in config}
    found = []
    for name in names:
        values = [config.get(name, _UNSET) for config in configs.values()]
        if len(set(values)) > 1:
            found.append((name, values))
    macros = {tuple(values) for name, values in found if name.isupper()}
    kept = [one for one in found if one[0].isupper() or tuple(one[1]) not in macros]
    return sorted(kept, key=_order)


def _order(pair: tuple[str, object]) -> tuple[bool, str]:
    """Sorts macros before parameters."""
    return "." in pair[0], pair[0]
