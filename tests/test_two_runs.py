"""The second command that writes to one place is refused while the first lives."""

import os

import pytest
from wiring_toys import flags, make_store

from ul2 import cli
from ul2.interop import staging
from ul2.lock import Lock
from ul2.training import run_directory


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("two_runs"))


def refused(arguments, lock, capfd):
    """Returns what a command says while this process holds a lock."""
    lock.parent.mkdir(exist_ok=True)
    with Lock(lock, what="it", instead="wait"):
        assert cli.main(list(map(str, arguments))) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"is in use by process {os.getpid()} on " in line
    return line


def test_second_run_in_a_directory_is_refused_and_writes_nothing(
    store, tmp_path, capfd
):
    run = tmp_path / "run"
    recipe = ["train", *flags(store, model="dec_only_tiny", MODEL_DIR=run)]
    line = refused(recipe, run / ".lock", capfd)
    assert line.startswith(f"error: {run} is in use")
    assert line.endswith("wait for it or end it, or choose another MODEL_DIR.")
    assert os.listdir(run) == []


def test_second_tokenizing_into_a_store_is_refused(store, tmp_path, capfd):
    out = tmp_path / "out"
    text = store.parent / "corpus.jsonl"
    command = ["tokenize", "--text", text, "--vocab", store / "tokenizer.model"]
    command += ["--out", out, "--num_workers", 1]
    line = refused(command, tmp_path / ".out.lock", capfd)
    assert line.endswith("or choose another place.")
    assert os.listdir(tmp_path) == []


def test_second_conversion_to_a_place_is_refused(tmp_path):
    with (
        staging.claimed(tmp_path / "out"),
        pytest.raises(ValueError, match=r"out is in use by process .* another --out"),
        staging.claimed(tmp_path / "out"),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_store_that_a_kill_left_half_replaced_is_put_back(store, tmp_path):
    """The kill fell between the two renames of an --overwrite."""
    out, old = tmp_path / "out", tmp_path / ".out.replaced"
    (tmp_path / ".out.partial").mkdir()
    store.rename(old)
    try:
        text = store.parent / "corpus.jsonl"
        command = ["tokenize", "--text", text, "--vocab", old / "tokenizer.model"]
        assert cli.main([*map(str, command), "--out", str(out)]) == 2
        assert sorted(os.listdir(tmp_path)) == ["out"]
    finally:
        out.rename(store)


def test_all_processes_of_a_job_are_refused_where_the_first_is(tmp_path, monkeypatch):
    """The others hold no lock: process 0 says to them what it was told."""
    monkeypatch.setattr(run_directory.jax, "process_index", lambda: 1)
    monkeypatch.setattr(
        run_directory.processes, "said_by_first", lambda about, text: "run is in use"
    )
    with (
        pytest.raises(ValueError, match="run is in use"),
        run_directory.claimed(tmp_path / "run"),
    ):
        pass
    assert os.listdir(tmp_path) == []
