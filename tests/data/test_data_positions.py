"""A run that is killed anywhere, on any hosts, reads what an undisturbed one reads."""

import functools
import itertools
import json

import numpy as np
import pytest
from data_toys import make_stream, make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.batch import ALL_ROWS, HostRows
from ul2.data.example_store import open_store, write_store
from ul2.data.loader import Loader, Source
from ul2.data.packing import pack
from ul2.data.run_data import Layout
from ul2.data.task_data import TaskData
from ul2.data.task_mixture import TaskRow

HOSTS = (1, 2, 4)
# What a process did before it died: batches it read, how many of these a checkpoint
# knows of, how many hosts there were, and how far ahead they read.
lives = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 5), st.sampled_from(HOSTS), st.integers(0, 3)
    ),
    min_size=1,
    max_size=6,
)


@functools.cache
def text_source(host=ALL_ROWS):
    """Returns batches of denoised text; an epoch is over after less than two."""
    tokens = 2 * make_stream().round_tokens + 11
    stream = make_stream(batch_size=8, num_tokens=tokens)
    assert stream.batches_per_epoch < 2
    return Source(stream, pack(stream, "encoder_decoder", shards=4), host)


@functools.cache
def task_splits(folder):
    """Returns two tasks of 19 and of 5 examples."""
    splits = []
    for task, count in {"a": 19, "b": 5}.items():
        examples = [([100 * i + 9, 100 * i + 10], [100 * i + 50]) for i in range(count)]
        names = {"task": task, "split": "train", "tokenizer_sha256": "0" * 64}
        write_store(folder / task, examples, **names)
        splits.append(open_store(folder / task, tokenizer_sha256="0" * 64))
    return tuple(splits)


@functools.cache
def task_source(folder, host=ALL_ROWS):
    """Returns batches of tasks; the epoch of one is over after less than two."""
    layout = Layout(
        architecture="encoder_decoder",
        inputs_length=8,
        targets_length=6,
        batch_size=8,
        seed=0,
        shards=4,
        host=host,
    )
    data = TaskData(
        rows=(TaskRow("a", 1, "S"), TaskRow("b", 1, None)),
        train=task_splits(folder),
        held_out=None,
        vocab=make_vocab(),
        tokenizer=b"",
        layout=layout,
    )
    return data.source("train")


def leaves(batch):
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    return [*itertools.chain(*sides), *batch[2:]]


@pytest.fixture(scope="module", params=["text", "tasks"])
def make_source(request, tmp_path_factory):
    if request.param == "text":
        return text_source
    return functools.partial(task_source, tmp_path_factory.mktemp("tasks"))


@settings(max_examples=12, derandomize=True, deadline=None)
@given(lives)
def test_position_is_exact_over_kills_hosts_and_epoch_ends(make_source, lives):
    alone = make_source()
    position, done = None, 0
    for read, lost, num_hosts, prefetch in lives:
        hosts = [HostRows((index,), num_hosts) for index in range(num_hosts)]
        loaders = [Loader(make_source(host), prefetch=prefetch) for host in hosts]
        for loader in loaders:
            if position is not None:
                loader.seek(json.loads(position))
            assert loader.position()["batch"] == done
        saved = max(0, read - lost)
        for number in range(done, done + read):
            if number == done + saved:
                position = save(loaders)
            whole = leaves(alone[number])
            for host, loader in zip(hosts, loaders, strict=True):
                for ours, theirs in zip(leaves(next(loader)), whole, strict=True):
                    np.testing.assert_array_equal(ours, host.of(theirs))
        if saved == read:
            position = save(loaders)
        done += saved


def save(loaders):
    """Returns the position that a checkpoint keeps; all hosts have the same."""
    positions = {json.dumps(loader.position()) for loader in loaders}
    assert len(positions) == 1
    return positions.pop()


@pytest.mark.parametrize("batch", [None, -1, 2.5, "3", True, 2**60, [1]])
def test_position_that_cannot_be_is_refused(make_source, batch):
    loader = Loader(make_source())
    position = {**loader.position(), "batch": batch}
    with pytest.raises(ValueError, match="data position is damaged: batch "):
        loader.seek(position)
    with pytest.raises(ValueError, match="data position is damaged"):
        loader.seek({key: position[key] for key in position if key != "batch"})
