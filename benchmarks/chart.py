r"""Draws a chart from a table of a result file.

    python benchmarks/chart.py benchmarks/denoising_2026-11.md --table 0 1 \
        --names 512 2048 --label side --values "of its peer" --goal 15 --out bars.svg
    python benchmarks/chart.py benchmarks/growth_2026-11.md --kind lines --log \
        --label "store, MB" --values "seek, ms" "anonymous, MiB" --out growth.svg

Of a cell like `1,234 (1,000-1,500)` the first number counts. Bars stand one below the
other, one per line of the table and column; lines go over the column `--label`.
"""

import argparse
import html
import math
import pathlib
import re
from collections.abc import Sequence

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
WIDTH, LABELS, ROW = 760, 290, 22

Table = list[dict[str, str]]


def tables_of(text: str) -> list[Table]:
    """Returns every table of a markdown file: rows by the names of columns."""
    found: list[Table] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("|---"):
            continue
        names = cells(lines[number - 1])
        rows = []
        for row in lines[number + 1 :]:
            if not row.startswith("|"):
                break
            rows.append(dict(zip(names, cells(row), strict=True)))
        found.append(rows)
    return found


def chosen(found: list[Table], options: argparse.Namespace) -> Table:
    """Returns the rows of the chosen tables, each named after its own."""
    names = [f" ({name})" for name in options.names or ()] or [""] * len(options.table)
    return [
        {**row, options.label: row[options.label] + name}
        for index, name in zip(options.table, names, strict=True)
        for row in found[index]
    ]


def cells(line: str) -> list[str]:
    """Returns the cells of one line of a table."""
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def number(cell: str) -> float | None:
    """Returns the first number of a cell; None where there is none."""
    found = re.search(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", cell)
    return float(found[0].replace(",", "")) if found else None


def text(x: float, y: float, what: str, anchor: str = "start", more: str = "") -> str:
    """Returns one piece of text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {more}>'
        f"{html.escape(what)}</text>"
    )


def frame(title: str, height: float, body: Sequence[str]) -> str:
    """Returns the whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12">'
    )
    white = '<rect width="100%" height="100%" fill="white"/>'
    heading = text(10, 20, title, more='font-size="14"')
    return "\n".join([head, white, heading, *body, "</svg>\n"])


def bars(table: Table, options: argparse.Namespace) -> str:
    """Draws one bar for each line and column that has a number."""
    shown = [
        (row[options.label], row[name], number(row[name]), index)
        for row in table
        for index, name in enumerate(options.values)
    ]
    found = [value for _, _, value, _ in shown if value is not None]
    scale = (WIDTH - LABELS - 90) / max([*found, options.goal or 0])
    body, y = [], 36.0
    for label, cell, value, index in shown:
        if value is None:
            continue
        color = f'fill="{COLORS[index]}"'
        size = f'width="{value * scale:.1f}" height="{ROW - 6}"'
        body.append(f'<rect x="{LABELS}" y="{y:.0f}" {size} {color}/>')
        if not index:
            body.append(text(LABELS - 8, y + 12, label, "end"))
        body.append(text(LABELS + value * scale + 5, y + 12, cell.split(" (")[0]))
        y += ROW
    if options.goal:
        x = LABELS + options.goal * scale
        line = f'x1="{x:.0f}" x2="{x:.0f}" y1="30" y2="{y:.0f}"'
        body.append(f'<line {line} stroke="#bb0000" stroke-dasharray="4 3"/>')
        body.append(text(x, y + 12, f"goal {options.goal:g}", "middle"))
    body += legend(options.values, LABELS, y + 30)
    return frame(options.title, y + 40 + 16 * len(options.values), body)


def lines(table: Table, options: argparse.Namespace) -> str:
    """Draws one line for each column, over the label's numbers."""
    log = math.log10 if options.log else float
    points = {
        name: [
            (log(x), log(y), row[name])
            for row in table
            if (x := number(row[options.label])) is not None
            and (y := number(row[name])) is not None
        ]
        for name in options.values
    }
    xs = [x for own in points.values() for x, _, _ in own]
    ys = [y for own in points.values() for _, y, _ in own]
    left, right, top, bottom = 60, WIDTH - 40, 45, 330
    low, high = (
        (math.floor(min(ys)), math.ceil(max(ys))) if options.log else (0, max(ys))
    )

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / (max(xs) - min(xs))
        return left + across * (right - left), bottom - (y - low) / (high - low) * (
            bottom - top
        )

    body = []
    for row in table:
        x = place(log(number(row[options.label]) or 1), low)[0]
        body.append(text(x, bottom + 16, row[options.label], "middle"))
    for step in range(int(low), int(high) + 1) if options.log else ():
        y = place(min(xs), step)[1]
        where = f'x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}"'
        body.append(f'<line {where} stroke="#ddd"/>')
        body.append(text(left - 6, y + 4, f"{10.0**step:g}", "end"))
    for index, own in enumerate(points.values()):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y, _ in own)
        color = COLORS[index]
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
        for x, y, cell in own:
            across, down = place(x, y)
            body.append(text(across, down - 6, cell, "middle", f'fill="{color}"'))
    body.append(text((left + right) / 2, bottom + 34, options.label, "middle"))
    body += legend(options.values, left, bottom + 54)
    return frame(options.title, bottom + 60 + 16 * len(options.values), body)


def legend(names: Sequence[str], x: float, y: float) -> list[str]:
    """Names the colors."""
    return [
        text(x, y + 16 * index, name, more=f'fill="{COLORS[index]}"')
        for index, name in enumerate(names)
    ]


def main() -> None:
    """Parses the flags and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=pathlib.Path, help="markdown with the table")
    parser.add_argument("--table", type=int, nargs="+", default=[0], help="which ones")
    parser.add_argument("--names", nargs="+", help="of the tables, to tell them apart")
    parser.add_argument("--kind", choices=("bars", "lines"), default="bars")
    parser.add_argument("--label", required=True, help="column that names a line")
    parser.add_argument("--values", required=True, nargs="+", help="columns to draw")
    parser.add_argument("--log", action="store_true", help="both axes of lines")
    parser.add_argument("--goal", type=float, help="a line across the bars")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    table = chosen(tables_of(options.file.read_text(encoding="utf-8")), options)
    draw = {"bars": bars, "lines": lines}[options.kind]
    options.out.write_text(draw(table, options), encoding="utf-8")


if __name__ == "__main__":
    main()
