import io

import rich.console

from ul2.inference.progress import Progress


def report(*, is_terminal, show=True):
    """Returns what is shown of two batches, ten and twenty seconds apart."""
    shown = io.StringIO()
    console = rich.console.Console(file=shown, force_terminal=is_terminal, width=200)
    seconds = iter([0.0, 10.0, 11.0, 30.0])
    with Progress(9, show=show, console=console, clock=seconds.__next__) as progress:
        progress.start_at(1)
        progress.add(2)
        progress.add(1)
        progress.add(5)
    return shown.getvalue()


def test_log_gets_a_line_now_and_then():
    assert report(is_terminal=False).splitlines() == [
        "infer: 3 of 9 rows, 0.2 rows/s",
        "infer: 9 of 9 rows, 0.3 rows/s",
    ]


def test_rows_are_counted_where_nobody_knows_how_many():
    shown = io.StringIO()
    seconds = iter([0.0, 10.0])
    console = rich.console.Console(file=shown, width=200)
    clock = seconds.__next__
    with Progress(None, show=True, label="xsum", console=console, clock=clock) as line:
        line.add(5)
    assert shown.getvalue() == "xsum: 5 rows, 0.5 rows/s\n"


def test_terminal_gets_a_bar_and_no_lines():
    shown = report(is_terminal=True)
    assert "9/9" in shown
    assert "infer: " not in shown


def test_nothing_is_shown_where_nobody_asked():
    assert report(is_terminal=False, show=False) == ""
    assert report(is_terminal=True, show=False) == ""
