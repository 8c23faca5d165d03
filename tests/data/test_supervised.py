"""Batches of tasks: exact shares, every example once an epoch, the same on any host."""

import itertools
import json

import numpy as np
import pytest
from data_toys import EOS, make_vocab

from ul2.batch import HostRows
from ul2.data.example_store import open_store, write_store
from ul2.data.loader import Loader
from ul2.data.run_data import Layout
from ul2.data.task_data import TaskData
from ul2.data.task_mixture import TaskMixture, TaskRow, counts_of

VOCAB = make_vocab()
ARCHITECTURES = ("encoder_decoder", "decoder_only")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two tasks whose tokens say what they are: task, example, place."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    made = {}
    for task, (train, held_out) in {"a": (70, 11), "b": (23, 9)}.items():
        for split, count in {"train": train, "held_out": held_out}.items():
            first = {"a": 1000, "b": 50_000}[task] + 10_000 * (split == "held_out")
            examples = [
                (
                    [first + 100 * i + n for n in range(rng.integers(2, 30))],
                    [first + 100 * i + 50 + n for n in range(rng.integers(1, 8))],
                )
                for i in range(count)
            ]
            path = folder / task / split
            names = {"task": task, "split": split, "tokenizer_sha256": "0" * 64}
            write_store(path, examples, **names)
            made[task, split] = open_store(path, tokenizer_sha256="0" * 64)
    return made


ROWS = (TaskRow("a", 2, "S"), TaskRow("b", 1, None))


def make_data(stores, rows=ROWS, *, architecture="encoder_decoder", **changes):
    layout = {
        "architecture": architecture,
        "inputs_length": 40,
        "targets_length": 12,
        "batch_size": 8,
        "seed": 0,
        "shards": 2,
    }
    own = {key: changes.pop(key) for key in layout.keys() & changes.keys()}
    more = {
        key: changes.pop(key) for key in ("host", "examples_per_row") if key in changes
    }
    fields = {
        "rows": rows,
        "train": tuple(stores[row.name, "train"] for row in rows),
        "held_out": tuple(stores[row.name, "held_out"] for row in rows),
        "vocab": VOCAB,
        "tokenizer": b"",
        "layout": Layout(**{**layout, **own}, **more),
    }
    return TaskData(**{**fields, **changes})


def examples_in(batch):
    """Yields (task, inputs, targets) of every example of a batch, from its columns."""
    for row in range(len(batch.targets)):
        for n in range(batch.prefix_lengths.shape[1]):
            columns = batch.decoder.columns[row, n]
            columns = columns[columns >= 0]
            if not len(columns):
                continue
            learned = batch.targets[row, columns]
            weights = batch.loss_weights[row, columns] > 0
            targets = learned[weights].tolist()
            if batch.encoder is None:
                inputs = learned[~weights].tolist()
                assert batch.prefix_lengths[row, n] == len(inputs) + 1
            else:
                places = batch.encoder.columns[row, n]
                inputs = batch.encoder.tokens[row, places[places >= 0]].tolist()
            yield int(batch.denoiser_ids[row, columns[-1]]), inputs, targets


def stored(stores, task, split="train"):
    """Returns what every example of a task must look like, untruncated."""
    index = {"a": 0, "b": 1}[task]
    mode = list(VOCAB.mode(ROWS[index].mode))
    examples = stores[task, split]
    return [
        (
            index,
            [*mode, *examples.inputs[i].tolist(), EOS],
            [*examples.targets[i].tolist(), EOS],
        )
        for i in examples.rows.tolist()
    ]


def leaves(batch):
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    return [*itertools.chain(*sides), *batch[2:]]


def assert_same(ours, theirs):
    for left, right in zip(leaves(ours), leaves(theirs), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_hold_every_example_once_an_epoch_in_exact_shares(stores, architecture):
    data = make_data(stores, architecture=architecture)
    source, found = data.source("train"), []
    for k in range(24):
        shown = [
            (data.names.index(one.denoiser), one.inputs.tolist(), one.targets.tolist())
            for one in data.examples("train", k)
        ]
        assert sorted(examples_in(source[k])) == sorted(shown)
        found += shown
    assert len(found) == 24 * 8
    of_a = [one for one in found if one[0] == 0]
    of_b = [one for one in found if one[0] == 1]
    assert (len(of_a), len(of_b)) == (128, 64)
    # 70 examples of a, so an epoch and most of the next; 23 of b, so almost three.
    assert sorted(of_a[:70]) == sorted(stored(stores, "a"))
    assert of_a[:58] != of_a[70:128]
    for epoch in range(2):
        part = of_b[23 * epoch : 23 * (epoch + 1)]
        assert sorted(part) == sorted(stored(stores, "b"))


def test_rows_are_packed_and_one_shape_does_for_all(stores):
    data = make_data(stores, batch_size=64, shards=1)
    source = data.source("train")
    assert source.plan.examples_per_row > 1
    shapes = {batch.targets.shape for batch in (source[k] for k in range(30))}
    assert len(shapes) == 1
    assert data.measure().report["padding_fraction"] < 0.2


def test_batch_of_longer_rows_than_planned_gets_wider_ones(stores):
    source = make_data(stores, examples_per_row=4).source("train")
    lengths = np.full((8, 2), 40)
    dealt, shape = source.plan.deal(lengths)
    assert sorted(dealt.ravel().tolist()) == list(range(8))
    assert shape.widths[0] >= 160 > source.plan.widths[0]
    assert all(width % 8 == 0 for width in shape.widths)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("per_row", [1, 2])
def test_hosts_together_read_the_batch_that_one_would(stores, architecture, per_row):
    options = {"architecture": architecture, "examples_per_row": per_row}
    alone = make_data(stores, **options).source("train")[3]
    parts = [
        make_data(stores, host=HostRows((index,), 2), **options).source("train")[3]
        for index in range(2)
    ]
    together = [
        np.concatenate(arrays)
        for arrays in zip(*(leaves(part) for part in parts), strict=True)
    ]
    for ours, wanted in zip(together, leaves(alone), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_layout_changes_nothing_but_the_layout(stores):
    batches = [
        make_data(stores, shards=shards, examples_per_row=per_row).source("train")[5]
        for shards, per_row in ((1, 1), (1, 8), (2, 4), (8, None))
    ]
    found = [sorted(examples_in(batch)) for batch in batches]
    assert all(one == found[0] for one in found)


def test_modes_differ_in_their_prefix_alone(stores):
    rows = (TaskRow("a", 2, "auto"), TaskRow("b", 1, None))
    data = make_data(stores, rows)
    assert make_data(stores).candidates() == {}
    batches = {m: d.source("train")[2] for m, d in data.candidates().items()}
    assert list(batches) == ["R", "S", "X", "none"]
    assert len({tuple(a.shape for a in leaves(b)) for b in batches.values()}) == 1
    shown = {mode: list(examples_in(batch)) for mode, batch in batches.items()}
    for mode, examples in shown.items():
        ids = [] if mode == "none" else list(VOCAB.mode(mode))
        for (task, inputs, targets), plain in zip(examples, shown["none"], strict=True):
            prefix = ids if task == 0 else []
            assert (task, inputs, targets) == (task, prefix + plain[1], plain[2])


def test_long_examples_are_cut_before_mode_and_eos(stores):
    data = make_data(stores, inputs_length=10, targets_length=4)
    lengths = {"inputs": set(), "targets": set()}
    whole = {tuple(i): t for task in "ab" for _, i, t in stored(stores, task)}
    for k in range(12):
        for task, inputs, targets in examples_in(data.source("train")[k]):
            lengths["inputs"].add(len(inputs))
            lengths["targets"].add(len(targets))
            assert inputs[-1] == targets[-1] == EOS
            assert any(
                full[: len(inputs) - 1] == tuple(inputs[:-1])
                and t[: len(targets) - 1] == targets[:-1]
                for full, t in whole.items()
            )
            if task == 0:
                assert inputs[0] == VOCAB.mode("S")[0]
    assert (max(lengths["inputs"]), max(lengths["targets"])) == (10, 4)
    rows = {row["name"]: row for row in data.measure().report["tasks"]}
    for task in "ab":
        counts = stores[task, "train"].lengths("inputs")
        # Room for a mode is kept for both tasks.
        assert rows[task]["truncated_inputs"] == int((counts > 8).sum())
    assert "inputs of a are cut at INPUTS_LENGTH=10" in data.warnings()[0]


def test_long_examples_are_refused_by_choice(stores):
    with pytest.raises(ValueError, match=r"inputs of task 'a' are too long.*29 tokens"):
        make_data(stores, inputs_length=20, on_long="refuse")
    make_data(stores, inputs_length=60, on_long="refuse")


def test_lengths_without_room_are_refused(stores):
    with pytest.raises(ValueError, match=r"INPUTS_LENGTH=2 leaves no room.*at least 3"):
        make_data(stores, inputs_length=2).source("train")


def test_held_out_batches_hold_every_example_once(stores):
    for architecture in ARCHITECTURES:
        data = make_data(stores, architecture=architecture)
        make = data.held_out_batches(None)
        batches = list(make())
        assert len(batches) == 3  # 20 examples in batches of 8
        found = [one for batch in batches for one in examples_in(batch)]
        wanted = stored(stores, "a", "held_out") + stored(stores, "b", "held_out")
        assert sorted(found) == sorted(wanted)
        for ours, theirs in zip(batches, make(), strict=True):
            assert_same(ours, theirs)
        assert len(list(data.held_out_batches(2)())) == 2
    assert data.held_out_batches(0) is None


def test_position_is_a_number_and_seeking_reads_nothing(stores):
    source = make_data(stores).source("train")
    loader = Loader(source)
    for _ in range(3):
        next(loader)
    position = json.loads(json.dumps(loader.position()))
    wanted = [next(loader) for _ in range(3)]
    other = Loader(make_data(stores, shards=8).source("train"))
    other.seek(position)
    assert position["batch"] == 3
    for k, batch in enumerate(wanted):
        assert sorted(examples_in(next(other))) == sorted(examples_in(batch))
        assert_same(source[3 + k], batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"batch_size": 16}, "batch_size: 8 -> 16"),
        ({"inputs_length": 30}, "inputs_length: 40 -> 30"),
        ({"rows": (TaskRow("a", 2, "X"), ROWS[1])}, "tasks: "),
        ({"rows": (TaskRow("a", 1, "S"), ROWS[1])}, "rates: "),
    ],
)
def test_position_of_other_batches_is_refused(stores, changes, message):
    position = Loader(make_data(stores).source("train")).position()
    with pytest.raises(ValueError, match=message):
        Loader(make_data(stores, **changes).source("train")).seek(position)


def test_shown_examples_are_those_of_the_batch(stores):
    data = make_data(stores)
    for split in ("train", "held_out"):
        shown = list(data.examples(split, 2))
        batch = data.source(split)[2]
        assert sorted(
            (data.names.index(one.denoiser), one.inputs.tolist(), one.targets.tolist())
            for one in shown
        ) == sorted(examples_in(batch))
        for one in shown:
            name, _, number = one.source.partition(":")
            assert name == split
            store = stores[one.denoiser, split]
            assert one.targets[:-1].tolist() == store.targets[int(number)].tolist()


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ("a", [("a", 1, "S")]),
        (("a", "b"), [("a", 1, "S"), ("b", 1, "S")]),
        ((("a", 2, "R"), ("b", 0.5)), [("a", 2, "R"), ("b", 0.5, "S")]),
        ([["a", 2, "none"], ["b", 1, None]], [("a", 2, None), ("b", 1, None)]),
        ("both", [("a", 3, "S"), ("b", 1, "S")]),
    ],
)
def test_task_names_a_task_a_mixture_or_rows(given, rows):
    mixtures = {"both": (("a", 3), ("b", 1))}
    found = TaskMixture(tasks=given, mode="S").rows(
        lambda name: mixtures.get(name, ((name, 1),))
    )
    assert [(row.name, row.rate, row.mode) for row in found] == rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "Q"}, "MODE: mode 'Q' is not one of R, S, X, none, auto"),
        ({"on_long": "drop"}, "ON_LONG='drop' is not one of truncate, refuse"),
        ({"held_out_share": 1.0}, r"HELD_OUT_SHARE=1.0 must lie in \[0, 1\)"),
        ({"eval_split": "train"}, "set another split, or HELD_OUT_SHARE"),
        ({"tasks": (("a", 1), ("a", 2))}, "TASK names 'a' more than once"),
        ({"tasks": (("a", 1, "Q"),)}, "TASK: mode 'Q' is not one of"),
        ({"tasks": (("a", -1),)}, "the rate of 'a' is -1, not positive"),
        ({"tasks": 3}, "TASK=3 is no task"),
        ({"tasks": ((1, 2),)}, r"\(1, 2\) is not \(task, rate\)"),
    ],
)
def test_wrong_mixture_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        TaskMixture(**{"tasks": "a", **fields}).rows(lambda name: ((name, 1),))
    assert "\n" not in str(caught.value)


def test_rates_that_are_numbers_of_examples_are_rounded():
    rows = [
        TaskRow("a", 287_113, None),
        TaskRow("b", 9_427, None),
        TaskRow("c", 3, None),
    ]
    a, b, c = counts_of(rows)
    assert a + b + c <= 1001
    assert a / b == pytest.approx(287_113 / 9_427, rel=0.02)
    assert c == 1
