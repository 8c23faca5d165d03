"""`ul2 report` draws a run in whatever state its files are."""

import html
import json
import math
import re
import subprocess
import sys

import pytest
from browser import fetched_by, is_blank, rendered, screenshot
from run_toys import CONFIG, measurement, scores, write_run

from ul2 import cli
from ul2.report import configs, happenings
from ul2.report.drawing import drawing_of
from ul2.report.report import make_report, summary
from ul2.report.run_record import Column, read_runs

HOSTILE = "</script><script>alert('x')</script><img src=//evil.org onerror=1>"
NAN = math.nan


def page_of(*folders):
    return make_report(read_runs([str(folder) for folder in folders]))


def figures(page):
    """Returns the data of all charts by their titles."""
    found = {}
    for part in page.split("<figure")[1:]:
        title = re.search(r"<figcaption>([^<]*)", part)
        data = re.search(r'<script type="application/json">(.*?)</script>', part)
        if title and data:
            name = html.unescape(title[1]).strip()
            found.setdefault(name, []).append(json.loads(data[1]))
    return found


def drawn(page, title):
    """Returns label -> (x, text) of the first chart of a title."""
    lines = figures(page)[title][0]["lines"]
    return {line["label"]: (line["x"], line["text"]) for line in lines}


def test_curves_are_the_files(tmp_path):
    run = write_run(
        tmp_path / "one",
        [measurement(1, 4.0), measurement(2, 3.5)],
        evaluations=[scores(2, 3.25)],
    )
    page = page_of(run)
    assert drawn(page, "Training loss") == {"one": ([1, 2], ["4", "3.5"])}
    assert drawn(page, "Held-out loss") == {"one": ([2], ["3.25"])}
    assert drawn(page, "s") == {
        "training": ([1, 2], ["5", "4.5"]),
        "held out": ([2], ["3.25"]),
        "unigram": ([2], ["5"]),
    }
    assert "MFU" not in figures(page)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_that_just_began_has_a_page(tmp_path, count):
    lines = [measurement(step) for step in range(1, count + 1)]
    run = write_run(tmp_path / "one", lines, config=CONFIG.format(rate=1))
    page = page_of(run)
    assert ("has no measurement yet" in page) == (count == 0)
    assert ("Training loss" in figures(page)) == (count > 0)
    assert f"after update {count} of 100" in page or f"at update {count} of" in page


def test_half_a_line_at_the_end_is_left_out(tmp_path):
    run = write_run(tmp_path / "one", [measurement(1), measurement(2)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0, "denoi')
    assert drawn(page_of(run), "Training loss")["one"][0] == [1, 2]


def test_numbers_that_are_not_finite_are_shown_as_such(tmp_path):
    values = [3.0, NAN, math.inf, None, 2.0]
    lines = [{**measurement(n), "loss": v} for n, v in enumerate(values, start=1)]
    page = page_of(write_run(tmp_path / "one", lines))
    texts = drawn(page, "Training loss")["one"][1]
    assert texts == ["3", "not finite", "not finite", "not finite", "2"]
    assert 'class="lacking"' in page


def test_a_step_made_again_takes_the_place_of_the_first(tmp_path):
    lines = [measurement(s, v) for s, v in ((1, 5.0), (2, 4.0), (3, 9.0), (2, 3.0))]
    page = page_of(write_run(tmp_path / "one", lines))
    assert drawn(page, "Training loss")["one"] == ([1, 2], ["5", "3"])


def test_long_runs_keep_their_spikes_and_stay_small(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    names = [f"d{n}" for n in range(7)]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            loss = 60.5 if step == 12_345 else 2.0 + (step % 7) / 100
            line = json.dumps(measurement(step, loss, names))
            file.write(line + "\n")
    page = page_of(folder)
    assert len(page) < 2_000_000
    x, texts = drawn(page, "Training loss")["long"]
    assert len(x) <= 300
    [hit] = [n for n, text in enumerate(texts) if "60.5" in text]
    assert abs(x[hit] - 12_345) < 20_000 / 300
    assert sum("66.5" in text for text in drawn(page, "d6")["training"][1]) == 1


def test_many_long_runs_make_a_page_below_five_megabytes(tmp_path):
    names = [f"denoiser_{n}" for n in range(7)]
    lines = [measurement(step, None, names) for step in range(1, 401)]
    folders = [write_run(tmp_path / f"run{n}", lines) for n in range(12)]
    runs = read_runs([str(folder) for folder in folders])
    assert drawing_of(runs).buckets < drawing_of(runs[:1]).buckets
    assert len(make_report(runs)) < 5_000_000


def test_hostile_files_are_shown_and_never_obeyed(tmp_path):
    sample = {
        name: HOSTILE
        for name in (
            "index",
            "denoiser",
            "mode",
            "source",
            "inputs",
            "targets",
            "output",
        )
    }
    run = write_run(
        tmp_path / "run<i>",
        [measurement(1, names=(HOSTILE,)), measurement(2, names=(HOSTILE,))],
        evaluations=[
            scores(
                2,
                samples=[sample, 7, {"inputs": [1]}],
                modes={HOSTILE: scores(2)},
                sources={HOSTILE: {"loss": 1.0}},
            )
        ],
        events=[{"event": HOSTILE, "step": 1, "x": HOSTILE}],
        history=[{"event": "end", "step": 1, "how": HOSTILE, "time": HOSTILE}],
        config=f"A = '{HOSTILE}'\n",
    )
    page = page_of(run)
    assert page.lower().count("alert(") > 5
    assert "<script>alert" not in page.lower()
    assert "<img" not in page
    assert "<i>" not in page
    assert fetched_by(page) == []


@pytest.mark.parametrize(
    "line",
    [
        {"step": 10**400, "loss": 1.0},
        {"step": -1, "loss": 1.0},
        {"step": 2, "loss": 10**400, "accuracy": [1], "grad_norm": {"a": 1}},
        {"step": 2, "denoisers": [1], "modes": {"R": 3}, "sources": "x"},
        {"step": 2, "samples": "x", "denoisers": {"r": {"r": {"r": {"loss": 1}}}}},
        {"step": 2, "event": "end", "time": NAN, "host_memory_bytes": 10**400},
        {"step": 2, "event": "start", "time": 1e300, "device_memory_bytes": "x"},
    ],
)
def test_damaged_lines_do_no_harm(tmp_path, line):
    lines = [measurement(1, 4.0), line, measurement(3, 2.0)]
    run = write_run(
        tmp_path / "one", lines, evaluations=lines, events=lines, history=lines
    )
    x, texts = drawn(page_of(run), "Training loss")["one"]
    assert (x[0], x[-1]) == (1, 3)
    assert (texts[0], texts[-1]) == ("4", "2")
    json.dumps(summary(read_runs([str(run)])[0]), allow_nan=False)


def test_a_damaged_config_is_named(tmp_path):
    run = write_run(tmp_path / "one", [measurement(1)])
    (run / "config.gin").write_bytes(b"A = \xff\xfe\n")
    assert "config.gin could not be read" in page_of(run)


def test_runs_are_laid_over_each_other(tmp_path):
    first = write_run(tmp_path / "a" / "run", [measurement(1), measurement(2)])
    second = write_run(tmp_path / "b" / "run", [measurement(1), measurement(9)])
    lines = drawn(page_of(first, second), "Training loss")
    assert {label: x for label, (x, _) in lines.items()} == {
        str(first): [1, 2],
        str(second): [1, 9],
    }


def test_restarts_and_bad_updates_are_marked(tmp_path):
    history = [
        {"event": "start", "step": 0, "time": 1000.0, "processes": 4},
        {"event": "save", "step": 2, "time": 1010.0},
        {"event": "start", "step": 2, "time": 1100.0, "processes": 2},
        {"event": "end", "step": 4, "time": 1130.0, "how": "stopped"},
    ]
    run = write_run(
        tmp_path / "one",
        [measurement(step) for step in range(1, 5)],
        events=[{"event": "skip", "step": 3, "batch": 2, "loss": "nan"}],
        history=history,
    )
    [record] = read_runs([str(run)])
    # Until the save before the kill, and from the second start on.
    assert record.seconds() == 10 + 30
    page = make_report([record])
    assert "one: started again at 2" in page
    assert "one: skip at 3" in page
    assert "stopped by a signal at update 4" in page
    assert "processes: 4" in page


@pytest.mark.parametrize(
    ("end", "told", "kind"),
    [
        ({"how": "done"}, "done, 5 updates", "good"),
        ({"how": "stopped"}, "stopped by a signal at update 5", "warn"),
        ({"how": "StorageError"}, "ended by StorageError at update 5", "bad"),
        (None, "at work, or killed, after update 5", "warn"),
    ],
)
def test_status_is_what_the_history_says(tmp_path, end, told, kind):
    history = [{"event": "start", "step": 0, "time": 1.0}]
    if end is not None:
        history.append({"event": "end", "step": 5, "time": 2.0, **end})
    run = write_run(tmp_path / "one", [measurement(5)], history=history)
    assert happenings.status(read_runs([str(run)])[0]) == (told, kind)


def test_modes_are_drawn_over_time_and_against_the_own_mode(tmp_path):
    def probe(step, others):
        modes = {"R": scores(step, 3.0), "none": scores(step, 3.0 + others)}
        return scores(step, 3.0, modes=modes)

    run = write_run(
        tmp_path / "one", [measurement(1)], evaluations=[probe(1, 0.0), probe(2, 0.5)]
    )
    page = page_of(run)
    above = figures(page)["r"][1]["lines"]
    assert [line["label"] for line in above] == ["R", "none"]
    assert [line["text"] for line in above] == [["0", "0"], ["0", "0.5"]]
    assert '<td class="best">3.0000</td><td>3.5000</td>' in page


def test_samples_stand_under_each_other(tmp_path):
    def sampled(step):
        one = {"index": 7, "denoiser": "r", "mode": "R", "source": "a.txt:1"}
        texts = {"inputs": "in<extra_id_0>.<eos>", "targets": "t"}
        return scores(step, samples=[{**one, **texts, "output": f"after {step}"}])

    run = write_run(
        tmp_path / "one",
        [measurement(1)],
        evaluations=[sampled(step) for step in range(1, 40)],
    )
    page = page_of(run)
    assert re.search(r'in<span class="sentinel"[^>]*>0</span>\.', page)
    shown = re.findall(r">after (\d+)<", page)
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == ("1", "39")


def test_configs_are_compared(tmp_path):
    folders = [
        write_run(tmp_path / name, [measurement(1)], config=CONFIG.format(rate=rate))
        for name, rate in (("a", 0.1), ("b", 0.3))
    ]
    records = read_runs([str(folder) for folder in folders])
    # Once, by its macro, not again by what reads it.
    found = configs.differences({run.name: run.config for run in records})
    assert found == [("LEARNING_RATE", ["0.1", "0.3"])]
    assert records[0].total_steps == 100
    assert "LEARNING_RATE" in make_report(records)


def test_columns_subtract_where_both_have_a_value():
    first, second = Column(), Column()
    for step, value in ((1, 5.0), (2, 4.0)):
        first.add(step, value)
    second.add(2, 1.5)
    assert list(first.less(second).values) == [2.5]


def test_command_writes_a_page_and_says_what_is_in_it(tmp_path, capsys):
    run = write_run(tmp_path / "one", [measurement(1, 4.0)])
    out = tmp_path / "new" / "r.html"
    assert cli.main(["report", str(run), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["out"] == str(out)
    assert report["runs"][0]["loss"] == 4.0
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["none"], "holds no run: none of config.gin, metrics.jsonl"),
        (["one", "one"], "is named twice"),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(tmp_path, capsys, runs, said):
    write_run(tmp_path / "one", [measurement(1)])
    paths = [str(tmp_path / run) for run in runs]
    assert cli.main(["report", *paths, f"--out={tmp_path}/r.html"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "r.html").exists()


def test_nothing_heavy_is_imported(tmp_path):
    run = write_run(tmp_path / "one", [measurement(1), measurement(2)])
    code = (
        "import sys\n"
        "from ul2.cli import main\n"
        "assert main(['report', sys.argv[1], '--out', sys.argv[1] + '/r']) == 0\n"
        "heavy = ('jax', 'numpy', 'tensorflow', 'gin', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_page_looks_like_something_in_a_browser(tmp_path):
    run = write_run(
        tmp_path / "one",
        [measurement(step) for step in range(1, 50)],
        evaluations=[scores(step) for step in (10, 20)],
        config=CONFIG.format(rate=1),
    )
    page = tmp_path / "report.html"
    page.write_text(page_of(run))
    for dark in (False, True):
        for width in (390, 1280):
            pixels, said = screenshot(page, tmp_path, dark=dark, width=width)
            assert said == []
            assert not is_blank(pixels)


def test_values_are_read_off_under_the_pointer(tmp_path):
    lines = [measurement(step, float(step)) for step in range(1, 6)]
    page = tmp_path / "report.html"
    page.write_text(page_of(write_run(tmp_path / "one", lines)))
    point = (
        "const svg = document.querySelector('figure[data-chart] svg');"
        "const box = svg.getBoundingClientRect();"
        "svg.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, "
        "clientX: box.left + box.width * 0.6, clientY: box.top + 40}));"
    )
    shown = rendered(page, tmp_path, point)
    assert shown.count('class="tip"') == shown.count("data-chart=")
    [tip] = re.findall(
        r'<div class="tip" style="visibility: visible[^>]*>.*?</i>', shown
    )
    assert re.search(r"update 3</div>.*", tip)
    assert re.search(r"</i>one {2}3</div>", shown)
