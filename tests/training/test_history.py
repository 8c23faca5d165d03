"""What happened to the processes of a run, beside what they measured."""

import json

import pytest
from training_toys import ToyBatches, run_train

from ul2.run_files import HISTORY


class StoppedError(Exception):
    """The machine went away."""


def history(model_dir):
    lines = (model_dir / HISTORY).read_text().splitlines()
    return [json.loads(line) for line in lines]


def told(model_dir):
    return [
        (line["event"], line["step"], line.get("how")) for line in history(model_dir)
    ]


def stop_before(index):
    def on_next(now):
        if now == index:
            raise StoppedError

    return ToyBatches(on_next=on_next)


def test_history_has_every_start_save_and_end(tmp_path, one_device):
    with pytest.raises(StoppedError):
        run_train(tmp_path, mesh=one_device, batches=stop_before(4))
    first = told(tmp_path)
    assert first[0] == ("start", 0, None)
    assert ("save", 3, None) in first
    assert ("end", 4, "StoppedError") in first
    run_train(tmp_path, mesh=one_device)
    assert told(tmp_path)[len(first) :] == [
        ("start", 3, None),
        ("save", 6, None),
        ("end", 6, "done"),
    ]
    lines = history(tmp_path)
    assert all(line["host_memory_bytes"] > 2**20 for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert (lines[0]["processes"], lines[0]["device_kind"]) == (1, "cpu")


def test_history_says_of_a_signal(tmp_path, one_device):
    import os
    import signal

    def on_next(index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run_train(tmp_path, mesh=one_device, batches=ToyBatches(on_next=on_next))
    assert told(tmp_path)[-1] == ("end", 2, "stopped")
