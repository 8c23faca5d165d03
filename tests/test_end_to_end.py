"""Text to a trained model, killed on the way: the whole project on one page."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from wiring_toys import flags, make_store

from ul2 import cli

ROOT = Path(__file__).parents[1]
STEPS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("end_to_end"))


def recipe(store, model_dir, **macros):
    return flags(
        store,
        MODEL_DIR=model_dir,
        SAVE_EVERY_STEPS=5,
        KEEP_CHECKPOINTS=2,
        EVAL_EVERY_STEPS=10,
        **{"TOTAL_STEPS": STEPS, **macros},
    )


def start(arguments):
    """Starts a command in a process of its own."""
    code = "import sys; from ul2.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT)


def read_lines(file):
    """Returns the measurements of a run without what a clock measured."""
    timed = ("_per_second", "wait_fraction", "mfu")
    return [
        {k: v for k, v in json.loads(line).items() if not k.endswith(timed)}
        for line in file.read_text().splitlines()
    ]


@pytest.mark.slow
def test_killed_run_goes_on_bitwise_as_if_nothing_had_been(store, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(["train", *recipe(store, whole)]).wait() == 0
    process = start(["train", *recipe(store, killed)])
    while not (killed / "checkpoints" / "10").is_dir():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(["train", *recipe(store, killed)]).wait() == 0
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert read_lines(killed / name) == read_lines(whole / name)
    steps = sorted(int(p.name) for p in (killed / "checkpoints").iterdir())
    assert steps == [STEPS - 5, STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["enc_dec_tiny", "dec_only_tiny"])
def test_loss_of_every_denoiser_falls_and_the_model_answers(
    store, tmp_path, model, capfd
):
    run = tmp_path / "run"
    assert cli.main(["train", *recipe(store, run, model=model)]) == 0
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # Sixteen examples a batch hold two or three of each of the seven.
    for name in lines[0]["denoisers"]:
        losses = [line["denoisers"][name]["loss"] for line in lines]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 1
    assert [line["step"] for line in read_lines(run / "eval.jsonl")] == [10, 20, 30]
    scores = read_lines(run / "eval.jsonl")[-1]["denoisers"]
    assert set(scores) == set(lines[0]["denoisers"])
    assert all(row["tokens"] > 0 for row in scores.values())
    capfd.readouterr()
    text = ["--text", "people talk of ___ and music", "--mode=R", "--max_tokens=6"]
    assert cli.main(["infer", "--checkpoint", str(run), *text]) == 0
    assert capfd.readouterr().out.startswith("people talk of ")


def test_quickstart_script_is_sound():
    for script in ("quickstart.sh", "test.sh", "install.sh"):
        subprocess.run(["bash", "-n", ROOT / "scripts" / script], check=True)
        assert os.access(ROOT / "scripts" / "quickstart.sh", os.X_OK)
