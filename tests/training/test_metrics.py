import io
import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from training_toys import ToyModel

from ul2.sharding.chips import PEAK_FLOPS
from ul2.training.evaluate import evaluate, unigram_entropy
from ul2.training.guard import Verdict
from ul2.training.metrics import Metrics, multiplied_params
from ul2.training.state import define_model
from ul2.training.step import EvalSums, StepSums
from ul2.training.writers import JsonLines, ProgressLine, TensorBoard, summarize


class Lines:
    def __init__(self):
        self.lines, self.closed = [], False

    def write(self, measurement):
        self.lines.append(measurement)

    def close(self):
        self.closed = True


class FakeClock:
    now = 0.0

    def __call__(self):
        return self.now


def make_sums(**changes):
    fields = {
        "loss": [6.0, 0.0, 2.0],
        "correct": [1.0, 0.0, 1.0],
        "tokens": [3.0, 0.0, 1.0],
        "z_loss": 0.4,
        "weights": 4.0,
        "grad_norm": 1.5,
        "param_norm": 7.0,
        "learning_rate": 0.01,
        "examples": 2,
        "encoder_tokens": 30,
        "decoder_tokens": 10,
        "columns": 50,
    }
    return StepSums(**{k: np.asarray(v) for k, v in {**fields, **changes}.items()})


def make_verdict(**changes):
    fields = {
        "made": True, "finite": True, "spike": False, "waited": False,
        "loss_score": 0.0, "norm_score": 0.0, "spikes": 0, "skipped": 0, "in_a_row": 0,
    }  # fmt: skip
    return Verdict(**{k: np.asarray(v) for k, v in {**fields, **changes}.items()})


@pytest.fixture
def lines():
    return Lines()


def make_metrics(lines, clock=None, **changes):
    return Metrics(
        **{
            "denoiser_names": ("R", "S", "X"),
            "log_every_steps": 1,
            "writers": [lines],
            "clock": clock or FakeClock(),
            **changes,
        }
    )


def test_pause_is_no_part_of_the_speed(lines):
    clock = FakeClock()
    metrics = make_metrics(lines, clock, log_every_steps=3)
    metrics.record(1, make_sums())
    clock.now = 1.0
    metrics.record(2, make_sums())
    with metrics.paused():
        clock.now += 100.0
    clock.now += 1.0
    metrics.record(3, make_sums())
    assert lines.lines[0]["steps_per_second"] == 3 / 2


def test_updates_that_were_left_out_are_counted_and_no_part_of_means(lines):
    metrics = make_metrics(lines, log_every_steps=3)
    bad = make_sums(loss=[np.nan, 0, 0])._replace(
        verdict=make_verdict(made=False, skipped=4, spikes=2)
    )
    metrics.record(1, make_sums())
    metrics.note({"event": "skip", "step": 2, "batch": 1})
    metrics.leave_out(2, bad, skipped=True)
    metrics.record(3, make_sums())
    [line] = lines.lines
    assert line["loss"] == 2.0 and line["target_tokens"] == 8
    assert (line["skipped_updates"], line["spikes"]) == (5, 2)
    assert line["events"] == [{"event": "skip", "step": 2, "batch": 1}]


def test_line_of_nothing_but_skipped_updates_has_no_loss(lines):
    metrics = make_metrics(lines)
    bad = make_sums()._replace(verdict=make_verdict(made=False))
    metrics.leave_out(1, bad, skipped=True)
    [line] = lines.lines
    assert line == {
        "step": 1, "loss": None, "skipped_updates": 1, "spikes": 0, "rollbacks": 0,
    }  # fmt: skip
    assert summarize(line) == "update left out"


def test_flush_writes_what_is_there_once(lines):
    metrics = make_metrics(lines, log_every_steps=5)
    metrics.record(1, make_sums())
    assert lines.lines == []
    metrics.flush()
    metrics.flush()
    assert [line["step"] for line in lines.lines] == [1]


def test_measurement_covers_all_steps_since_the_last(lines):
    clock = FakeClock()
    metrics = make_metrics(lines, clock, log_every_steps=2, multiplied=(5, 7))

    def next_batch():
        clock.now += 0.5
        return "batch"

    clock.now = 100.0  # compiling
    metrics.dispatched()
    assert metrics.wait_for(next_batch) == "batch"
    metrics.dispatched()
    metrics.record(1, make_sums())
    clock.now = 102.0
    metrics.record(2, make_sums(loss=[6.0, 8.0, 2.0], tokens=[3.0, 4.0, 1.0]))
    [line] = lines.lines
    assert line["step"] == 2
    assert line["loss"] == pytest.approx(24 / 12)
    assert line["accuracy"] == pytest.approx(4 / 12)
    assert line["z_loss"] == pytest.approx(0.1)
    assert line["padding_fraction"] == pytest.approx(0.2)
    assert line["tokens_per_second"] == pytest.approx(40)
    assert line["examples_per_second"] == pytest.approx(2)
    assert line["data_wait_fraction"] == pytest.approx(0.25)
    assert line["learning_rate"] == pytest.approx(0.01)
    assert line["denoisers"]["R"] == {"loss": 2, "accuracy": 1 / 3, "tokens": 6}
    assert line["denoisers"]["S"]["loss"] == 2


def test_mfu_is_six_flops_per_parameter_and_token(lines, monkeypatch):
    import jax

    clock = FakeClock()
    metrics = make_metrics(lines, clock, multiplied=(5, 7))
    clock.now = 2.0
    monkeypatch.setitem(PEAK_FLOPS, jax.devices()[0].device_kind, 1000.0)
    metrics.record(1, make_sums())
    flops = 6 * (5 * 30 + 7 * 10)
    expected = flops / (2.0 * 1000 * jax.device_count())
    assert lines.lines[0]["mfu"] == pytest.approx(expected)


def test_mfu_is_left_out_where_the_peak_is_unknown(lines):
    metrics = make_metrics(lines)
    metrics.record(1, make_sums())
    metrics.flush()
    assert lines.lines[0]["mfu"] is None


def test_tied_table_is_multiplied_by_decoder_tokens_once():
    # table 128x16, places 12x16, up and down 2x16x32, scale 2x16, bias 4x8
    expected = 128 * 16 + 12 * 16 + 2 * 2 * 16 * 32 + 2 * 16 + 4 * 8
    assert multiplied_params(define_model(ToyModel)) == (0, expected)


def test_json_lines_drop_what_will_be_made_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, 0)
    for step in (1, 2, 3):
        writer.write({"step": step})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    writer = JsonLines(path, 2)
    writer.write({"step": 3, "again": True})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_reads_the_numbers_back(tmp_path):
    writer = TensorBoard(tmp_path, "train", 0)
    writer.write({"step": 5, "loss": 2.5, "mfu": None, "denoisers": {"R": {"loss": 3}}})
    writer.close()
    [path] = tmp_path.iterdir()
    events = list(EventFileLoader(str(path)).Load())
    values = {
        value.tag: value.tensor.float_val[0]
        for event in events
        for value in event.summary.value
        if event.step == 5
    }
    assert values == {"train/loss": 2.5, "train/denoisers/R/loss": 3.0}


def test_tensorboard_files_of_one_second_do_not_replace_each_other(tmp_path):
    for step in (1, 2, 3):
        writer = TensorBoard(tmp_path, "tasks", 0)
        writer.write({"step": step, "loss": 1.0})
        writer.close()
    assert len(list(tmp_path.iterdir())) == 3


def test_progress_is_a_plain_line_where_there_is_no_terminal():
    stream = io.StringIO()
    line = ProgressLine(10, 0, stream)
    line.write(
        {"step": 3, "loss": 2.5, "tokens_per_second": 12345.0,
         "denoisers": {"R": {"loss": 3.0}}}
    )  # fmt: skip
    line.close()
    assert stream.getvalue() == "step 3/10  loss 2.5000  12,345 tokens/s  R 3.000\n"


def test_unigram_entropy_is_that_of_the_counts():
    counts = np.array([2, 0, 1, 1])
    assert unigram_entropy(counts) == pytest.approx(math.log(2) / 2 + math.log(4) / 2)
    assert unigram_entropy(np.array([5, 0])) == 0.0


def test_evaluation_is_over_all_batches_and_per_denoiser():
    def eval_step(params, batch):
        counts = np.zeros((3, 4), np.int32)
        counts[0, batch], counts[2, 3] = 2, 1
        return EvalSums(
            np.array([2.0, 0.0, 5.0], np.float32),
            np.array([1.0, 0.0, 1.0], np.float32),
            np.array([2.0, 0.0, 1.0], np.float32),
            counts,
            np.array([2, 0, 1], np.int32),
            np.array([1, 0, 0], np.int32),
        )

    scores = evaluate(eval_step, None, [0, 1], lambda batch: batch, ("R", "S", "X"))
    assert scores["denoisers"]["R"] == {
        "loss": 1.0, "accuracy": 0.5, "tokens": 4.0,
        "sequence_accuracy": 0.5, "examples": 4.0,
        "unigram_entropy": pytest.approx(math.log(2)),
    }  # fmt: skip
    assert scores["denoisers"]["X"]["unigram_entropy"] == 0.0
    assert set(scores["denoisers"]) == {"R", "X"}
    assert scores["loss"] == pytest.approx(14 / 6)
    with pytest.raises(ValueError, match="EVAL_BATCHES"):
        evaluate(eval_step, None, [], lambda batch: batch, ("R", "S", "X"))
