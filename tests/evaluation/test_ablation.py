"""The ablation's files, and the table made of results."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OBJECTIVES = ("causal_lm", "prefix_lm", "span_corruption", "sclm", "unilm", "ul2")


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location(
        "ablation_table", ROOT / "scripts" / "ablation_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(directory, rows):
    """Writes results of (name, mode, metric, scores)."""
    results = [
        {
            "key": f"{name}",
            "checkpoint": f"{name}@2",
            "path": f"somewhere/{name}",
            "task": "t",
            "mode": mode,
            "metric": metric,
            "scores": scores,
        }
        for name, mode, metric, scores in rows
    ]
    directory.mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps({"results": results}))


def losses(r1, r2, s, x):
    named = {"r_3_15": r1, "r_8_15": r2, "s": s, "x_3_50": x}
    return {"denoisers": {name: {"loss": loss} for name, loss in named.items()}}


def test_table_averages_denoisers_and_compares_with_t5(table, tmp_path):
    t5, ul2 = "enc_dec_span_corruption", "enc_dec_ul2"
    write(
        tmp_path / "eval" / "text",
        [
            (t5, "none", "loss", losses(2.0, 3.0, 5.0, 4.0)),
            (ul2, "own", "loss", losses(2.5, 3.5, 4.0, 3.0)),
        ],
    )
    write(
        tmp_path / "eval" / "finetuned",
        [(t5, "none", "f1", {"f1": 40.0}), (ul2, "S", "f1", {"f1": 50.0})],
    )
    write(
        tmp_path / "eval" / "one_shot",
        [(t5, "none", "f1", {"f1": 0.0}), (ul2, "S", "f1", {"f1": 1.0})],
    )
    table.main(tmp_path)
    first, second = json.loads((tmp_path / "ablation.json").read_text())
    assert first["losses"] == {"R": 2.5, "S": 5.0, "X": 4.0}
    assert first["gain"] == 0
    # A fifth less loss, a quarter more f1; zero has no shares.
    assert second["gains"] == pytest.approx({"text": 20, "finetuned": 25})
    assert second["gain"] == pytest.approx(22.5)
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert (
        lines[3] == "| enc_dec_ul2 | 3.000 | 4.000 | 3.000 | 50.00 | 1.00 | +22.5 % |"
    )
    assert lines[-1] == "Gain without one_shot: the reference's f1 is zero."


def test_unfinished_ablation_has_a_table_of_what_there_is(table, tmp_path):
    write(
        tmp_path / "eval" / "text",
        [("dec_only_ul2", "own", "loss", losses(2.0, 3.0, 5.0, 4.0))],
    )
    (row,) = table.make_rows(tmp_path)
    assert (row["gain"], list(row["scores"])) == (None, ["text"])
    assert table.markdown([row]).count("| - ") == 3


def test_script_names_files_that_are_there():
    script = (ROOT / "scripts" / "ablation.sh").read_text()
    for objective in OBJECTIVES:
        assert objective in script
        assert (ROOT / "configs" / "objectives" / f"{objective}.gin").is_file()
    for name in re.findall(r"configs/[\w/]+\.gin", script):
        assert (ROOT / name).is_file(), name
    for architecture in ("enc_dec", "dec_only"):
        for size in ("tiny", "small", "base"):
            model = ROOT / "configs" / "models" / f"{architecture}_{size}.gin"
            assert model.is_file()
    subprocess.run(["bash", "-n", ROOT / "scripts" / "ablation.sh"], check=True)
