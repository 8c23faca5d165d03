"""Records without end, texts that stand for thousands, models that lie."""

import gzip
import io
import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from ul2.inference.rows import FileRows
from ul2.tasks import published_files, sources
from ul2.tasks.packed_files import damages_of, open_unpacked, read_lines
from ul2.tasks.sources import TextSource, read_documents
from ul2.tasks.tokenizer import Tokenizer, open_tokenizer, train_tokenizer


@pytest.fixture
def short_records(monkeypatch):
    monkeypatch.setattr(sources, "MAX_RECORD_BYTES", 50)
    default = (50,)
    monkeypatch.setattr(read_lines, "__defaults__", default)


def test_line_that_is_too_long_is_none_and_the_next_is_whole():
    lines = read_lines(io.BytesIO(b"a\n" + b"b" * 40 + b"\n" + b"c" * 7), 20)
    assert list(lines) == [b"a\n", None, b"c" * 7]
    exact = read_lines(io.BytesIO(b"x" * 20 + b"\n" + b"y" * 20), 21)
    assert list(exact) == [b"x" * 20 + b"\n", b"y" * 20]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_line_that_is_too_long_is_a_broken_record(tmp_path, name, short_records):
    lines = [json.dumps({"text": text}) for text in ("one", "x" * 60, "two")]
    content = "\n".join(lines).encode()
    packed = gzip.compress(content) if name.endswith("gz") else content
    (tmp_path / name).write_bytes(packed)
    source = TextSource(files=str(tmp_path), on_error="skip")
    reasons = []
    found = [one.text for one in read_documents(source, reasons.append)]
    assert found == ["one", "two"]
    assert f"{name}:2: longer than 50 bytes; split it" in reasons[0]
    with pytest.raises(ValueError, match="2: longer than 50 bytes"):
        list(read_documents(TextSource(files=str(tmp_path))))
    rows = list(FileRows(tmp_path / name))
    assert [row.error and row.error[:30] for row in rows] == [
        None,
        "this line: longer than 50 byte",
        None,
    ]


def test_paragraph_that_is_too_long_is_left_out_and_the_next_is_whole(
    tmp_path, short_records
):
    long = "\n".join(["many words"] * 9)
    (tmp_path / "a.txt").write_text(f"first\n\n{long}\n\nlast\none\n")
    source = TextSource(files=str(tmp_path), on_error="skip")
    reasons = []
    found = list(read_documents(source, reasons.append))
    assert [(one.text, one.record) for one in found] == [
        ("first", 1),
        ("last\none", 13),
    ]
    assert "a.txt:3: longer than 50 bytes" in reasons[0]
    whole = TextSource(files=str(tmp_path), text_unit="file", on_error="skip")
    reasons = []
    assert list(read_documents(whole, reasons.append)) == []
    assert "a.txt:1: longer than 50 bytes" in reasons[0]


def test_text_that_a_table_names_often_is_held_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = "x" * 2**20
    table = pyarrow.table({"text": pyarrow.array([text] * 3000).dictionary_encode()})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**21
    before = pyarrow.total_allocated_bytes()
    most = 0
    for number, document in enumerate(read_documents(TextSource(files=str(tmp_path)))):
        assert document.text == text and document.record == number + 1
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == 2999
    assert most < 2**24


def test_published_file_that_is_read_whole_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(published_files, "_MOST_BYTES", 20)
    (tmp_path / "a.json").write_text(json.dumps(["x" * 30]))
    with pytest.raises(ValueError, match="is larger than 20 bytes; split it"):
        list(published_files.read_json_list(tmp_path / "a.json", {}))
    (tmp_path / "a_test.csv").write_text("a,b,c,d,e,A\n" * 3)
    with pytest.raises(ValueError, match="is larger than 20 bytes; split it"):
        list(published_files.read_mmlu(tmp_path / "a_test.csv"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "t.model"
    texts = [f"the {i}th text of many words, {i * i}" for i in range(60)]
    return train_tokenizer(texts, 300, 4, file).read_bytes()


def damaged(model, change):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return change(proto)


def same_piece_twice(proto):
    proto.pieces[-1].piece = proto.pieces[-2].piece
    return proto.SerializeToString()


def bad_charsmap(proto):
    proto.normalizer_spec.precompiled_charsmap = b"\xff\xff\xff\x00"
    return proto.SerializeToString()


def piece_is_no_text(proto):
    proto.pieces[-1].piece = "zzzzzz"
    return proto.SerializeToString().replace(b"zzzzzz", b"\xff\xfe\xff\xfe\xff\xfe")


@pytest.mark.parametrize("change", [same_piece_twice, bad_charsmap, piece_is_no_text])
def test_damaged_model_is_refused_in_one_line(model, change, tmp_path):
    (tmp_path / "bad.model").write_bytes(damaged(model, change))
    with pytest.raises(ValueError, match=r"bad\.model is ") as caught:
        open_tokenizer(tmp_path / "bad.model")
    assert "\n" not in str(caught.value)


def test_model_file_has_a_limit(tmp_path):
    with (tmp_path / "big.model").open("wb") as file:
        file.truncate(2**28)
    with pytest.raises(ValueError, match="too large to be a SentencePiece model"):
        open_tokenizer(tmp_path / "big.model")


@pytest.mark.parametrize("count", [-1, 10**12])
def test_sentinels_that_a_damaged_vocabulary_asks_for_are_refused(
    model, count, tmp_path
):
    with pytest.raises(ValueError, match=f"{count} sentinels above its pieces"):
        Tokenizer(tmp_path, model, mode_convention="paper", extra_sentinels=count)


@pytest.mark.parametrize("packer", ["gz", "zst"])
def test_packed_file_that_was_cut_off_says_so(tmp_path, packer):
    """Of either half a text would be missing, and nobody would know."""
    text = "\n".join(json.dumps({"text": f"document {i}"}) for i in range(400)).encode()
    pack = gzip.compress
    if packer == "zst":
        pack = pytest.importorskip("zstandard").compress
    # Two packed files behind one another are one, as for the programs that pack.
    whole = pack(text + b"\n") + pack(text)
    file = tmp_path / f"a.jsonl.{packer}"
    file.write_bytes(whole)
    source = TextSource(files=str(tmp_path))
    assert len(list(read_documents(source))) == 800
    assert len(list(FileRows(file))) == 800
    for size in (len(whole) - 1, len(whole) // 2 + 9, len(whole) // 2 - 3):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read to its end"):
            list(read_documents(source))
        with pytest.raises(ValueError, match=r"cannot read --input .* to its end"):
            list(FileRows(file))


def test_zeros_pad_gzip_frames_and_begin_none(tmp_path):
    file = tmp_path / "a.txt.gz"
    one, two = gzip.compress(b"one\n"), gzip.compress(b"two\n")
    file.write_bytes(one + bytes(10_000) + two + bytes(7))
    assert list(read_lines(open_unpacked(str(file)))) == [b"one\n", b"two\n"]
    for content in (bytes(9) + one, one + b"two"):
        file.write_bytes(content)
        with pytest.raises(damages_of(str(file))):
            list(read_lines(open_unpacked(str(file))))
