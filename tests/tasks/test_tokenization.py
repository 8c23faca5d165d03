import dataclasses
import gzip
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rich.console

from ul2.data.token_store import TokenStore
from ul2.tasks import file_parts, part_encoding, tokenization
from ul2.tasks import progress as progress_module
from ul2.tasks.progress import Progress
from ul2.tasks.sources import TextSource, read_documents
from ul2.tasks.splits import split_documents
from ul2.tasks.tokenization import TaskSource, tokenize_corpus


@pytest.fixture
def files(tmp_path, texts):
    for part in range(2):
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts[part::2])
        (tmp_path / f"{part}.jsonl").write_text(lines)
    return TextSource(files=f"{tmp_path}/*.jsonl", held_out_share=0.2)


def read_back(store, tokenizer):
    """Every document of the store: (split, source, record) to text."""
    found = {}
    for name, split in store.splits.items():
        tokens = split.take(np.array([0]), split.num_tokens)[0]
        begin = 0
        for end in np.flatnonzero(tokens == store.vocab.eos_id):
            place = split.document_of(begin)
            assert place.offset == 0
            text = tokenizer.decode(tokens[begin:end])
            found[os.path.basename(place.source), place.record] = (name, text)
            begin = end + 1
        assert begin == split.num_tokens
    return found


def test_every_document_is_in_the_store_with_its_origin(
    files, texts, tokenizer, tmp_path
):
    out = tmp_path / "store"
    summary = tokenize_corpus(files, out, tokenizer, num_workers=1, progress=False)
    store = TokenStore.open(out)
    store.verify()
    store.require_tokenizer(tokenizer.sha256)
    found = read_back(store, tokenizer)
    wanted = {(f"{i % 2}.jsonl", i // 2 + 1): text for i, text in enumerate(texts)}
    assert {place: text for place, (_, text) in found.items()} == wanted
    assert {split for split, _ in found.values()} == {"train", "held_out"}
    assert sum(summary.documents.values()) == len(texts)
    assert summary.tokens == {n: s.num_tokens for n, s in store.splits.items()}
    assert summary.text_bytes == sum(len(text.encode()) for text in texts)
    assert summary.unknown_tokens == summary.skipped == 0
    provenance = store.manifest["provenance"]
    assert provenance["held_out_share"] == 0.2
    assert provenance["text_bytes"] == summary.text_bytes


def write_odd_corpus(path, texts):
    """Files of all kinds, some broken; returns where they are."""
    path.mkdir()
    lines = [json.dumps({"text": text}) for text in texts]
    (path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    (path / "b.jsonl").write_text("\n\n".join([*lines[:9], "{", *lines[9:], "[1]"]))
    (path / "c.txt").write_bytes(b"\n \n".join(text.encode() for text in texts))
    (path / "d.txt").write_bytes(b"one\n\nb\xffd\n\n" + texts[0].encode() * 30)
    (path / "e.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (path / "f.jsonl").write_bytes(b"")
    table = pyarrow.table({"text": [*texts, None]})
    pyarrow.parquet.write_table(table, path / "g.parquet", row_group_size=7)
    return TextSource(files=str(path), on_error="skip", held_out_share=0.2)


def test_bytes_do_not_depend_on_workers_and_parts(
    texts, tokenizer, tmp_path, monkeypatch
):
    source = write_odd_corpus(tmp_path / "corpus", texts)
    made = {}
    # Many parts per worker, and parts that do not come back in order.
    for workers, size in ((1, 2**19), (1, 1), (1, 100), (2, 300)):
        monkeypatch.setattr(file_parts, "_PART_BYTES", size)
        monkeypatch.setattr(file_parts, "_TABLE_PART_BYTES", size)
        out = tmp_path / f"store{workers}.{size}"
        summary = tokenize_corpus(
            source, out, tokenizer, num_workers=workers, progress=False
        )
        facts = dataclasses.replace(summary, path="", seconds=0)
        made[workers, size] = (
            facts,
            {file.name: file.read_bytes() for file in out.iterdir()},
        )
    first = made[1, 2**19]
    assert first[0].skipped == 5
    for other in made.values():
        assert other == first


def test_store_holds_what_reading_and_splitting_yield(texts, tokenizer, tmp_path):
    source = write_odd_corpus(tmp_path / "corpus", texts)
    reasons = []
    documents = read_documents(source, reasons.append)
    wanted = {
        (os.path.basename(one.source), one.record): (split, one.text)
        for split, one in split_documents(documents, source.held_out_share)
    }
    summary = tokenize_corpus(
        source, tmp_path / "s", tokenizer, num_workers=1, progress=False
    )
    assert read_back(TokenStore.open(tmp_path / "s"), tokenizer) == wanted
    assert summary.skipped_reasons == tuple(reasons)


def test_first_error_in_reading_order_is_told(tokenizer, tmp_path, monkeypatch):
    """The second file is refused when it is cut, the first one when it is encoded."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{')
    (tmp_path / "b.parquet").write_text("no table")
    monkeypatch.setattr(file_parts, "import_extra", no_library)
    options = {"num_workers": 2, "progress": False}
    with pytest.raises(ValueError, match=r"a\.jsonl:2: broken JSON"):
        tokenize_corpus(
            TextSource(files=str(tmp_path)), tmp_path / "s", tokenizer, **options
        )
    skipping = TextSource(files=str(tmp_path), on_error="skip")
    with pytest.raises(ValueError, match=r"b\.parquet: no library"):
        tokenize_corpus(skipping, tmp_path / "s", tokenizer, **options)


def no_library(name, file):
    raise ValueError(f"{file}: no library {name}")


def test_part_of_a_table_that_unpacks_to_too_much_is_read_piece_by_piece(
    texts, tokenizer, tmp_path, monkeypatch
):
    corpus = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), corpus)
    source = TextSource(files=str(corpus), held_out_share=0.2)
    options = {"num_workers": 1, "progress": False}
    tokenize_corpus(source, tmp_path / "whole", tokenizer, **options)
    monkeypatch.setattr(part_encoding, "_CALL_CHARACTERS", 100)
    monkeypatch.setattr(part_encoding, "_MAX_TABLE_CHARACTERS", 500)
    monkeypatch.setattr(file_parts, "_PART_BYTES", 300)
    summary = tokenize_corpus(source, tmp_path / "pieces", tokenizer, **options)
    assert sum(summary.documents.values()) == len(texts)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "pieces" / file.name).read_bytes()


def test_skipped_records_are_counted_and_named(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{\n' + '{"text": 2}\n' * 20)
    source = TextSource(files=str(tmp_path / "a.jsonl"), on_error="skip")
    out = tmp_path / "store"
    summary = tokenize_corpus(source, out, tokenizer, num_workers=1, progress=False)
    assert summary.skipped == 21
    assert len(summary.skipped_reasons) == 10
    assert "a.jsonl:2: broken JSON" in summary.skipped_reasons[0]
    assert TokenStore.open(out).manifest["provenance"]["skipped"] == 21


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_text_leaves_no_store(tokenizer, tmp_path, workers):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ')
    source = TextSource(files=str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: broken JSON"):
        tokenize_corpus(
            source, tmp_path / "s", tokenizer, num_workers=workers, progress=False
        )
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_wrong_requests_are_refused(files, tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    empty = TextSource(files=str(tmp_path / "empty.txt"), on_error="skip")
    with pytest.raises(ValueError, match=r"empty\.txt holds no text; nothing"):
        tokenize_corpus(empty, tmp_path / "s", tokenizer, num_workers=1, progress=False)
    assert not (tmp_path / "s").exists()
    with pytest.raises(ValueError, match="num_workers=0"):
        tokenize_corpus(files, tmp_path / "s", tokenizer, num_workers=0)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").write_text("")
    with pytest.raises(ValueError, match="exists"):
        tokenize_corpus(files, tmp_path / "s", tokenizer, num_workers=1)


def test_dying_worker_is_an_error_and_leaves_no_store(
    files, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenization, "encode_in_worker", die)
    with pytest.raises(RuntimeError, match="a tokenizing process died"):
        tokenize_corpus(files, tmp_path / "s", tokenizer, num_workers=2, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["0.jsonl", "1.jsonl"]


def die(part):
    os._exit(7)


def test_modules_load_no_tensorflow():
    code = (
        "import sys, ul2.tasks.sources, ul2.tasks.tokenizer, ul2.tasks.tokenization;"
        "sys.exit(bool({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def report(is_terminal, sizes, monkeypatch, seconds):
    """What is shown after every document of two files."""
    clock = iter(np.arange(0, 1e4, seconds))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    output = io.StringIO()
    console = rich.console.Console(file=output, force_terminal=is_terminal, width=200)
    with Progress(sizes, show=True, console=console) as bar:
        for file, inside in (("a", 50), ("a", 100), ("b", 50), ("b", 100)):
            bar.reach(file, inside)
            bar.add(1, 10, 50)
    return output.getvalue()


def test_progress_prints_plain_lines_without_a_terminal(monkeypatch):
    shown = report(False, {"a": 100, "b": 100}, monkeypatch, seconds=6)
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert "2 documents" in shown
    assert lines[-1].startswith("tokenize: 4 documents, 0.0 MB, 40 tokens")
    assert "(50%)" in shown
    assert len(report(False, {}, monkeypatch, seconds=0.001).splitlines()) == 1


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    shown = report(True, {"a": 100, "b": 100}, monkeypatch, seconds=6)
    assert "100%" in shown
    assert "━" in shown


def test_progress_can_be_silent(files, tokenizer, tmp_path, capfd):
    tokenize_corpus(files, tmp_path / "a", tokenizer, num_workers=1, progress=False)
    assert capfd.readouterr() == ("", "")
    tokenize_corpus(files, tmp_path / "b", tokenizer, num_workers=1)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tokenize: 60 documents")


def test_task_without_its_libraries_names_the_extra(tokenizer, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "ul2.tasks.task_documents", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoSeqio(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "seqio", raising=False)
    with pytest.raises(ValueError, match=r"seqio: pip install 'ul2\[tasks\]'") as error:
        tokenize_corpus(
            TaskSource(name="embedded"),
            tmp_path / "s",
            tokenizer,
            num_workers=1,
            progress=False,
        )
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


class NoSeqio:
    """Import machinery that finds no seqio."""

    def find_spec(self, name, path=None, target=None):
        if name == "seqio":
            raise ModuleNotFoundError("No module named 'seqio'", name=name)


@pytest.mark.tf
def test_registered_task_is_read_up_to_its_tokenize_step(tokenizer, texts, tmp_path):
    import seqio
    import tensorflow as tf

    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    def make(split, shuffle_files, seed=None):
        part = texts[:40] if split == "train" else texts[40:]
        return tf.data.Dataset.from_tensor_slices({"body": part})

    def add(name, splits, steps):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(make, splits=splits),
            preprocessors=steps,
            output_features={"targets": seqio.Feature(TokenizerVocabulary(tokenizer))},
        )
        return TaskSource(name=name)

    def upper(dataset):
        return dataset.map(lambda x: {"targets": tf.strings.upper(x["body"])})

    tokenize = seqio.preprocessors.tokenize
    both = add("both_splits", ("train", "validation"), [upper, tokenize])
    alone = add("train_alone", ("train",), [upper, tokenize])
    never = add("never_tokenizes", ("train",), [upper])
    raw = add("raw", ("train",), [tokenize])
    try:
        tokenize_corpus(both, tmp_path / "a", tokenizer, num_workers=1, progress=False)
        found = read_back(TokenStore.open(tmp_path / "a"), tokenizer)
        assert found["train", 1] == ("train", texts[0].upper())
        assert found["validation", 20] == ("held_out", texts[59].upper())
        assert len(found) == 60
        summary = tokenize_corpus(
            alone, tmp_path / "b", tokenizer, num_workers=1, progress=False
        )
        assert sum(summary.documents.values()) == 40
        assert min(summary.documents.values()) >= 1
        tokenize_corpus(never, tmp_path / "d", tokenizer, num_workers=1, progress=False)
        whole = read_back(TokenStore.open(tmp_path / "d"), tokenizer)
        assert {text for _, text in whole.values()} == {t.upper() for t in texts[:40]}
        for source, message in (
            (TaskSource(name="nope"), "no seqio task is registered as 'nope'"),
            (raw, r"has no text 'text' before it tokenizes, only \['body'\]"),
        ):
            with pytest.raises(ValueError, match=message):
                tokenize_corpus(
                    source, tmp_path / "c", tokenizer, num_workers=1, progress=False
                )
    finally:
        for task in (both, alone, never, raw):
            seqio.TaskRegistry.remove(task.name)


@pytest.mark.tf
@pytest.mark.parametrize("endless", [False, True])
def test_stream_without_an_end_is_refused(endless, tokenizer, texts, tmp_path):
    import seqio
    import tensorflow as tf

    def make(split, shuffle_files, seed=None):
        dataset = tf.data.Dataset.from_tensor_slices({"text": texts})
        return dataset.repeat() if endless else dataset

    seqio.TaskRegistry.add(
        "a_stream",
        source=seqio.FunctionDataSource(make, splits=("train",)),
        preprocessors=[],
        output_features={},
    )
    source = TaskSource(name="a_stream")
    options = {"num_workers": 1, "progress": False}
    try:
        if not endless:
            summary = tokenize_corpus(source, tmp_path / "s", tokenizer, **options)
            assert sum(summary.documents.values()) == len(texts)
            return
        with pytest.raises(ValueError, match="'a_stream' never ends, so it cannot be"):
            tokenize_corpus(source, tmp_path / "s", tokenizer, **options)
        assert not list(tmp_path.iterdir())
    finally:
        seqio.TaskRegistry.remove("a_stream")
