"""Tasks to stores of ids: once, exactly, and by the checkpoint's own tokenizer."""

import numpy as np
import pytest
from text_toys import SENTENCE, train_foreign

from ul2.data.run_data import Layout
from ul2.data.task_mixture import TaskMixture
from ul2.tasks.example_tokenization import (
    TaskReader,
    open_tasks,
    registered_tasks,
    store_path,
    tokenizer_of,
)
from ul2.tasks.text_task import TextExample

ROWS = {
    "train": [
        ("the model", "reads"),
        ("every word of the story", "the word"),
        ("", ""),
    ],
    "validation": [("the story", "model")],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_foreign(tmp_path_factory.mktemp("tokenizer") / "t.model")


class Reader:
    """Gives the rows of every task, and notes what was read."""

    def __init__(self, rows=ROWS):
        self.rows, self.reads = rows, []
        self.reader = TaskReader(
            splits=lambda name: list(rows),
            read=self.read,
            find_mixture=lambda name: ((name, 1),),
        )

    def read(self, name, split):
        self.reads.append((name, split))
        for inputs, targets in self.rows[split]:
            yield TextExample(inputs, targets)


def open_toy(tokenizer, folder, reader, *, evaluates=True, scratch=None, **fields):
    layout = Layout(
        architecture="encoder_decoder",
        inputs_length=16,
        targets_length=8,
        batch_size=2,
        seed=0,
    )
    return open_tasks(
        TaskMixture(**{"tasks": "toy", **fields}),
        layout,
        tokenizer,
        tokenizer.vocab,
        folder,
        evaluates=evaluates,
        reader=reader.reader,
        scratch=scratch,
    )


def test_ids_are_those_of_the_text_without_eos(tokenizer, tmp_path):
    data = open_toy(tokenizer, tmp_path, Reader())
    (train,), (held_out,) = data.train, data.held_out
    for split, rows in ((train, ROWS["train"]), (held_out, ROWS["validation"])):
        for number, (inputs, targets) in enumerate(rows):
            assert split.inputs[number].tolist() == tokenizer.encode(inputs)
            assert split.targets[number].tolist() == tokenizer.encode(targets)
    assert data.tokenizer == tokenizer.model


def test_store_that_is_there_is_not_made_again(tokenizer, tmp_path):
    reader = Reader()
    first = open_toy(tokenizer, tmp_path, reader)
    assert reader.reads == [("toy", "train"), ("toy", "validation")]
    again = open_toy(tokenizer, tmp_path, reader)
    assert len(reader.reads) == 2
    assert [s.fingerprint for s in again.train] == [s.fingerprint for s in first.train]
    open_toy(tokenizer, tmp_path, reader, tasks=(("other", 1),))
    assert reader.reads[2:] == [("other", "train"), ("other", "validation")]


def test_what_is_looked_at_is_made_elsewhere_and_what_is_kept_is_read(
    tokenizer, tmp_path
):
    kept, scratch, reader = tmp_path / "kept", tmp_path / "scratch", Reader()
    open_toy(tokenizer, kept, reader, evaluates=False)
    data = open_toy(tokenizer, kept, reader, scratch=scratch)
    assert reader.reads == [("toy", "train"), ("toy", "validation")]
    assert len(data.held_out[0]) == 1
    made = {p.relative_to(tmp_path).parts[0::2] for p in tmp_path.glob("*/*/*")}
    assert made == {("kept", "train"), ("scratch", "validation")}


def test_stores_of_two_tokenizers_lie_side_by_side(tokenizer, tmp_path):
    other = train_foreign(tmp_path / "other.model")
    assert other.sha256 == tokenizer.sha256  # the same text makes the same file
    path = store_path(tmp_path, "ours/../x", "train", tokenizer)
    assert path.relative_to(tmp_path).parts == (
        f"ours_.._x-{tokenizer.sha256[:8]}",
        "train",
    )


def test_nothing_is_read_of_what_is_not_evaluated(tokenizer, tmp_path):
    reader = Reader()
    assert open_toy(tokenizer, tmp_path, reader, evaluates=False).held_out is None
    assert reader.reads == [("toy", "train")]


def test_share_of_the_training_examples_is_held_out(tokenizer, tmp_path):
    words = SENTENCE.split()
    rows = [(" ".join([words[i % 8]] * (1 + i // 8)), "word") for i in range(80)]
    data = open_toy(tokenizer, tmp_path, Reader({"train": rows}), held_out_share=0.25)
    (train,), (held_out,) = data.train, data.held_out
    assert sorted([*train.rows.tolist(), *held_out.rows.tolist()]) == list(range(80))
    assert 5 < len(held_out) < 40
    with pytest.raises(ValueError, match=r"HELD_OUT_SHARE=1e-09 parts the 80 examples"):
        open_toy(tokenizer, tmp_path, Reader({"train": rows}), held_out_share=1e-9)


def test_task_without_training_examples_is_refused(tokenizer, tmp_path):
    reader = Reader({"test": ROWS["train"]})
    with pytest.raises(ValueError, match="no split 'train' to train on, only test"):
        open_toy(tokenizer, tmp_path, reader)
    assert reader.reads == []


def test_store_that_was_renamed_is_refused(tokenizer, tmp_path):
    open_toy(tokenizer, tmp_path, Reader())
    made = store_path(tmp_path, "toy", "train", tokenizer)
    made.parent.rename(store_path(tmp_path, "other", "train", tokenizer).parent)
    with pytest.raises(ValueError, match="holds train of toy, not train of other"):
        open_toy(tokenizer, tmp_path, Reader(), tasks="other")


def test_tokenizer_of_a_checkpoint_has_its_sentinels(tokenizer):
    found = tokenizer_of(tokenizer.path, tokenizer.model, tokenizer.vocab)
    assert found.vocab == tokenizer.vocab
    assert len(found.vocab.sentinel_ids) == 4
    ids = [*found.encode("the model"), found.vocab.sentinel_ids[0]]
    assert found.decode(ids).endswith("<extra_id_0>")


def test_names_stand_for_registered_tasks_and_mixtures():
    reader = registered_tasks(None)
    assert reader.find_mixture("super_glue_boolq") == (("super_glue_boolq", 1.0),)
    assert len(reader.find_mixture("super_glue")) == 8
    assert "validation" in reader.splits("super_glue_boolq")
    with pytest.raises(ValueError, match=r"did you mean .*super_glue_boolq"):
        reader.find_mixture("super_glue_boolk")
    assert np.isfinite([rate for _, rate in reader.find_mixture("glue")]).all()
