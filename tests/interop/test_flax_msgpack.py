"""The index of a flax file holds what flax reads, and refuses what is damaged."""

import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from ul2.interop.flax_msgpack import index
from ul2.interop.tensors import Tensor

TREE = {
    "version": 3,
    "negative": -5,
    "large": 2**40,
    "least": -(2**40),
    "share": 0.25,
    "text": "é" * 40,
    "flag": True,
    "nothing": None,
    "bytes": b"\x00\x01",
    "many": {f"name_{i}": i for i in range(40)},
    "list": {"0": 1, "1": 2},
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.float32(1.5),
    "half": np.arange(4).astype(ml_dtypes.bfloat16),
    "zero_dim": np.asarray(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
    "long": np.zeros(70_000, np.int8),
}


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, np.ndarray | np.generic):
        assert isinstance(found, Tensor)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found.read(), expected)
    else:
        assert found == expected
        assert type(found) is type(expected)


def test_index_holds_what_flax_restores(tmp_path):
    content = serialization.to_bytes(TREE)
    (tmp_path / "file").write_bytes(content)
    found = index(tmp_path / "file")
    assert_same(found, serialization.msgpack_restore(content))
    assert found["many"]["name_3"] == 3
    assert found["array"].name == "array"


def test_array_in_chunks_is_one_array(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    array = np.arange(99, dtype=np.float32).reshape(9, 11)
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize({"a": array}))
    found = index(tmp_path / "file")["a"]
    assert found.shape == (9, 11)
    np.testing.assert_array_equal(found.read(), array)
    region = slice(3, 8), slice(4, 9)
    np.testing.assert_array_equal(found.read(region), array[region])


def test_every_truncation_is_refused(tmp_path):
    small = {name: TREE[name] for name in ("version", "array", "scalar", "text")}
    content = serialization.to_bytes(small)
    file = tmp_path / "file"
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            index(file)
    file.write_bytes(content + b"\x00")
    with pytest.raises(ValueError, match="bytes follow"):
        index(file)


def test_file_that_is_cut_off_or_gone_after_it_was_opened_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(serialization.to_bytes({"a": TREE["array"]}))
    tensor = index(file)["a"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="file was cut off within a"):
        tensor.read()
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot read a of .*file: No such file"):
        tensor.read()


def test_no_byte_makes_the_index_fail_in_another_way(tmp_path):
    content = serialization.to_bytes({"a": TREE["array"], "b": {"c": 1, "d": "text"}})
    file = tmp_path / "file"
    rng = np.random.default_rng(0)
    refused = 0
    for place in range(len(content)):
        for value in (0x00, 0xC1, 0xDD, 0xDF, 0xC9, 0xFF, int(rng.integers(256))):
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                index(file)
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > len(content)


def test_lengths_that_the_file_does_not_have_are_not_believed(tmp_path):
    file = tmp_path / "file"
    for content in (
        b"\xdf\xff\xff\xff\xff",  # a map of four billion entries
        b"\xdd\xff\xff\xff\xff",  # a list
        b"\xdb\xff\xff\xff\xff",  # a text
        b"\xc9\xff\xff\xff\xff\x01",  # an array
        b"\x91" * 10_000,  # lists in lists
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            index(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        index(tmp_path / "nowhere")


def test_values_without_end_are_refused_before_they_take_memory(tmp_path):
    count = 2**21 + 1
    content = b"\xdd" + count.to_bytes(4, "big") + b"\xc0" * count
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="it holds more than 2097152 values"):
        index(tmp_path / "file")


def test_text_that_is_no_name_is_not_read(tmp_path):
    size = 2**20 + 1
    for code in (b"\xdb", b"\xc6"):  # a text, and bytes
        (tmp_path / "file").write_bytes(code + size.to_bytes(4, "big") + bytes(size))
        with pytest.raises(ValueError, match=f"a text has {size} bytes"):
            index(tmp_path / "file")
