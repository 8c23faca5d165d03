"""Runs that start from trained models, by the command line alone."""

import json
import re

import jax
import numpy as np
import pytest
from wiring_toys import flags, make_store

from ul2 import cli, launch
from ul2.interop.conversion import convert
from ul2.interop.opening import open_checkpoint
from ul2.run_files import CONFIG
from ul2.training import checkpoints

FACTORS = {"WARMUP_STEPS": 2, "LEARNING_RATE": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("continuing"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def causal(store, runs):
    """A causal language model after two updates."""
    model_dir = runs / "causal"
    train(store, model_dir, model="dec_only_tiny", objective="causal_lm", steps=2)
    return model_dir


@pytest.fixture(scope="module")
def seq2seq(store, runs):
    """An encoder-decoder after two updates."""
    model_dir = runs / "seq2seq"
    train(store, model_dir, steps=2, **FACTORS)
    return model_dir


def recipe(store, model_dir, *, steps=1, **choices):
    return flags(store, MODEL_DIR=model_dir, TOTAL_STEPS=steps, **choices)


def train(store, model_dir, **choices):
    assert cli.main(["train", *recipe(store, model_dir, **choices)]) == 0


def parse(arguments):
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return files, [tuple(pair.split("=", 1)) for pair in pairs]


def errors_of(arguments):
    return launch.check(*parse(arguments))["errors"]


def last_line(model_dir):
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def arrays_of(model_dir):
    opened = open_checkpoint(model_dir)
    return {path: tensor.read() for path, tensor in opened.params.items()}


def ul2r(store, model_dir, model, **macros):
    """Returns the flags of UL2R, which brings its objective."""
    arguments = flags(store, model=model, run="ul2r", MODEL_DIR=model_dir, **macros)
    return [a for a in arguments if "objectives" not in a]


def test_causal_model_becomes_a_prefix_model_by_ul2r(store, causal, tmp_path, capfd):
    run = tmp_path / "ul2r"
    start = {"INITIAL_CHECKPOINT": causal, "TOTAL_STEPS": 2}
    assert cli.main(["train", *ul2r(store, run, "dec_only_tiny", **start)]) == 0
    contract = checkpoints.read_contract(run)
    assert (contract.step, contract.prior_steps) == (2, 0)
    names = {denoiser["name"] for denoiser in contract.mixture["denoisers"]}
    assert names == {"s", "r_3_15", "x_32_15", "x_3_50"}
    assert contract.model == checkpoints.read_contract(causal).model
    assert set(last_line(run)["denoisers"]) == names
    # The cosine goes from 1e-4 to a hundredth of it; this is its second step of two.
    assert last_line(run)["learning_rate"] == pytest.approx(0.505e-4)
    before, after = arrays_of(causal), arrays_of(run)
    moved = max(np.abs(after[path] - before[path]).max() for path in before)
    assert 0 < moved < 0.01
    capfd.readouterr()
    text = ["--text", "people talk of ___", "--mode=S", "--max_tokens=3"]
    assert cli.main(["infer", "--checkpoint", str(run), *text]) == 0
    assert capfd.readouterr().out.startswith("people talk of")


def test_ul2r_is_a_recipe_with_the_numbers_of_u_palm(store, seq2seq):
    own = dict.fromkeys(
        ("TOTAL_STEPS", "INPUTS_LENGTH", "TARGETS_LENGTH", "BATCH_SIZE"), "-"
    )
    start = {"INITIAL_CHECKPOINT": seq2seq, "MODEL_DIR": "unused", **own}
    arguments = flags(store, run="ul2r", **start)
    found = launch.read(*parse([a for a in arguments if "objectives" not in a]))
    assert (found.settings.total_steps, found.batch_size) == (20_000, 32)
    assert (found.inputs_length, found.targets_length) == (1024, 1024)
    assert found.schedule(0) == pytest.approx(1e-4)
    assert found.schedule(20_000) == pytest.approx(1e-6)
    assert not found.keeps_optimizer


@pytest.mark.slow
def test_t5x_and_our_own_form_continue_alike(store, seq2seq, tmp_path):
    """The same run from a run, a step of it, and from a T5X checkpoint of it."""
    exported = tmp_path / "exported"
    convert(open_checkpoint(seq2seq), "t5x", exported)
    sources = {
        "run": seq2seq,
        "step": seq2seq / "checkpoints" / "2",
        "t5x": exported,
    }
    kept = {"INITIAL_OPTIMIZER": "keep", **FACTORS}
    for name, source in sources.items():
        train(store, tmp_path / name, INITIAL_CHECKPOINT=source, **kept)
        contract = checkpoints.read_contract(tmp_path / name)
        assert (contract.step, contract.prior_steps) == (1, 2)
        assert last_line(tmp_path / name)["learning_rate"] == pytest.approx(
            0.1 / 2**0.5
        )
    expected = arrays_of(tmp_path / "run")
    for name in ("step", "t5x"):
        jax.tree.map(
            np.testing.assert_array_equal, arrays_of(tmp_path / name), expected
        )


@pytest.mark.slow
def test_hugging_face_model_gives_its_parameters(store, seq2seq, tmp_path):
    exported = tmp_path / "huggingface"
    convert(open_checkpoint(seq2seq), "huggingface", exported)
    for name, source in {"run": seq2seq, "huggingface": exported}.items():
        train(store, tmp_path / f"from_{name}", INITIAL_CHECKPOINT=source)
    jax.tree.map(
        np.testing.assert_array_equal,
        arrays_of(tmp_path / "from_huggingface"),
        arrays_of(tmp_path / "from_run"),
    )
    arguments = recipe(
        store,
        tmp_path / "kept",
        INITIAL_CHECKPOINT=exported,
        INITIAL_OPTIMIZER="keep",
    )
    (error,) = errors_of(arguments)
    assert "has no optimizer state to keep; set INITIAL_OPTIMIZER=reset" in error


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"MLP_DIM": 64}, "is of another model: mlp_dim 32, not 64; choose"),
        (
            {"model": "dec_only_tiny"},
            "architecture 'encoder_decoder', not 'decoder_only'",
        ),
        ({"MODE_CONVENTION": "released"}, "set MODE_CONVENTION=paper"),
        ({"INITIAL_OPTIMIZER": "drop"}, "is not one of reset, keep; set INITIAL_OPT"),
        (
            {"INITIAL_OPTIMIZER": "keep", "run": "pretrain_adamw", "WARMUP_STEPS": 0},
            "has the state of another optimizer",
        ),
        (
            {"INITIAL_OPTIMIZER": "keep", "MIN_DIM_SIZE_TO_FACTOR": 8},
            "set MIN_DIM_SIZE_TO_FACTOR and FACTOR_STACKED",
        ),
        ({"FACTOR_STACKED": "never"}, "is not one of by_size, attention, always"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(
    store, seq2seq, tmp_path, macros, message
):
    choices = {"INITIAL_CHECKPOINT": seq2seq, **macros}
    (error,) = errors_of(recipe(store, tmp_path / "run", **choices))
    assert message in error
    assert "\n" not in error
    assert not any(tmp_path.iterdir())


def test_optimizer_is_kept_of_something(store, tmp_path):
    (error,) = errors_of(recipe(store, tmp_path, INITIAL_OPTIMIZER="keep"))
    assert error.endswith("set INITIAL_CHECKPOINT.")


def test_folder_of_checkpoints_is_no_model_dir(store, seq2seq):
    for path in (seq2seq / "checkpoints", seq2seq / "checkpoints" / "2"):
        (error,) = errors_of(recipe(store, path))
        assert "is where a run keeps its checkpoints; choose another MODEL_DIR" in error


def test_imported_model_is_no_run_to_go_on_with(store, seq2seq, tmp_path):
    imported = tmp_path / "imported"
    convert(open_checkpoint(seq2seq), "ul2", imported)
    before = sorted(path.name for path in imported.iterdir())
    (error,) = errors_of(recipe(store, imported))
    assert f"start a new MODEL_DIR with INITIAL_CHECKPOINT={imported}" in error
    assert cli.main(["train", *recipe(store, imported)]) == 2
    assert sorted(path.name for path in imported.iterdir()) == before
    start = {"INITIAL_CHECKPOINT": imported, "INITIAL_OPTIMIZER": "keep", **FACTORS}
    train(store, tmp_path / "run", **start)
    assert checkpoints.read_contract(tmp_path / "run").prior_steps == 2


def test_what_is_read_once_may_change_and_what_makes_the_run_may_not(store, seq2seq):
    changed = {"LOSS_CHUNK": 64, "INITIAL_CHECKPOINT": "/nowhere", **FACTORS}
    assert errors_of(recipe(store, seq2seq, steps=3, **changed)) == []
    changed = {"LOSS_NORMALIZER": "sum", "FACTOR_STACKED": "always", **FACTORS}
    (error,) = errors_of(recipe(store, seq2seq, steps=3, **changed))
    assert "FACTOR_STACKED: 'by_size' -> 'always'" in error
    assert "LOSS_NORMALIZER: 'target_tokens' -> 'sum'" in error


def test_run_from_before_these_knobs_goes_on(store, seq2seq):
    file = seq2seq / CONFIG
    now = file.read_text()
    before = re.sub(
        r"(?m)^.*(initial_optimizer|factor_stacked|INITIAL_OPT|FACTOR_ST).*\n", "", now
    )
    before = before.replace("%LOSS_CHUNK", "128")
    before = before.replace("%LOSS_NORMALIZER", "'target_tokens'")
    before = before.replace("%MIN_DIM_SIZE_TO_FACTOR", "128")
    before += "optimizers.adafactor.epsilon1 = 1e-30\n"
    assert before.count("\n") < now.count("\n")
    file.write_text(before)
    try:
        assert errors_of(recipe(store, seq2seq, steps=3, **FACTORS)) == []
        file.write_text(before.replace("1e-30", "1e-20"))
        (error,) = errors_of(recipe(store, seq2seq, steps=3, **FACTORS))
        assert "optimizers.adafactor.epsilon1: 1e-20 -> unset" in error
    finally:
        file.write_text(now)


@pytest.mark.parametrize("source", ["causal", "seq2seq"])
def test_imported_model_brings_the_gin_file_that_trains_it(
    source, store, tmp_path, request
):
    run = request.getfixturevalue(source)
    convert(open_checkpoint(run), "ul2", tmp_path / "imported")
    arguments = flags(
        store,
        run="continue",
        MODEL_DIR=tmp_path / "next",
        INITIAL_CHECKPOINT=tmp_path / "imported",
        INITIAL_OPTIMIZER="keep",
        TOTAL_STEPS=1,
        **dict.fromkeys(("EMBED_DIM", "NUM_HEADS", "HEAD_DIM", "MLP_DIM"), "-"),
        **dict.fromkeys(("NUM_ENCODER_LAYERS", "NUM_DECODER_LAYERS"), "-"),
    )
    model = f"--gin_file={tmp_path / 'imported' / 'model.gin'}"
    arguments = [model if "configs/models" in a else a for a in arguments]
    assert cli.main(["train", *arguments]) == 0
    contract = checkpoints.read_contract(tmp_path / "next")
    assert (contract.step, contract.prior_steps) == (1, 2)
    assert contract.model == checkpoints.read_contract(run).model
