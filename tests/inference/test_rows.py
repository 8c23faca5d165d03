import gzip
import json
import sys

import pytest

from ul2.inference.rows import FileRows, Row, TaskRows, survey
from ul2.tasks import examples, registry
from ul2.tasks.text_task import TextExample


def read(path):
    return list(FileRows(path))


def errors(path):
    return [row.error for row in read(path)]


def test_line_of_text_is_a_row(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffone ___\r\n\ntwo\u2028three".encode())
    assert read(path) == [
        Row(0, {"inputs": "one ___"}),
        Row(1, {"inputs": ""}, "empty line"),
        Row(2, {"inputs": "two\u2028three"}),
    ]


def test_packed_file_is_unpacked(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = b'{"inputs": "a"}\n{"inputs": "b", "mode": "S", "id": 7}\n'
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    packed = zstandard.ZstdCompressor().compress(text)
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    expected = [
        Row(0, {"inputs": "a"}),
        Row(1, {"inputs": "b", "mode": "S", "id": 7}),
    ]
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        assert read(tmp_path / name) == expected


def test_broken_line_is_a_row_that_says_why(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [b'{"inputs": ', b"", b'{"inputs": "caf\xe9"}', b"[1]", b'{"x": NaN}']
    lines += [b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"inputs": "a"}']
    path.write_bytes(b"\n".join(lines))
    found = errors(path)
    for reason, start in zip(
        found,
        ("broken JSON (Expecting value)", "empty line", "not UTF-8 (byte 0xe9"),
        strict=False,
    ):
        assert reason.startswith(start)
    assert found[3] == "not a JSON object"
    assert found[4] == "broken JSON (NaN is no number of JSON)"
    assert found[5].startswith("broken JSON (")
    assert found[6].startswith("broken JSON (")
    assert found[7] is None
    assert not any("\n" in reason for reason in found if reason)


def test_table_has_a_row_per_row_and_only_json_values(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    columns = {
        "inputs": ["a", None],
        "n": [1, 2],
        "x": [0.5, float("nan")],
        "raw": [b"\x00", b""],
        "many": [["b", "c"], []],
    }
    parquet.write_table(pyarrow.table(columns), path)
    found = read(path)
    assert found[0].fields["inputs"] == "a"
    assert found[0].fields["many"] == ["b", "c"]
    assert found[1].fields["x"] is None
    assert json.loads(json.dumps([row.fields for row in found], allow_nan=False))


def test_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read --input .*no\.txt: No such"):
        FileRows(tmp_path / "no.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="Is a directory"):
        FileRows(tmp_path / "folder.txt")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match="cannot read this kind of file"):
        FileRows(tmp_path / "a.csv")
    packed = gzip.compress(b"text\n" * 1000)
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-9])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz to its end"):
        survey(FileRows(tmp_path / "cut.txt.gz"))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match=r"no\.parquet to its end") as error:
        survey(FileRows(tmp_path / "no.parquet"))
    assert "\n" not in str(error.value)


def test_survey_counts_rows_and_tells_files_apart(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    a, b, c = (survey(FileRows(tmp_path / f"{name}.txt")) for name in "abc")
    assert a == b
    assert (a.num_rows, c.num_rows) == (2, 3)
    assert a.sha256 != c.sha256
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        survey(FileRows(tmp_path / "empty.txt"))


def test_examples_of_a_task_are_rows(monkeypatch):
    def read_examples(name, split, *, data_dir):
        assert (name, split, data_dir) == ("super_glue_boolq", "test", "there")
        yield TextExample("is it red?", "True", ("False", "True"))
        yield TextExample("free", "text")

    monkeypatch.setattr(examples, "read_examples", read_examples)
    assert list(TaskRows("super_glue_boolq", "test", "there")) == [
        Row(
            0,
            {
                "inputs": "is it red?",
                "targets": "True",
                "choices": ["False", "True"],
            },
        ),
        Row(1, {"inputs": "free", "targets": "text"}),
    ]
    with pytest.raises(ValueError, match="super_glue_boolq"):
        TaskRows("super_glue_bolq", "test")
    assert registry.find("super_glue_boolq").name == "super_glue_boolq"


def test_reading_text_needs_no_library_of_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.txt").write_text("one\n")
    assert len(read(tmp_path / "a.txt")) == 1
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"needs pyarrow; pip install 'ul2\[files\]'"):
        read(tmp_path / "a.parquet")
