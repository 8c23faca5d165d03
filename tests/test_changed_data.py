"""A run goes on with the data that it began with, or says whose fault it is."""

import json

import jax
import numpy as np
import pytest
from wiring_toys import WORDS, flags, make_store, write_corpus

from ul2 import cli, launch, starting
from ul2.data.loader import Loader
from ul2.tasks.sources import TextSource
from ul2.tasks.tokenization import tokenize_corpus
from ul2.tasks.tokenizer import open_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("changed")


@pytest.fixture(scope="module")
def store(folder):
    return make_store(folder)


def parse(arguments):
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return files, [tuple(pair.split("=", 1)) for pair in pairs]


def errors_of(arguments, **options):
    return launch.check(*parse(arguments), **options)["errors"]


def open_batches(store):
    """Returns the batches of a run on a store."""
    recipe = launch.read(*parse(flags(store, MODEL_DIR="unused")))
    return Loader(recipe.open_data(launch.make_mesh(recipe)).source("train"))


def tokenize(corpus, out, tokenizer):
    source = TextSource(files=str(corpus), held_out_share=0.2)
    opened = open_tokenizer(tokenizer)
    tokenize_corpus(source, out, opened, num_workers=1, progress=False)
    return out


def other(lines):
    """Returns documents of which one word is another."""
    first = json.loads(lines[0])["text"].split()
    first[0] = next(word for word in WORDS.split() if word != first[0])
    return [json.dumps({"text": " ".join(first)}), *lines[1:]]


CHANGES = {
    "content": other,
    "appended": lambda lines: [*lines, json.dumps({"text": WORDS[::-1]})],
    "shuffled": lambda lines: lines[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_store_that_was_changed_under_a_run_is_refused(change, store, tmp_path):
    lines = (store.parent / "corpus.jsonl").read_text().splitlines()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(CHANGES[change](lines)) + "\n")
    changed = tokenize(corpus, tmp_path / "store", store.parent / "t.model")
    batches = open_batches(changed)
    with pytest.raises(ValueError, match="position is of another stream ") as caught:
        batches.seek(open_batches(store).position())
    error = str(caught.value)
    assert "DATA is not what the run has read so far (changed, appended to" in error
    assert "\n" not in error


def test_store_that_was_tokenized_again_alike_is_the_same(store, tmp_path):
    again = tokenize(
        store.parent / "corpus.jsonl", tmp_path / "store", store.parent / "t.model"
    )
    position = {**open_batches(store).position(), "batch": 7}
    batches = open_batches(again)
    batches.seek(position)
    assert batches.position() == position


def test_missing_and_cut_shards_are_named(store, tmp_path):
    broken = tmp_path / "store"
    tokenize(write_corpus(tmp_path / "c.jsonl"), broken, store.parent / "t.model")
    shard = broken / "train-00000.tokens"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    (error,) = errors_of(flags(broken, MODEL_DIR="unused"))
    assert f"{shard} holds {len(content) - 2:,} bytes, {len(content):,} were" in error
    shard.unlink()
    (error,) = errors_of(flags(broken, MODEL_DIR="unused"))
    assert f"{shard} is missing from the store" in error


def test_bit_that_flipped_stops_training_with_one_line(store, tmp_path, capfd):
    broken = tmp_path / "store"
    tokenize(write_corpus(tmp_path / "c.jsonl"), broken, store.parent / "t.model")
    shard = broken / "train-00000.tokens"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    recipe = flags(broken, MODEL_DIR=tmp_path / "run")
    assert errors_of(recipe, verify_data=True)[0].startswith(f"{shard} is damaged: ")
    capfd.readouterr()
    assert cli.main(["train", *recipe, "--gin.TOTAL_STEPS=1000"]) == 2
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "error" in one]
    assert line.startswith(f"error: {shard} is damaged between bytes ")


@pytest.mark.parametrize("differs", [False, True])
def test_processes_with_other_data_say_so_together(
    differs, store, tmp_path, monkeypatch
):
    """Each of three processes sees what all have; the last one is of another store."""
    other = make_store(tmp_path, seed=1 if differs else 0)
    recipe = launch.read(*parse(flags(store, MODEL_DIR="unused")))
    loaders = [open_batches(one) for one in (store, store, other)]
    seen = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        starting.multihost_utils,
        "process_allgather",
        lambda one: seen.append(one) or np.stack([seen[0]] * 3),
    )
    for loader in loaders[1:]:
        starting.seek_start(recipe, starting.Start(), loader)
    digests = np.stack([seen[0], seen[0], seen[1]])
    monkeypatch.setattr(
        starting.multihost_utils, "process_allgather", lambda one: digests
    )
    if not differs:
        starting.seek_start(recipe, starting.Start(), loaders[0])
        return
    for loader in loaders:
        with pytest.raises(ValueError, match="process 2 of 3 has other data than pro"):
            starting.seek_start(recipe, starting.Start(), loader)
