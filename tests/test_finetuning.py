"""Fine-tuning by the command line: from any checkpoint, resumed bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import finetuning_toys
import jax
import numpy as np
import pytest
from wiring_toys import flags, make_store

from ul2 import cli, launch
from ul2.interop.conversion import convert
from ul2.interop.opening import open_checkpoint
from ul2.training import checkpoints
from ul2.training.best import best_step

ROOT = Path(__file__).parents[1]
STEPS = 12
RECIPE = {
    "TASK": "toy_first",
    "MODE": "S",
    "TOTAL_STEPS": STEPS,
    "INPUTS_LENGTH": 32,
    "TARGETS_LENGTH": 8,
    "BATCH_SIZE": 16,
    "LEARNING_RATE": 0.01,
    "LOG_EVERY_STEPS": 1,
    "EVAL_EVERY_STEPS": 4,
    "SAVE_EVERY_STEPS": 4,
    "KEEP_CHECKPOINTS": 2,
    "MESH": "data=8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="module")
def data_dir(folder):
    return finetuning_toys.write_data(folder / "data")


@pytest.fixture(scope="module")
def store(folder):
    return make_store(folder)


@pytest.fixture(scope="module")
def pretrained(folder, store):
    """Runs of two updates, one of each architecture."""
    found = {}
    for model in ("enc_dec_tiny", "dec_only_tiny"):
        found[model] = folder / model
        macros = {"MODEL_DIR": found[model], "TOTAL_STEPS": 2, "BATCH_SIZE": 56}
        assert cli.main(["train", *flags(store, model=model, **macros)]) == 0
    return found


@pytest.fixture
def recipe(folder, data_dir, pretrained, tmp_path):
    """Returns the flags of a fine-tuning run; a macro of "-" is left out."""

    def make(*, files=("runs/finetune",), **macros):
        own = {
            "MODEL_DIR": tmp_path / "run",
            "DATA_DIR": data_dir,
            "EXAMPLES_DIR": folder / "examples",
            "INITIAL_CHECKPOINT": pretrained["enc_dec_tiny"],
        }
        macros = {**own, **RECIPE, **macros}
        return [
            *(f"--gin_file=configs/{name}.gin" for name in files),
            *(f"--gin.{name}={v}" for name, v in macros.items() if v != "-"),
            "--import_module=finetuning_toys",
        ]

    return make


def train(arguments):
    assert cli.main(["train", *arguments]) == 0


def start(arguments):
    """Starts a command in a process of its own."""
    code = "import sys; from ul2.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )


def report(command, arguments, capfd, code=0):
    """Returns what a command prints as JSON."""
    capfd.readouterr()
    assert cli.main([command, *arguments, "--json"]) == code
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def read_lines(file):
    """Returns the measurements of a run without what a clock measured."""
    timed = ("_per_second", "wait_fraction", "mfu")
    return [
        {k: v for k, v in json.loads(line).items() if not k.endswith(timed)}
        for line in file.read_text().splitlines()
    ]


def arrays_of(model_dir, step=None):
    opened = open_checkpoint(model_dir, step=step)
    return {path: tensor.read() for path, tensor in opened.params.items()}


def assert_same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], path)


def refusal(arguments, capfd):
    capfd.readouterr()
    assert cli.main(["train", *arguments]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if not line.startswith("tokenize ")]
    return line


@pytest.mark.parametrize("model", ["enc_dec_tiny", "dec_only_tiny"])
def test_run_learns_a_task_from_a_checkpoint_that_says_its_model(
    recipe, pretrained, tmp_path, model
):
    train(recipe(INITIAL_CHECKPOINT=pretrained[model], TOTAL_STEPS=40))
    lines = read_lines(tmp_path / "run" / "eval.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert set(lines[-1]["denoisers"]) == {"toy_first"}
    assert lines[-1]["examples"] == 20  # the whole validation split, each once
    contract = checkpoints.read_contract(tmp_path / "run")
    wanted = [{"name": "toy_first", "rate": 1.0, "mode": "S"}]
    assert contract.mixture == {"tasks": wanted}
    before = checkpoints.read_contract(pretrained[model])
    assert contract.model["architecture"] == before.model["architecture"]
    assert contract.model["config"]["dropout_rate"] == 0.1
    assert contract.vocab == before.vocab
    losses = {line["step"]: line["loss"] for line in lines}
    assert best_step(tmp_path / "run") == min(losses, key=losses.get)
    text = ["--text=first word of: a b c", "--mode=S", "--max_tokens=2"]
    infer = ["infer", "--checkpoint", str(tmp_path / "run"), "--step=best", *text]
    assert cli.main(infer) == 0


@pytest.mark.slow
def test_killed_run_goes_on_bitwise_as_if_nothing_had_been(recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = {"TOTAL_STEPS": 24}
    assert start(["train", *recipe(MODEL_DIR=whole, **steps)]).wait() == 0
    process = start(["train", *recipe(MODEL_DIR=killed, **steps)])
    while not (killed / "checkpoints" / "8").is_dir():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(["train", *recipe(MODEL_DIR=killed, **steps)]).wait() == 0
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert read_lines(killed / name) == read_lines(whole / name)
    assert (killed / "best.json").read_text() == (whole / "best.json").read_text()
    assert_same_arrays(arrays_of(killed), arrays_of(whole))


def test_run_in_two_parts_is_bitwise_the_run_in_one(recipe, pretrained, tmp_path):
    """On a mixture, with dropout, and with the checkpoint it started from gone."""
    mixture = {
        "TASK": "(('toy_first', 2, 'R'), ('toy_last', 1))",
        "HELD_OUT_SHARE": 0.2,
        "EVAL_SPLIT": "validation",
        "DROPOUT_RATE": 0.3,
        "TOTAL_STEPS": 8,
    }
    train(recipe(MODEL_DIR=tmp_path / "whole", **mixture))
    origin = shutil.copytree(pretrained["enc_dec_tiny"], tmp_path / "origin")
    parts = {"MODEL_DIR": tmp_path / "parts", "INITIAL_CHECKPOINT": origin, **mixture}
    train(recipe(**{**parts, "TOTAL_STEPS": 4}))
    shutil.rmtree(origin)
    train(recipe(**parts))
    assert read_lines(tmp_path / "parts" / "metrics.jsonl") == read_lines(
        tmp_path / "whole" / "metrics.jsonl"
    )
    assert_same_arrays(arrays_of(tmp_path / "parts"), arrays_of(tmp_path / "whole"))
    contract = checkpoints.read_contract(tmp_path / "parts")
    modes = [(row["name"], row["mode"]) for row in contract.mixture["tasks"]]
    assert modes == [("toy_first", "R"), ("toy_last", "S")]


@pytest.mark.slow
def test_checkpoints_of_other_formats_are_fine_tuned_alike(
    recipe, pretrained, tmp_path
):
    """The same numbers from our run, from T5X and from Hugging Face."""
    ours = pretrained["enc_dec_tiny"]
    sources = {"ours": ours}
    for kind in ("t5x", "huggingface"):
        sources[kind] = tmp_path / f"as_{kind}"
        convert(open_checkpoint(ours), kind, sources[kind])
    for kind, source in sources.items():
        macros = {"MODEL_DIR": tmp_path / kind, "INITIAL_CHECKPOINT": source}
        train(recipe(TOTAL_STEPS=2, **macros))
    for kind in ("t5x", "huggingface"):
        assert_same_arrays(arrays_of(tmp_path / kind), arrays_of(tmp_path / "ours"))


def test_task_is_learned_from_scratch_with_a_vocabulary_and_a_model(
    recipe, store, tmp_path
):
    model = {"EMBED_DIM": 16, "NUM_HEADS": 2, "HEAD_DIM": 8, "MLP_DIM": 32}
    layers = {"NUM_ENCODER_LAYERS": 1, "NUM_DECODER_LAYERS": 1}
    arguments = recipe(
        files=("models/enc_dec_tiny", "runs/finetune"),
        INITIAL_CHECKPOINT="-",
        VOCAB=store / "tokenizer.model",
        TOTAL_STEPS=2,
        **model,
        **layers,
    )
    train(arguments)
    contract = checkpoints.read_contract(tmp_path / "run")
    assert (contract.step, contract.prior_steps) == (2, 0)
    assert contract.model["config"]["dropout_rate"] == 0.1


def test_examples_are_tokenized_once_and_shared(recipe, folder, data_dir, tmp_path):
    shared = tmp_path / "shared"
    macros = {"EXAMPLES_DIR": shared, "TOTAL_STEPS": 1}
    train(recipe(MODEL_DIR=tmp_path / "a", **macros))
    before = {p: p.stat().st_mtime_ns for p in shared.rglob("*")}
    assert {p.name for p in before} >= {"train", "validation", "inputs.tokens"}
    # The text is not needed any more.
    train(recipe(MODEL_DIR=tmp_path / "b", DATA_DIR=tmp_path / "gone", **macros))
    assert {p: p.stat().st_mtime_ns for p in shared.rglob("*")} == before
    assert_same_arrays(arrays_of(tmp_path / "a"), arrays_of(tmp_path / "b"))


def test_damaged_examples_are_refused(recipe, tmp_path, capfd):
    macros = {"EXAMPLES_DIR": tmp_path / "e", "TOTAL_STEPS": 1}
    train(recipe(**macros))
    (file,) = (tmp_path / "e").glob("*/train/inputs.tokens")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    error = refusal(recipe(MODEL_DIR=tmp_path / "other", **macros), capfd)
    assert "inputs.tokens is damaged" in error


def test_check_says_what_the_tasks_hold_and_writes_nothing(recipe, tmp_path, capfd):
    where = {"EXAMPLES_DIR": tmp_path / "none", "MODEL_DIR": tmp_path / "run"}
    found = report("check", recipe(INPUTS_LENGTH=10, **where), capfd)
    (row,) = found["tasks"]
    assert (row["name"], row["mode"], row["share"]) == ("toy_first", "S", 1.0)
    assert (row["examples"], row["held_out_examples"]) == (96, 20)
    assert row["batches_per_epoch"] == found["batches_per_epoch"] == 96 / 16
    assert 0 < row["truncated_inputs"] <= 96
    assert row["longest_inputs"] > 8 > row["mean_targets"]
    assert "inputs of toy_first are cut at INPUTS_LENGTH=10" in found["warnings"][0]
    assert 0 <= found["padding_fraction"] < 1
    assert not list(tmp_path.iterdir())


def test_inspect_shows_mode_inputs_and_targets(recipe, tmp_path, capfd):
    found = report("inspect", recipe(MODE="X", TOTAL_STEPS="-"), capfd)
    assert len(found["examples"]) == 16
    for row in found["examples"]:
        assert (row["denoiser"], row["mode"]) == ("toy_first", "X")
        text = row["inputs"].removeprefix("[X]").removesuffix("<eos>")
        head, _, words = text.partition(": ")
        assert (head, row["inputs"][-5:]) == ("first", "<eos>")
        assert row["targets"] == words.split()[0] + "<eos>"
        assert row["source"].startswith("train:")
    held = report("inspect", recipe(MODE="auto"), capfd)
    assert held["examples"][0]["mode"] == "R"
    page = tmp_path / "page.html"
    shown = ["--split=held_out", "--masks", "--examples=99", f"--html={page}"]
    assert cli.main(["inspect", *recipe(), *shown]) == 0
    assert page.read_text().count("<article") > 1
    assert "mode S  validation:" in capfd.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"TASK": "toy_frist"}, "did you mean toy_first"),
        (
            {"TASK": "toy_last"},
            "task 'toy_last' has no split 'validation', only train; set EVAL_SPLIT to "
            "one of these, HELD_OUT_SHARE=0.05 to hold out",
        ),
        ({"EVAL_SPLIT": "test"}, "has no split 'test', only train, validation"),
        ({"TASK": "-"}, "TASK is not set"),
        ({"INITIAL_CHECKPOINT": "-"}, "or --gin.INITIAL_CHECKPOINT=DIR"),
        ({"MODE": "Q"}, "MODE: mode 'Q' is not one of R, S, X, none, auto"),
        ({"ON_LONG": "refuse", "INPUTS_LENGTH": 10}, "raise INPUTS_LENGTH or set"),
        (
            {"BEST_METRIC": "rouge1"},
            "BEST_METRIC='rouge1' is not one of loss, accuracy, sequence_accuracy; "
            "set EVAL_DECODE=True",
        ),
        ({"BATCH_SIZE": 12}, "BATCH_SIZE=12 does not divide over 8 parts"),
        ({"EXAMPLES_PER_ROW": 3}, "EXAMPLES_PER_ROW=3 does not divide the 2"),
        (
            {"MODE": "auto", "MODE_TRIAL_STEPS": STEPS},
            f"MODE_TRIAL_STEPS={STEPS} must be at least 1 and less than",
        ),
        ({"MODE": "auto", "BEST_METRIC": None}, "MODE=auto chooses by an evaluation"),
        ({"MODE": "auto", "EVAL_BATCHES": 0}, "MODE=auto chooses by an evaluation"),
        ({"MODE_CONVENTION": "released"}, "set MODE_CONVENTION=paper"),
        (
            {"EXAMPLES_DIR": "-", "MODEL_DIR": "/dev/null/run"},
            "cannot write to /dev/null/run",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(recipe, capfd, macros, message):
    assert message in refusal(recipe(**macros), capfd)


def test_missing_data_says_where_to_get_them(recipe, tmp_path, capfd):
    macros = {"DATA_DIR": tmp_path, "EXAMPLES_DIR": tmp_path / "e"}
    error = refusal(recipe(**macros), capfd)
    assert "get it from nowhere" in error
    assert not list((tmp_path / "e").rglob("*.tokens"))


def test_mode_that_the_checkpoint_does_not_know_is_warned_of(recipe, capfd):
    (line,) = report("check", recipe(MODE="none"), capfd)["warnings"]
    assert line.startswith("the checkpoint was trained with modes R, S, X")
    assert line.endswith("; set MODE (R, S, X).")
    assert report("check", recipe(MODE="X"), capfd)["warnings"] == []


def test_run_of_another_mode_is_another_run(recipe, capfd):
    train(recipe(TOTAL_STEPS=1))
    assert "another config (MODE: 'S' -> 'R')" in refusal(recipe(MODE="R"), capfd)
    assert refusal(recipe(TASK="(('toy_first', 1), )", MODE="R"), capfd)


def test_run_may_be_evaluated_elsewhere_and_go_on(recipe, tmp_path):
    train(recipe(TOTAL_STEPS=1))
    train(recipe(TOTAL_STEPS=2, EVAL_BATCHES=1, BEST_METRIC="accuracy"))
    (first, second) = read_lines(tmp_path / "run" / "eval.jsonl")
    assert (first["examples"], second["examples"]) == (20, 16)


@pytest.mark.parametrize("run", ["finetune", "finetune_flan"])
def test_run_file_composes_and_has_no_dead_binding(recipe, run):
    own = dict.fromkeys(("INPUTS_LENGTH", "TARGETS_LENGTH", "MODE"), "-")
    arguments = recipe(files=(f"runs/{run}",), **own)
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    bindings = [tuple(pair.split("=", 1)) for pair in pairs]
    assert launch.check(files, bindings)["errors"] == []
    lengths = {"finetune": (512, 128), "finetune_flan": (2048, 512)}[run]
    found = launch.read(files, bindings)
    assert (found.inputs_length, found.targets_length) == lengths
    assert found.mixture.mode is None
    assert jax.device_get(found.schedule(10**6)) == pytest.approx(0.01)


def test_checkpoints_are_chosen_by_decoded_answers(recipe, tmp_path, capfd):
    found = report(
        "train",
        recipe(
            EVAL_DECODE=True,
            EVAL_DECODE_LIMIT=4,
            BEST_METRIC="task_metric",
            EVAL_EVERY_STEPS=10,
            TOTAL_STEPS=30,
        ),
        capfd,
    )
    lines = read_lines(tmp_path / "run" / "eval.jsonl")
    scores = [line["task_metric"] for line in lines]
    assert scores == [line["toy_first/share_right"] for line in lines]
    assert all(score in (0, 25, 50, 75, 100) for score in scores)
    assert found["best"]["value"] == max(scores)
    assert best_step(tmp_path / "run") == 10 * (1 + scores.index(max(scores)))


def test_metric_of_a_task_that_is_not_there_is_refused(recipe, capfd):
    error = refusal(recipe(EVAL_DECODE=True, BEST_METRIC="rouge1"), capfd)
    assert "one of loss, accuracy, sequence_accuracy, task_metric, TASK/" in error
