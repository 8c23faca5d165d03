"""Text to a trained model that answers: the whole project on one page."""

import json
import os
import subprocess
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


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


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
