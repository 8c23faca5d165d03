import gzip
import importlib
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from ul2.tasks.sources import Document, TextSource, find_files, read_documents
from ul2.tasks.splits import split_documents


def read(files):
    return [(d.text, d.record) for d in read_documents(TextSource(files=str(files)))]


def read_with(files, **options):
    skipped = []
    source = TextSource(files=str(files), **options)
    return [d.text for d in read_documents(source, skipped.append)], skipped


def write_json(path, texts, field="text"):
    lines = "".join(json.dumps({"id": 3, field: text}) + "\n" for text in texts)
    path.write_text(lines)
    return path


TEXT = "\n \n  One\nstill one\n\n\nTwo\r\n\r\nThree, the last"


@pytest.mark.parametrize(
    ("text_unit", "wanted"),
    [
        ("paragraph", [("  One\nstill one", 3), ("Two", 7), ("Three, the last", 9)]),
        (
            "line",
            [("  One", 3), ("still one", 4), ("Two", 7), ("Three, the last", 9)],
        ),
        ("file", [("  One\nstill one\n\n\nTwo\r\n\r\nThree, the last", 3)]),
    ],
)
@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_text_units_begin_at_their_line(tmp_path, text_unit, wanted, suffix):
    file = tmp_path / f"a.{suffix}"
    pack = {"txt": bytes, "txt.gz": gzip.compress, "txt.zst": zstandard.compress}
    file.write_bytes(pack[suffix](TEXT.encode()))
    documents = list(read_documents(TextSource(files=str(file), text_unit=text_unit)))
    assert [(d.text, d.record) for d in documents] == wanted
    assert {d.source for d in documents} == {str(file)}


def test_zst_of_several_frames_is_read_to_its_end(tmp_path):
    frames = [zstandard.compress(b"one\n\n"), zstandard.compress(b"two\n\n")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(tmp_path / "a.txt.zst") == [("one", 1), ("two", 3)]


@pytest.mark.parametrize("suffix", ["jsonl", "json.gz", "jsonl.zst"])
def test_json_lines_give_their_field(tmp_path, suffix):
    file = write_json(tmp_path / "plain.jsonl", ["one\n\nmore", "", "zwei ä"], "body")
    data = file.read_bytes().replace(b"\n", b"\n\n")
    pack = {"jsonl": bytes, "json.gz": gzip.compress, "jsonl.zst": zstandard.compress}
    packed = tmp_path / f"packed.{suffix}"
    packed.write_bytes(
        b"\xef\xbb\xbf" + data if suffix == "jsonl" else pack[suffix](data)
    )
    texts, skipped = read_with(packed, text_field="body")
    assert texts == ["one\n\nmore", "zwei ä"]
    assert not skipped


def test_parquet_gives_its_column_and_row(tmp_path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["one", "", "two\n\nmore"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, file)
    assert read(file) == [("one", 1), ("two\n\nmore", 3)]


def test_patterns_find_each_file_once_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.jsonl", "deep/er/c.txt", "deep/d.txt.gz", "notes.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert find_files("*.{txt,jsonl}") == ["a.jsonl", "b.txt"]
    assert find_files("**/*.{txt,jsonl}{,.gz}") == [
        "a.jsonl",
        "b.txt",
        "deep/d.txt.gz",
        "deep/er/c.txt",
    ]
    assert find_files(" b.txt , *.txt,./b.txt") == ["b.txt"]
    assert find_files(".") == find_files("**/*.{txt,jsonl}{,.gz}")
    assert find_files("embedded,b.txt") == ["b.txt", "embedded"]
    (tmp_path / "odd[1].txt").write_text("x")
    assert find_files("odd[1].txt") == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("none/*.txt", r"no file matches 'none/\*\.txt' \(looked in"),
        ("a.txt,none.txt", "no file matches 'none.txt'"),
        (" , ", "no file named"),
        ("a.pdf", r"a\.pdf: cannot read this kind of file, only \.txt"),
    ],
)
def test_wrong_patterns_are_refused_before_reading(
    tmp_path, monkeypatch, patterns, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=message) as error:
        read_documents(TextSource(files=patterns))
    assert "\n" not in str(error.value)


def broken_files(path):
    """Each broken file, what must be said about it, and what can be saved."""
    table = pyarrow.table({"text": ["one", None], "n": [1, 2]})
    pyarrow.parquet.write_table(table, path / "null.parquet")
    pyarrow.parquet.write_table(table.drop(["text"]), path / "column.parquet")
    long = b"".join(b"%d\n\n" % i for i in range(9999))
    files = {
        "a.txt": (
            b"one\n\ntwo\nb\xffd\n\nthree",
            r"a\.txt:4: not UTF-8 \(byte 0xff",
            2,
        ),
        "b.jsonl": (b'{"text": "one"}\n{"text": \n', r"b\.jsonl:2: broken JSON", 1),
        "c.jsonl": (b'{"text": "one"}\n{"txt": 2}', r"c\.jsonl:2: no field 'text'", 1),
        "d.jsonl": (
            b'{"text": "o"}\n[1]',
            r"d\.jsonl:2: not a JSON object but \[1\]",
            1,
        ),
        "e.jsonl": (
            b'{"text": "o"}\n{"text": 7}',
            r"e\.jsonl:2: .* is no text but 7",
            1,
        ),
        "f.jsonl": (
            b'{"text": "o"}\n{"text": "\\ud800"}',
            r"f\.jsonl:2: .* half of",
            1,
        ),
        "g.jsonl": (b'{"text": "o"}\n{"text": "\xff"}', r"g\.jsonl:2: not UTF-8", 1),
        "h.jsonl": (b'{"text": "o"}\n' + b"[" * 99999, r"h\.jsonl:2: broken JSON", 1),
        "i.txt": (b"", r"i\.txt: holds no text", 0),
        "j.txt": (b" \n\n", r"j\.txt: holds no text", 0),
        "k.txt.gz": (gzip.compress(long)[:-20], r"k\.txt\.gz: cannot be read to", None),
        "l.txt.gz": (b"plain", r"l\.txt\.gz: cannot be read to its end", 0),
        "m.txt.zst": (b"plain", r"m\.txt\.zst: cannot be read to its end", 0),
        "n.parquet": (b"plain", r"n\.parquet: cannot be read to its end", 0),
        "null.parquet": (None, r"null\.parquet: row 2: .* is no text but None", 1),
        "column.parquet": (None, r"no column 'text', only \['n'\]", 0),
    }
    for name, (content, message, saved) in files.items():
        if content is not None:
            (path / name).write_bytes(content)
        yield path / name, message, saved


def test_broken_text_is_refused_by_name_or_skipped_and_counted(tmp_path):
    for file, message, saved in broken_files(tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            read_with(file)
        assert "--on_error=skip" in str(error.value)
        assert "\n" not in str(error.value)
        texts, skipped = read_with(file, on_error="skip")
        assert re.search(message, skipped[0])
        assert saved is None or (len(texts), len(skipped)) == (saved, 1)


@pytest.mark.parametrize(
    "options", [{"text_unit": "word"}, {"on_error": "ignore"}, {"held_out_share": 1.0}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TextSource(files="embedded", **options)


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_missing_reader_names_the_extra(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("x")

    def missing(module):
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'ul2\[files\]'"):
        read(tmp_path / name)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr("os.access", lambda file, mode: False)
    with pytest.raises(ValueError, match=r"a\.txt: no permission"):
        find_files(str(tmp_path / "a.txt"))


def make_documents(num_documents, prefix="text"):
    return [Document(f"{prefix} {i}", "a.txt", i) for i in range(num_documents)]


def splits_of(documents, share):
    return {d.text: split for split, d in split_documents(documents, share)}


def test_split_share_is_near_the_declared_and_keeps_the_order():
    documents = make_documents(20_000)
    pairs = list(split_documents(documents, 0.1))
    assert [d for _, d in pairs] == documents
    held_out = sum(split == "held_out" for split, _ in pairs)
    assert abs(held_out / 20_000 - 0.1) < 0.01


def test_split_depends_on_the_text_alone():
    documents = make_documents(3000)
    one = splits_of(documents, 0.05)
    other = splits_of(make_documents(500, "more") + documents[::-1], 0.05)
    assert all(other[text] == split for text, split in one.items())


@pytest.mark.parametrize("share", [1e-9, 0.02, 0.999])
@pytest.mark.parametrize("num_documents", [2, 5, 1500])
def test_each_split_gets_a_document(num_documents, share):
    splits = splits_of(make_documents(num_documents), share)
    assert set(splits.values()) == {"train", "held_out"}


def test_copies_never_lie_on_both_sides():
    documents = make_documents(3) * 700
    by_text = {}
    for split, document in split_documents(documents, 0.3):
        assert by_text.setdefault(document.text, split) == split


def test_single_or_no_held_out_document_trains():
    assert set(splits_of(make_documents(1) * 3, 0.5).values()) == {"train"}
    assert set(splits_of(make_documents(99), 0.0).values()) == {"train"}
    assert splits_of([], 0.1) == {}


def test_embedded_corpus_is_english_of_known_origin():
    documents = list(read_documents(TextSource(files="embedded")))
    assert documents == sorted(documents, key=lambda d: (d.source, d.record))
    assert sum(len(d.text) for d in documents) > 1_500_000
    assert len(documents) > 800
    assert len({(d.source, d.record) for d in documents}) == len(documents)
    by_source = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document.text)
    decoder = by_source["embedded/json/decoder.py"]
    assert any(text.startswith("json.decoder.JSONDecoder") for text in decoder)
    assert any("while" in text for text in by_source["embedded/pydoc_data/topics.py"])
    assert not any("\n\n>>>" in d.text for d in documents if "topics" not in d.source)


def test_embedded_corpus_is_the_same_when_parsed_anew():
    from ul2.tasks import embedded_corpus

    once = embedded_corpus.read_embedded_corpus()
    embedded_corpus._read.cache_clear()
    assert embedded_corpus.read_embedded_corpus() == once


def test_embedded_corpus_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="needs the source files of Python"):
        read("embedded")


def test_reading_opens_one_file_at_a_time(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    documents = read_documents(TextSource(files=f"{tmp_path}/*.txt"))
    next(documents)
    for i in (1, 2):
        (tmp_path / f"{i}.txt").write_text(f"changed {i}")
    assert [d.text for d in documents] == ["changed 1", "changed 2"]
