"""`ul2 config`: every value, and who set it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wiring_toys import flags

from ul2 import cli, config_entries
from ul2.config_entries import Entry

ROOT = Path(__file__).parents[1]
RECIPE = flags("stores/mine", MODEL_DIR="runs/new")
OPERATIVE = """\
SEED = 3
MESH = 'auto'
WIDE = \\
    ('a',
     'b')

loop.TrainSettings.seed = %SEED
loop.TrainSettings.z_loss = 0.5
"""


def ask(capfd, *arguments):
    """Returns the exit code, the lines, and the report of `ul2 config`."""
    capfd.readouterr()
    code = cli.main(["config", *map(str, arguments), "--json"])
    captured = capfd.readouterr()
    return code, captured.err.splitlines(), json.loads(captured.out)


def make_run(folder, text, origins):
    folder.mkdir()
    (folder / "config.gin").write_text(text)
    if origins is not None:
        (folder / "config_origins.json").write_text(origins)
    return folder


def test_flag_stands_over_the_lines_of_files(capfd):
    code, lines, report = ask(capfd, *RECIPE)
    assert code == 0
    batch = report["config"]["BATCH_SIZE"]
    assert (batch["value"], batch["set_by"]) == ("16", "--gin.BATCH_SIZE")
    (over,) = batch["over"]
    assert f"BATCH_SIZE = 16  # --gin.BATCH_SIZE, over {over}" in lines
    assert not any("= %" in line for line in lines)


def test_file_and_line_are_where_the_value_stands(capfd):
    _, _, report = ask(capfd, *RECIPE)
    found = 0
    for name, entry in report["config"].items():
        if not entry["set_by"].startswith("configs/"):
            continue
        file, _, number = entry["set_by"].partition(":")
        line = (ROOT / file).read_text().splitlines()[int(number) - 1]
        assert line.startswith(f"{name} = {entry['value']}") or "e-" in line
        found += 1
    assert found > 60


def test_what_nobody_set_is_there_with_its_default(capfd):
    _, _, report = ask(capfd, *RECIPE)
    assert report["config"]["optimizers.adafactor.decay_rate"] == {
        "value": "0.8",
        "set_by": "default",
        "over": [],
    }


def test_own_settings_can_be_picked(tmp_path, capfd):
    (tmp_path / "mine.gin").write_text("\nSEED = 7\n")
    _, _, report = ask(capfd, *RECIPE, f"--gin_file={tmp_path}/mine.gin", "--own")
    assert report["config"]["SEED"]["set_by"] == f"{tmp_path}/mine.gin:2"
    setters = {entry["set_by"].split(".")[0] for entry in report["config"].values()}
    assert setters == {"--gin", f"{tmp_path}/mine"}


def test_what_is_wrong_is_said_beside_what_is_there(capfd):
    code, lines, report = ask(capfd, *RECIPE, "--gin.BATCH_SIZ=3")
    assert code == 2
    assert report["config"]["BATCH_SIZ"]["value"] == "3"
    assert lines[-1].startswith("error: nothing reads BATCH_SIZ")


def test_run_tells_who_set_what(tmp_path, capfd):
    origins = config_entries.origins_text(OPERATIVE, {"SEED": Entry("3", "x.gin:1")})
    run = make_run(tmp_path / "run", OPERATIVE, origins)
    _, _, report = ask(capfd, run)
    assert report["config"]["SEED"]["set_by"] == "x.gin:1"
    assert report["config"]["WIDE"]["value"] == "('a', 'b')"
    assert report["config"]["loop.TrainSettings.z_loss"]["set_by"] == "default"


@pytest.mark.parametrize("origins", [None, "{", "[]", '{"SEED": 3}'])
def test_run_without_origins_names_the_line_of_its_config(tmp_path, capfd, origins):
    run = make_run(tmp_path / "run", OPERATIVE, origins)
    _, _, report = ask(capfd, run)
    assert report["config"]["SEED"]["set_by"] == f"{run}/config.gin:1"
    assert report["config"]["WIDE"]["set_by"] == f"{run}/config.gin:3"


def test_run_that_goes_on_by_its_own_config_tells_who_set_it_first(tmp_path):
    run = make_run(
        tmp_path / "run", OPERATIVE, '{"SEED": ["--gin.SEED", "a.gin:1"], "MESH": []}'
    )
    file = str(run / "config.gin")
    again = {
        "SEED": Entry("4", "--gin.SEED", (f"{file}:1",)),
        "MESH": Entry("'auto'", f"{file}:2"),
        "OTHER": Entry("1", "b.gin:3"),
    }
    traced = config_entries.traced(again)
    assert traced["SEED"] == Entry("4", "--gin.SEED", ("a.gin:1", "--gin.SEED"))
    assert (traced["MESH"], traced["OTHER"]) == (again["MESH"], again["OTHER"])
    os.utime(run / "config_origins.json", (0, 0))  # the config was changed since
    assert config_entries.traced(again) == again


def test_two_runs_differ_in_what_was_set(tmp_path, capfd):
    one = make_run(tmp_path / "one", OPERATIVE, None)
    two = make_run(tmp_path / "two", OPERATIVE.replace("SEED = 3", "SEED = 4"), None)
    code, lines, report = ask(capfd, one, two)
    assert code == 0
    (difference,) = report["differences"]
    assert difference["name"] == "SEED"
    assert (difference["before"]["value"], difference["after"]["value"]) == ("3", "4")
    assert [line[:10] for line in lines] == ["- SEED = 3", "+ SEED = 4"]
    assert ask(capfd, one, one)[2]["differences"] == []


def test_literal_and_macro_of_the_same_value_do_not_differ(tmp_path, capfd):
    one = make_run(tmp_path / "one", OPERATIVE, None)
    two = make_run(tmp_path / "two", OPERATIVE.replace("%SEED", "3"), None)
    assert ask(capfd, one, two)[2]["differences"] == []


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["none"]])
def test_what_is_no_config_is_refused(tmp_path, capfd, arguments):
    runs = [tmp_path / name for name in arguments]
    for name in runs if len(runs) == 3 else []:
        make_run(name, OPERATIVE, None)
    assert cli.main(["config", *map(str, runs)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_config_of_a_run_needs_no_jax(tmp_path):
    run = make_run(tmp_path / "run", OPERATIVE, None)
    code = (
        "import sys; from ul2 import cli; "
        f"assert cli.main(['config', {str(run)!r}]) == 0; "
        "assert not {'jax', 'gin', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
