"""A bit that flipped, a file that was cut, a manifest that lies: each is named."""

import json

import numpy as np
import pytest
from store_toys import (
    MODEL,
    change_manifest,
    fill_store,
    flip_bit,
    make_documents,
    make_vocab,
    without_checksums,
)

from ul2.data.block_checksums import BLOCK_BYTES, BlockWriter, num_blocks
from ul2.data.store_manifest import SPLITS
from ul2.data.token_store import TokenStore

BLOCK_TOKENS = BLOCK_BYTES // 2


@pytest.fixture
def path(tmp_path):
    """A store of more than five blocks, in shards of less than three."""
    documents = make_documents(3000)
    fill_store(tmp_path / "s", documents, make_documents(9, 1), shard_tokens=20_000)
    return tmp_path / "s"


def test_tokens_are_compared_where_they_are_read_and_nowhere_else(path):
    flip_bit(path / "train-00000.tokens", BLOCK_BYTES + 7)
    split = TokenStore.open(path).split("train")
    split.take(np.array([0, BLOCK_TOKENS - 64, 2 * BLOCK_TOKENS, 30_000]), 64)
    for start in (BLOCK_TOKENS - 63, BLOCK_TOKENS + 3, 2 * BLOCK_TOKENS - 1):
        with pytest.raises(ValueError, match=r"train-00000\.tokens is damaged betw"):
            split.take(np.array([5, start]), 64)


def test_window_over_two_shards_is_compared_in_both(path):
    store = TokenStore.open(path)
    shards = store.manifest["splits"]["train"]["shards"]
    assert len(shards) == 3
    begin = shards[0]["tokens"]
    flip_bit(path / "train-00001.tokens", 5)
    with pytest.raises(ValueError, match=r"train-00001\.tokens is damaged between"):
        store.split("train").take(np.array([begin - 3]), 6)
    store.split("train").take(np.array([begin - 3]), 3)


@pytest.mark.parametrize(
    "sizes", [[1], [BLOCK_BYTES], [BLOCK_BYTES - 1, 2], [9, 40_000]]
)
def test_checksums_do_not_depend_on_how_a_file_was_written(sizes):
    data = bytes(range(256)) * 160
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    written, whole = BlockWriter(), BlockWriter()
    for part in parts:
        written.add(part)
    whole.add(b"".join(parts))
    made = written.finish()
    assert made == whole.finish()
    assert len(made) == 4 * num_blocks(at)


@pytest.mark.parametrize(
    ("file", "byte"),
    [("train-00000.documents", 9), ("train-00001.origins", 3)],
)
def test_where_text_came_from_is_compared_when_it_is_looked_up(path, file, byte):
    flip_bit(path / file, byte)
    split = TokenStore.open(path).split("train")
    split.take(np.array([0]), 64)  # reads tokens alone
    place = 0 if file.startswith("train-00000") else 25_000
    with pytest.raises(ValueError, match=f"{file} is damaged: its sha256"):
        split.document_of(place)


def test_tokenizer_is_compared_on_opening(path):
    (path / "tokenizer.model").write_bytes(MODEL[::-1])
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged: its sha256"):
        TokenStore.open(path)


def test_manifest_is_compared_with_its_own_hash(path):
    file = path / "manifest.json"
    # Still a vocabulary that could be.
    file.write_text(file.read_text().replace('"unk_id": 2', '"unk_id": 5'))
    with pytest.raises(ValueError, match="damaged: it is not what manifest_sha256"):
        TokenStore.open(path)


def test_store_from_before_checksums_opens_and_keeps_its_fingerprint(path):
    new = TokenStore.open(path)
    fingerprints = [new.fingerprint(split) for split in SPLITS]
    window = new.split("train").take(np.array([0]), 64)
    without_checksums(path)
    old = TokenStore.open(path)
    assert new.has_checksums and not old.has_checksums
    assert [old.fingerprint(split) for split in SPLITS] == fingerprints
    np.testing.assert_array_equal(old.split("train").take(np.array([0]), 64), window)
    flip_bit(path / "train-00000.tokens", 0)
    with pytest.raises(ValueError, match=r"train-00000\.tokens is damaged: its sha256"):
        old.verify()


def test_token_beyond_the_vocabulary_is_refused_even_without_checksums(path):
    without_checksums(path)
    flip_bit(path / "train-00002.tokens", 1)  # of the high byte: 256 more
    ids = make_vocab().size
    last = TokenStore.open(path).split("train").num_tokens
    with pytest.raises(ValueError, match=f"beyond the {ids} ids of its vocabulary"):
        TokenStore.open(path).split("train").take(np.arange(0, last, 64), 64)


def first_shard(manifest):
    return manifest["splits"]["train"]["shards"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["tokenizer"].update(file="../../secret"), "is no file name"),
        (lambda m: m["tokenizer"].update(file="/etc/passwd"), "is no file name"),
        (
            lambda m: first_shard(m)["files"]["tokens"].update(file="x/y"),
            "tokens of shard 0 of train is in 'x/y', which is no file name",
        ),
        (
            lambda m: first_shard(m)["files"]["tokens"].update(bytes=2**40),
            "bytes, not",
        ),
        (lambda m: first_shard(m).update(tokens=0), "shard 0 of train has 0 tokens"),
        (lambda m: first_shard(m).update(tokens=2**80), "has 1208925819614629174706"),
        (lambda m: first_shard(m).update(documents="many"), "has 'many' documents"),
        (lambda m: first_shard(m)["files"].pop("origins"), "has the files"),
        (lambda m: first_shard(m).update(files=[]), "shard 0 of train has no files"),
        (lambda m: m["splits"].pop("held_out"), r"splits are \['train'\]"),
        (lambda m: m["splits"]["train"].update(tokens=5), "train has 5 tokens, but"),
        (lambda m: m.update(dtype="float64"), "dtype is 'float64'"),
        (lambda m: m.update(sources=[1, 2]), "sources are no names"),
        (lambda m: m["vocab"].update(eos_id="1"), "eos_id is no int"),
        (lambda m: m["vocab"].update(sentinel_ids=7), "sentinel_ids are no list"),
        (lambda m: m["vocab"].update(sentinel_ids=[-5]), "must be at least 0"),
        (lambda m: m["vocab"].update(mode_ids=[1]), "mode_ids are no lists"),
        (lambda m: m["vocab"].update(tokenizer_sha256="0" * 64), "is of tokenizer 000"),
    ],
)
def test_manifest_that_cannot_be_is_refused_in_one_line(path, change, message):
    change_manifest(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        TokenStore.open(path)
    assert "\n" not in str(caught.value)
    assert str(path / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "\x00", '{"a": 1', "null"])
def test_what_is_no_manifest_is_refused(path, text):
    (path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenStore.open(path)


def test_file_that_stands_twice_is_refused(path):
    def twice(manifest):
        held_out = manifest["splits"]["held_out"]["shards"][0]["files"]
        held_out["tokens"]["file"] = first_shard(manifest)["files"]["tokens"]["file"]

    change_manifest(path, twice)
    with pytest.raises(ValueError, match="a file stands in it twice"):
        TokenStore.open(path)


def test_manifest_says_everything_it_said_before(path):
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest) == [
        "format_version",
        "dtype",
        "tokenizer",
        "vocab",
        "splits",
        "provenance",
        "sources",
        "manifest_sha256",
    ]
