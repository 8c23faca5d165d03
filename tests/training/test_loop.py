import json
import os
import signal

import jax
import numpy as np
import pytest
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL
from training_toys import (
    NAMES,
    DroppingModel,
    ToyBatches,
    make_settings,
    make_vocab,
    rewrite_contract,
    run_train,
)

from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import load_model, read_contract
from ul2.training.loop import TrainSettings
from ul2.training.origin import of_run


class StoppedError(Exception):
    """The machine went away."""


def stop_before(index):
    """Raises when batch `index` is asked for."""

    def on_next(now):
        if now == index:
            raise StoppedError

    return ToyBatches(on_next=on_next)


def read_lines(model_dir, name="metrics.jsonl"):
    return [json.loads(line) for line in (model_dir / name).read_text().splitlines()]


def read_params(model_dir, mesh, make_model=DroppingModel, step=None):
    model, _ = load_model(model_dir, mesh, make_model=make_model, step=step)
    return jax.device_get(jax.tree.leaves(model))


def test_training_makes_exactly_total_steps_updates_and_saves_the_last(
    tmp_path, one_device
):
    batches = ToyBatches()
    summary = run_train(tmp_path, mesh=one_device, batches=batches)
    assert summary.step == 6 and not summary.preempted
    assert batches.index == 6
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_lines(tmp_path, "eval.jsonl")] == [3, 6]
    assert summary.metrics == read_lines(tmp_path)[-1]
    assert summary.evaluation == read_lines(tmp_path, "eval.jsonl")[-1]
    assert set(summary.evaluation["denoisers"]) <= set(NAMES)
    # A finished run has nothing left to do.
    assert run_train(tmp_path, mesh=one_device).step == 6


@pytest.mark.parametrize("stop", [3, 5])
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, one_device, stop):
    """Stops right after the save of step 3, and two unsaved steps later."""
    changes = {"mesh": one_device, "make_model": DroppingModel}
    run_train(tmp_path / "whole", **changes)
    with pytest.raises(StoppedError):
        run_train(tmp_path / "parts", batches=stop_before(stop), **changes)
    run_train(tmp_path / "parts", **changes)
    for name in ("metrics.jsonl", "eval.jsonl"):
        whole, parts = (tmp_path / d / name for d in ("whole", "parts"))
        assert parts.read_text() == whole.read_text()
    whole, parts = (read_params(tmp_path / d, one_device) for d in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize("meshes", [("fsdp=4,tensor=2", "auto"), ("auto", "fsdp=8")])
def test_run_goes_on_with_fewer_or_more_devices(tmp_path, one_device, meshes):
    first, second = (
        one_device if spec == "auto" else make_mesh(spec, jax.devices()[:8])
        for spec in meshes
    )
    run_train(tmp_path / "whole", mesh=one_device)
    with pytest.raises(StoppedError):
        run_train(tmp_path / "parts", mesh=first, batches=stop_before(3))
    run_train(tmp_path / "parts", mesh=second)
    whole, parts = (read_lines(tmp_path / d) for d in ("whole", "parts"))
    for name in ("loss", "grad_norm", "target_tokens"):
        np.testing.assert_allclose(
            [line[name] for line in parts],
            [line[name] for line in whole],
            rtol=REORDERED_SUM_RTOL,
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_saves_and_leaves(tmp_path, one_device, number):
    def on_next(index):
        if index == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    batches = ToyBatches(on_next=on_next)
    summary = run_train(tmp_path, mesh=one_device, batches=batches)
    assert summary.preempted and summary.step == 2
    contract = read_contract(tmp_path)
    assert (contract.step, contract.data_position) == (2, {"index": 2})
    assert signal.getsignal(number) is before
    assert run_train(tmp_path, mesh=one_device).step == 6


def test_nothing_is_saved_once_the_loss_is_not_finite(tmp_path, one_device):
    changes = {"mesh": one_device, "schedule": lambda step: np.inf * (step == 3)}
    with pytest.raises(FloatingPointError, match=r"(?s)step 4: .* LEARNING_RATE"):
        run_train(tmp_path, **changes)
    assert read_contract(tmp_path).step == 3


def test_initial_checkpoint_gives_parameters_and_nothing_else(tmp_path, one_device):
    run_train(tmp_path / "first", mesh=one_device, make_model=DroppingModel)
    summary = run_train(
        tmp_path / "second",
        mesh=one_device,
        make_model=DroppingModel,
        origin=of_run(tmp_path / "first"),
        schedule=lambda step: 0.0,
        settings=make_settings(total_steps=1),
    )
    assert summary.step == 1
    first, second = (read_params(tmp_path / d, one_device) for d in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, second, first)


def test_run_beyond_total_steps_is_refused(tmp_path, one_device):
    run_train(tmp_path, mesh=one_device)
    with pytest.raises(ValueError, match=r"step 6, beyond TOTAL_STEPS=4; raise it"):
        run_train(tmp_path, mesh=one_device, settings=make_settings(total_steps=4))


def test_only_the_newest_checkpoints_are_kept(tmp_path, one_device):
    settings = make_settings(save_every_steps=1, keep_checkpoints=2)
    run_train(tmp_path, mesh=one_device, settings=settings)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "6"]


def test_checkpoint_without_data_position_is_refused_and_moves_nothing(
    tmp_path, one_device
):
    run_train(tmp_path, mesh=one_device)
    rewrite_contract(tmp_path, 6, data_position=None)
    batches = ToyBatches()
    with pytest.raises(ValueError, match=r"no data position.*INITIAL_CHECKPOINT"):
        run_train(tmp_path, mesh=one_device, batches=batches)
    assert batches.index == 0


def test_checkpoint_of_another_vocabulary_is_refused(tmp_path, one_device):
    run_train(tmp_path, mesh=one_device)
    batches = ToyBatches()
    other = make_vocab(sentinel_ids=(97, 96))
    with pytest.raises(ValueError, match=r"\(sentinel_ids differ\); set DATA"):
        run_train(tmp_path, mesh=one_device, batches=batches, vocab=other)
    with pytest.raises(ValueError, match="sentinel_ids differ"):
        run_train(
            tmp_path / "new", mesh=one_device, vocab=other, origin=of_run(tmp_path)
        )
    assert batches.index == 0


def test_inference_reads_what_training_wrote(tmp_path, one_device):
    run_train(tmp_path, mesh=one_device)
    mesh = make_mesh("fsdp=2,tensor=4", jax.devices()[:8])
    alone, contract = load_model(tmp_path, one_device, make_model=DroppingModel, step=3)
    together, _ = load_model(
        tmp_path / "checkpoints", mesh, make_model=DroppingModel, step=3
    )
    assert contract.step == 3
    assert contract.vocab == make_vocab()
    assert contract.config_text == "TOTAL_STEPS = 6"
    assert contract.mixture == {"denoisers": list(NAMES)}
    assert len(together.table[...].sharding.device_set) == 8
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(jax.tree.leaves(together)),
        jax.device_get(jax.tree.leaves(alone)),
    )
    hidden = np.ones((1, 1, 16), np.float32)
    np.testing.assert_allclose(
        jax.device_get(together.unembed(hidden)),
        jax.device_get(alone.unembed(hidden)),
        rtol=REORDERED_SUM_RTOL,
        atol=REORDERED_SUM_ATOL,
    )


@pytest.mark.parametrize("step", [None, 4])
def test_missing_checkpoint_is_a_clear_error(tmp_path, step):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint of .* found \[\]"):
        read_contract(tmp_path, step)
    with pytest.raises(ValueError, match="does not exist"):
        read_contract(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 0}, "TOTAL_STEPS"),
        ({"microbatches": 0}, "MICROBATCHES"),
        ({"loss_normalizer": "mean"}, "LOSS_NORMALIZER"),
    ],
)
def test_settings_name_the_knob(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{"total_steps": 1, "seed": 0, **changes})
