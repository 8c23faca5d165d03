import json
import os
import pickle

import numpy as np
import pytest
from store_toys import MODEL, fill_store, make_documents, make_vocab

from ul2.data.token_store import TokenStore
from ul2.data.token_store_writer import TokenStoreWriter


def write_store(path, documents, held_out=(), **options):
    fill_store(path, documents, held_out, **options)
    return TokenStore.open(path)


@pytest.mark.parametrize("shard_tokens", [2**28, 40])
def test_take_equals_rolled_concatenation(tmp_path, shard_tokens):
    documents = make_documents(40)
    store = write_store(tmp_path / "s", documents, shard_tokens=shard_tokens)
    split = store.split("train")
    ring = np.concatenate(documents)
    assert split.num_tokens == len(ring)
    assert split.num_documents == 40
    starts = np.array([0, 7, len(ring) - 1, len(ring) - 3, len(ring), 3 * len(ring)])
    for length in (1, 5, 64, len(ring) + 9):
        wanted = ring[(starts[:, None] + np.arange(length)) % len(ring)]
        taken = split.take(starts, length)
        assert taken.dtype == np.int32
        np.testing.assert_array_equal(taken, wanted)
    assert split.take(starts[:0], 4).shape == (0, 4)


def test_shards_are_split_at_documents(tmp_path):
    store = write_store(tmp_path / "s", make_documents(40), shard_tokens=40)
    shards = store.manifest["splits"]["train"]["shards"]
    assert len(shards) > 3
    starts = np.cumsum([0, *(shard["tokens"] for shard in shards)])
    for start in starts[1:]:
        assert store.split("train").take(np.array([start - 1]), 1) == 1


@pytest.mark.parametrize("shard_tokens", [2**28, 40])
def test_document_of_names_document_offset_source_and_record(tmp_path, shard_tokens):
    documents = make_documents(20)
    store = write_store(tmp_path / "s", documents, shard_tokens=shard_tokens)
    split = store.split("train")
    position = 0
    for index, document in enumerate(documents):
        for offset in (0, len(document) - 1):
            place = split.document_of(position + offset)
            assert place == (index, offset, "train.txt", index)
        position += len(document)
    assert split.document_of(position + 2) == split.document_of(2)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_dtype_is_the_smallest_that_holds_the_vocabulary(tmp_path, size, dtype):
    documents = [np.array([size - 1, 5, 1])]
    store = write_store(tmp_path / "s", documents, size=size)
    assert store.manifest["dtype"] == dtype
    assert store.split("train").take(np.array([0]), 3).tolist() == [[size - 1, 5, 1]]


def test_empty_split_is_refused_when_read(tmp_path):
    split = write_store(tmp_path / "s", make_documents(3)).split("held_out")
    assert split.num_tokens == split.num_documents == 0
    with pytest.raises(ValueError, match="'held_out' of the token store is empty"):
        split.take(np.array([0]), 1)
    with pytest.raises(ValueError, match="'held_out' of the token store is empty"):
        split.document_of(0)


def test_unknown_split_and_length_are_refused(tmp_path):
    store = write_store(tmp_path / "s", make_documents(3))
    with pytest.raises(ValueError, match=r"split='test' is not one of \['train'"):
        store.split("test")
    with pytest.raises(ValueError, match="length=0"):
        store.split("train").take(np.array([0]), 0)


def test_vocab_and_tokenizer_are_kept(tmp_path):
    store = write_store(tmp_path / "s", make_documents(3))
    assert store.vocab == make_vocab()
    assert store.tokenizer_path.read_bytes() == MODEL
    store.require_tokenizer(make_vocab().tokenizer_sha256)
    with pytest.raises(ValueError, match=f"{make_vocab().tokenizer_sha256}.*beef"):
        store.require_tokenizer("beef")


def test_no_store_and_other_version_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no token store"):
        TokenStore.open(tmp_path)
    write_store(tmp_path / "s", make_documents(3))
    manifest = tmp_path / "s" / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "format_version": 9}))
    with pytest.raises(ValueError, match="version 9, this ul2 reads 1"):
        TokenStore.open(tmp_path / "s")
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TokenStore.open(tmp_path / "s")


@pytest.mark.parametrize("kind", ["tokens", "documents", "origins"])
def test_missing_cut_or_damaged_shard_is_named(tmp_path, kind):
    store = write_store(tmp_path / "s", make_documents(9))
    store.verify()
    file = tmp_path / "s" / f"train-00000.{kind}"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    damaged = TokenStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match=f"{file.name} is damaged: its sha256 is"):
        damaged.verify()
    file.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=f"{file.name} holds .* bytes"):
        TokenStore.open(tmp_path / "s")
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing"):
        TokenStore.open(tmp_path / "s")


def test_existing_target_is_kept_unless_overwrite(tmp_path):
    path = tmp_path / "s"
    path.mkdir()  # an empty directory is free to use
    write_store(path, make_documents(3))
    with pytest.raises(ValueError, match="exists; choose another place"):
        write_store(path, make_documents(4))
    assert TokenStore.open(path).split("train").num_documents == 3
    store = write_store(path, make_documents(4), overwrite=True)
    assert store.split("train").num_documents == 4
    assert os.listdir(tmp_path) == ["s"]


def test_overwrite_spares_what_is_no_store(tmp_path):
    (tmp_path / "photo.jpg").write_text("dear to somebody")
    with pytest.raises(ValueError, match="is no token store, so it is not overwritten"):
        write_store(tmp_path, make_documents(3), overwrite=True)
    assert os.listdir(tmp_path) == ["photo.jpg"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_nothing_half_written(tmp_path, error, overwrite):
    path = tmp_path / "s"
    if overwrite:
        write_store(path, make_documents(3))
    with (
        pytest.raises(error),
        TokenStoreWriter(
            path, tokenizer=MODEL, vocab=make_vocab(), overwrite=overwrite
        ) as writer,
    ):
        writer.add("train", np.array([5, 1]), np.array([2]), [("a", 0)])
        raise error
    assert os.listdir(tmp_path) == (["s"] if overwrite else [])
    if overwrite:
        assert TokenStore.open(path).split("train").num_documents == 3


def test_no_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no documents"):
        write_store(tmp_path / "s", [])
    assert os.listdir(tmp_path) == []


def test_other_tokenizers_vocab_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the tokenizer given is"):
        TokenStoreWriter(tmp_path / "s", tokenizer=b"other", vocab=make_vocab())


def test_pickle_carries_the_path_and_not_the_tokens(tmp_path):
    documents = [np.append(np.full(50_000, 7), 1)]
    store = write_store(tmp_path / "s", documents)
    for value in (store, store.split("train")):
        assert len(pickle.dumps(value)) < 1000
    split = pickle.loads(pickle.dumps(store.split("train")))
    assert split.take(np.array([49_999]), 2).tolist() == [[7, 1]]
    assert pickle.loads(pickle.dumps(store)).vocab == store.vocab


def test_same_documents_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_store(tmp_path / name, make_documents(9), make_documents(2, seed=1))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_manifest_without_its_parts_is_refused_by_name(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "vocab": {}}')
    with pytest.raises(
        ValueError, match="damaged: no dtype, tokenizer, splits, sources"
    ):
        TokenStore.open(tmp_path)
