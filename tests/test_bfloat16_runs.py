"""Runs with bfloat16 parameters, by the command line alone."""

import jax
import ml_dtypes
import numpy as np
import pytest
from wiring_toys import flags, make_store

from ul2 import cli, launch
from ul2.inference.opening import open_model
from ul2.interop.conversion import convert
from ul2.interop.opening import open_checkpoint
from ul2.training import checkpoints

BFLOAT16 = {"PARAM_DTYPE": "bfloat16", "ROUNDING": "master"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("bfloat16"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Two updates."""
    model_dir = tmp_path_factory.mktemp("runs") / "run"
    train(store, model_dir, **BFLOAT16)
    return model_dir


def train(store, model_dir, steps=2, **macros):
    arguments = flags(store, MODEL_DIR=model_dir, TOTAL_STEPS=steps, **macros)
    assert cli.main(["train", *arguments]) == 0


def errors_of(store, **macros):
    arguments = flags(store, **macros)
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return launch.check(files, [tuple(pair.split("=", 1)) for pair in pairs])["errors"]


def test_a_run_keeps_its_dtype_and_says_so(store, run):
    again = {"MODEL_DIR": run, "TOTAL_STEPS": 2}
    assert errors_of(store, **again, **BFLOAT16) == []
    (error,) = errors_of(store, **again)
    assert "PARAM_DTYPE: 'bfloat16' -> 'float32'" in error
    assert "ROUNDING: 'master' -> 'stochastic'" in error
    (error,) = errors_of(store, MODEL_DIR="new", PARAM_DTYPE="half")
    assert "'half' is not one of float32, bfloat16; set PARAM_DTYPE" in error


def test_a_trained_model_is_read_as_its_parameters_were_used(run, tmp_path):
    """Conversion and inference take what the model computed with, not the copy."""
    opened = open_checkpoint(run)
    params = {path: tensor.read() for path, tensor in opened.params.items()}
    assert {array.dtype for array in params.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert opened.moments is not None
    model = open_model(run, mesh="data=8").model
    table = jax.device_get(model.embedder.embedding[...])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, params["embedder.embedding"])
    report = convert(opened, "huggingface", tmp_path / "out", dtype="float32")
    assert report["max_logit_difference"] == 0


def test_a_float32_run_starts_from_the_copy(store, run, tmp_path):
    names = checkpoints.opt_state_shapes(run, 2)
    assert any(name.startswith("2.master.") for name in names)
    start = {"INITIAL_CHECKPOINT": run, "INITIAL_OPTIMIZER": "keep"}
    train(store, tmp_path / "exact", steps=1, LEARNING_RATE=1e-30, **start)
    exact = open_checkpoint(tmp_path / "exact").params
    for path, tensor in open_checkpoint(run).params.items():
        ours = exact[path].read()
        assert ours.dtype == np.float32
        rounded = ours.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(rounded, tensor.read())
    assert any(
        np.any(tensor.read().astype(ml_dtypes.bfloat16) != tensor.read())
        for tensor in exact.values()
    )
    assert checkpoints.read_contract(tmp_path / "exact").prior_steps == 2
