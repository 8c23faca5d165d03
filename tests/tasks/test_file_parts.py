import gzip
import json
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ul2.tasks import file_parts
from ul2.tasks.file_parts import ByteRange, Part, RowGroups, cut_files, read_part
from ul2.tasks.sources import CutOffError, TextSource, read_file

LINES = "".join(json.dumps({"text": f"text {i}\n" * (i % 5)}) + "\n" for i in range(40))
LONG = json.dumps({"text": "long " * 200})
FILES = {
    "plain.jsonl": LINES.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "no_last_line_end.jsonl": LINES[:-1].encode(),
    "blank.jsonl": b"\n\n" + LINES.replace("\n", "\n \t\n\n").encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "long.jsonl": f"{LONG}\n{LINES}{LONG}".encode(),
    "broken.jsonl": f'{LINES}{{\n{LINES}[1]\n{{"text": 7}}\n{LINES}'.encode(),
    "bytes.jsonl": LINES.encode() + b'{"text": "\xff"}\n' + LINES.encode(),
    "empty.jsonl": b"",
    "paragraphs.txt": b"one\n\ntwo\nstill\n \t \n\n\nthree\r\n\r\nfour " * 9,
    "crlf.txt": b"one\r\ntwo\r\n\r\nthree\r\n" * 20,
    "mark.txt": b"\xef\xbb\xbfone\n\n\xef\xbb\xbftwo\n\n" * 20,
    "bytes.txt": b"one\n\ntwo\nb\xffd\n\nthree\n\n" * 20,
    "blank.txt": b"\n \n\n" * 20,
}
SIZES = [1, 2, 7, 64, 10**6]


def shown(reading):
    """Documents as they are, errors as their text."""
    return [repr(one) for one in reading]


def parts_of(file, monkeypatch, size, **options):
    monkeypatch.setattr(file_parts, "_PART_BYTES", size)
    monkeypatch.setattr(file_parts, "_TABLE_PART_BYTES", size)
    source = TextSource(files=str(file), **options)
    parts = list(cut_files([str(file)], source))
    documents = [one for part in parts for one in read_part(part, source)]
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert shown(documents) == shown(read_file(str(file), source))
    return parts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FILES)
def test_parts_hold_the_documents_of_the_file(name, size, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(FILES[name])
    for unit in ("paragraph", "line", "file"):
        parts_of(tmp_path / name, monkeypatch, size, text_unit=unit)


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.text(alphabet="ab \n\r\t\v\x1cé", max_size=60),
    st.sampled_from(["paragraph", "line"]),
    st.integers(1, 20),
)
def test_parts_of_any_text_hold_its_documents(tmp_path, monkeypatch, text, unit, size):
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts_of(tmp_path / "a.txt", monkeypatch, size, text_unit=unit)


def test_plain_file_is_cut_into_ranges_that_know_their_line(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n\ntwo\n\nthree\nfour\n\nfive")
    monkeypatch.setattr(file_parts, "_PART_BYTES", 12)
    parts = list(cut_files([str(file)], TextSource(files=str(file))))
    assert parts == [
        Part(str(file), ByteRange(0, 10, 1), 10, False),
        Part(str(file), ByteRange(10, 22, 5), 22, False),
        Part(str(file), ByteRange(22, 26, 8), 26, True),
    ]


def test_parts_are_about_as_large_as_told(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(LINES * 50)
    parts = parts_of(tmp_path / "a.jsonl", monkeypatch, 1000)
    sizes = [part.content.end - part.content.begin for part in parts]
    assert sum(sizes) == len(LINES) * 50
    assert max(sizes) < 2000


@pytest.mark.parametrize("size", [1, 300, 10**6])
def test_table_is_cut_into_row_groups(size, tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    texts = [None if i == 33 else f"text {i} " * (i % 3) for i in range(50)]
    table = pyarrow.table({"n": range(50), "text": texts})
    pyarrow.parquet.write_table(table, file, row_group_size=10)
    parts = parts_of(file, monkeypatch, size)
    assert all(isinstance(part.content, RowGroups) for part in parts)
    assert len(parts) == {1: 5, 10**6: 1}.get(size, len(parts))
    assert parts[-1].reached == file.stat().st_size
    parts_of(file, monkeypatch, size, text_field="body")


def test_what_cannot_be_cut_is_read_where_it_is_cut(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "b.parquet").write_bytes(b"no table")
    table = pyarrow.table({"text": ["some text"] * 50})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    monkeypatch.setattr(file_parts, "_MAX_GROUP_BYTES", 10)
    for name in ("a.jsonl.gz", "b.parquet", "c.parquet"):
        for part in parts_of(tmp_path / name, monkeypatch, 64):
            assert isinstance(part.content, list)
            assert len(part.content) <= 64


def test_pipe_is_not_cut(tmp_path):
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[LINES], daemon=True)
    writer.start()
    (part,) = cut_files([str(pipe)], TextSource(files=str(pipe)))
    writer.join(timeout=30)
    assert len(part.content) == 40


def test_file_that_becomes_shorter_is_named(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text(LINES)
    source = TextSource(files=str(file))
    monkeypatch.setattr(file_parts, "_PART_BYTES", 100)
    parts = list(cut_files([str(file)], source))
    os.truncate(file, 150)
    *_, error = read_part(parts[3], source)
    assert isinstance(error, CutOffError)
    assert str(error) == (
        f"{file}: cannot be read to its end (the file has become shorter)"
    )
    file.unlink()
    (error,) = read_part(parts[0], source)
    assert "cannot be read to its end" in str(error)
