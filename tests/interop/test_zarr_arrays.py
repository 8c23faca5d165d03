"""Zarr arrays come back as they were written, or are refused by name."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ul2.interop import tensors
from ul2.interop.tensors import from_array
from ul2.interop.zarr_arrays import (
    read_database,
    read_directory,
    write_directory,
    write_metadata,
)

GZIP = {"id": "gzip", "level": 1}
ARRAY = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)


def write(root: Path, array=ARRAY, piece=(4, 8), compressor=GZIP) -> Path:
    tensor = from_array("a.b", array)
    tensor = tensors.dataclasses.replace(tensor, piece=piece)
    write_directory(root, "a.b", tensor, compressor)
    return root / "a.b"


@pytest.mark.parametrize("compressor", [GZIP, {"id": "zstd", "level": 1}, None])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
def test_array_comes_back(tmp_path, compressor, dtype):
    array = (ARRAY * 9).astype(dtype)
    folder = write(tmp_path, array, compressor=compressor)
    assert {path.name for path in folder.iterdir()} == {".zarray", "0.0", "1.0"}
    found = read_directory(tmp_path, "a.b")
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found.read(), array)
    region = slice(3, 5), slice(1, 7)
    np.testing.assert_array_equal(found.read(region), array[region])


def test_scalar_comes_back(tmp_path):
    write(tmp_path, np.asarray(7, np.int32), ())
    assert read_directory(tmp_path, "a.b").read() == 7


def test_pieces_of_an_array_are_whole_chunks(tmp_path, monkeypatch):
    write(tmp_path, piece=(2, 4))
    monkeypatch.setattr(tensors, "PIECE_BYTES", 5 * 8 * 4)
    # Five rows have room; four are chunks.
    assert read_directory(tmp_path, "a.b").piece == (4, 8)


def test_missing_chunk_is_refused_by_name(tmp_path):
    folder = write(tmp_path)
    (folder / "1.0").unlink()
    with pytest.raises(ValueError, match=r"a\.b: chunk 1\.0 of 2 is missing"):
        read_directory(tmp_path, "a.b")


def test_chunk_may_be_absent_where_a_fill_value_is_given(tmp_path):
    folder = write(tmp_path)
    head = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps({**head, "fill_value": 2.5}))
    (folder / "1.0").unlink()
    found = read_directory(tmp_path, "a.b").read()
    np.testing.assert_array_equal(found[:4], ARRAY[:4])
    assert (found[4:] == 2.5).all()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_chunk_is_refused_by_name(tmp_path, damage):
    chunk = write(tmp_path) / "0.0"
    content = bytearray(chunk.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    chunk.write_bytes(content[: {"truncate": -9, "empty": 0}.get(damage)])
    found = read_directory(tmp_path, "a.b")
    with pytest.raises(ValueError, match=r"^a\.b cannot be read") as refused:
        found.read()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [6, 8, 1]},
        {"shape": [-6, 8]},
        {"shape": ["6", 8]},
        {"chunks": [0, 8]},
        {"chunks": None},
        {"dtype": "<q9"},
        {"dtype": None},
        {"zarr_format": 3},
        {"dimension_separator": "x"},
    ],
)
def test_damaged_head_is_refused_by_name(tmp_path, changes):
    folder = write(tmp_path)
    head = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps({**head, **changes}))
    with pytest.raises(ValueError, match=r"^a\.b: its \.zarray is damaged"):
        read_directory(tmp_path, "a.b")


def test_chunk_that_would_not_fit_into_memory_is_refused(tmp_path):
    folder = write(tmp_path)
    head = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps({**head, "chunks": [2**20, 2**20]}))
    with pytest.raises(ValueError, match="too large"):
        read_directory(tmp_path, "a.b")


@pytest.mark.parametrize("name", ["../a.b", "x/../../a.b", "/a.b", "..", "", "a\0b"])
def test_name_that_leads_elsewhere_is_refused(tmp_path, name):
    write(tmp_path)
    (tmp_path / "inside").mkdir()
    with pytest.raises(ValueError, match="cannot be the name"):
        read_directory(tmp_path / "inside", name)


def test_array_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"other: .* is no zarr array"):
        read_directory(tmp_path, "other")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, value, dtype):
    array = ARRAY.astype(dtype)
    array[5, 3] = value
    with pytest.raises(ValueError, match=r"a\.b holds NaN or infinity"):
        write(tmp_path, array)


TREE = {"step": np.asarray(3, np.int32), "deep": [{"x": ARRAY}, {"y": ARRAY[0]}]}
NAMES = {"step", "deep/0/x", "deep/1/y"}


def test_database_that_orbax_wrote_is_read(tmp_path):
    found = read_database(save(tmp_path / "item"))
    assert set(found) == NAMES
    np.testing.assert_array_equal(found["deep/0/x"].read(), ARRAY)
    assert found["step"].read() == 3


def test_orbax_restores_arrays_in_directories(tmp_path):
    arrays = {
        ("step",): from_array("step", TREE["step"]),
        ("deep", "0", "x"): from_array("x", ARRAY),
        ("deep", "1", "y"): from_array("y", ARRAY[0]),
    }
    for keys, tensor in arrays.items():
        write_directory(tmp_path, ".".join(keys), tensor, GZIP)
    write_metadata(tmp_path, arrays)
    assert set(read_database(tmp_path)) == NAMES
    restored = ocp.StandardCheckpointer().restore(tmp_path, TREE)
    np.testing.assert_array_equal(restored["deep"][0]["x"], ARRAY)
    np.testing.assert_array_equal(restored["deep"][1]["y"], ARRAY[0])
    assert restored["step"] == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tree_metadata": [1]}'])
def test_damaged_metadata_of_orbax_is_refused(tmp_path, content):
    (tmp_path / "_METADATA").write_text(content)
    with pytest.raises(ValueError, match="_METADATA is damaged"):
        read_database(tmp_path)


def test_damaged_database_is_refused(tmp_path):
    manifest = save(tmp_path / "item") / "manifest.ocdbt"
    content = bytearray(manifest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    manifest.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as refused:
        read_database(tmp_path / "item")
    assert "\n" not in str(refused.value)


def save(item: Path) -> Path:
    """Lets orbax save the tree."""
    with ocp.StandardCheckpointer() as saver:
        saver.save(item, TREE)
    return item


@pytest.mark.parametrize("fill_value", [None, 0.0])
def test_chunks_beyond_counting_are_refused_at_once(tmp_path, fill_value):
    folder = write(tmp_path)
    head = json.loads((folder / ".zarray").read_text())
    head |= {"shape": [2**62, 2**62], "chunks": [1, 1], "fill_value": fill_value}
    (folder / ".zarray").write_text(json.dumps(head))
    with pytest.raises(ValueError, match=r"a\.b: most of its \d+ chunks are missing"):
        read_directory(tmp_path, "a.b")


@pytest.mark.parametrize("dtype", ["(2,3)f4", "i4,i4", "O", "|V9", "f4" * 20, 7, None])
def test_dtype_that_is_of_no_numbers_is_refused(tmp_path, dtype):
    folder = write(tmp_path)
    head = json.loads((folder / ".zarray").read_text())
    (folder / ".zarray").write_text(json.dumps({**head, "dtype": dtype}))
    with pytest.raises(ValueError, match=r"a\.b: its \.zarray is damaged"):
        read_directory(tmp_path, "a.b")


def test_folder_may_have_any_name(tmp_path):
    root = tmp_path / "runs 50% #1?"
    with ocp.StandardCheckpointer() as saver:
        saver.save(root / "item", {"a": {"b": ARRAY}})
    assert (root / "item" / "manifest.ocdbt").is_file()
    np.testing.assert_array_equal(read_database(root / "item")["a/b"].read(), ARRAY)


@pytest.mark.parametrize("compressor", [GZIP, None])
def test_chunk_that_is_larger_than_what_it_holds_is_not_read(tmp_path, compressor):
    folder = write(tmp_path, compressor=compressor)
    with (folder / "1.0").open("ab") as file:
        file.truncate(2**31)
    found = read_directory(tmp_path, "a.b")
    np.testing.assert_array_equal(found.read((slice(0, 4), slice(0, 8))), ARRAY[:4])
    with pytest.raises(ValueError, match=r"a\.b: chunk 1\.0 has 2,147,483,648 bytes"):
        found.read((slice(3, 5), slice(0, 8)))
