"""Files of safetensors: what is written comes back, and nothing false is believed."""

import json

import ml_dtypes
import numpy as np
import pytest

from ul2.interop import safetensors, tensors
from ul2.interop.tensors import Tensor, from_array

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"]
DTYPES += ["int64", "float16", "bfloat16", "float32", "float64"]


def array(shape, dtype="float32", seed=0):
    numbers = np.random.default_rng(seed).normal(size=shape) * 100
    return np.abs(numbers).astype(tensors.dtype_of(dtype))


def in_pieces(values: np.ndarray, piece) -> Tensor:
    return Tensor("pieces", values.shape, values.dtype, piece, values.__getitem__)


def make_file(path, header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_all_dtypes_and_shapes_come_back_bit_by_bit(tmp_path):
    shapes = [(), (3,), (2, 0), (3, 4), (2, 3, 5)]
    values = {f"{d}{s}": array(s, d) for d in DTYPES for s in shapes}
    file = tmp_path / "all.safetensors"
    safetensors.write(file, {n: from_array(n, v) for n, v in values.items()}, {})
    found = safetensors.read(file)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].read().tobytes() == value.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "piece", [(1, 1, 1), (2, 2, 3), (4, 1, 7), (1, 5, 7), (3, 5, 2)]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_pieces_of_any_shape_land_in_their_places(tmp_path, piece, order):
    values = array((4, 5, 7))
    view = tensors.transposed(in_pieces(values, piece), order)
    safetensors.write(
        tmp_path / "x", {"before": from_array("b", values), "x": view}, {}
    )
    found = safetensors.read(tmp_path / "x")
    np.testing.assert_array_equal(found["x"].read(), values.transpose(order))
    np.testing.assert_array_equal(found["before"].read(), values)


def test_big_endian_is_written_little_endian(tmp_path):
    values = array((3, 4)).astype(">f4")
    safetensors.write(tmp_path / "x", {"x": from_array("x", values)}, {})
    np.testing.assert_array_equal(safetensors.read(tmp_path / "x")["x"].read(), values)


def test_header_is_what_the_format_says(tmp_path):
    values = {"b": array((3,), "bfloat16"), "a": array((2, 2)), "c": array(())}
    file = tmp_path / "x"
    safetensors.write(
        file, {n: from_array(n, v) for n, v in values.items()}, {"format": "pt"}
    )
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": entry(0, 16, (2, 2)),
        "c": entry(16, 20, ()),
        "b": entry(20, 26, (3,), "BF16"),
    }
    assert content[8 + length :] == b"".join(values[n].tobytes() for n in "acb")


def test_region_reads_only_its_rows(tmp_path):
    values = array((100, 3))
    safetensors.write(tmp_path / "x", {"x": from_array("x", values)}, {})
    tensor = safetensors.read(tmp_path / "x")["x"]
    np.testing.assert_array_equal(
        tensor.read((slice(7, 9), slice(1, 2))), values[7:9, 1:2]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_write_refuses_what_is_not_finite_and_leaves_nothing(tmp_path, value, dtype):
    values = array((3, 3), dtype)
    values[1, 1] = value
    with pytest.raises(ValueError, match=r"^lm_head holds NaN or infinity"):
        safetensors.write(tmp_path / "x", {"x": from_array("lm_head", values)}, {})
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_a_dtype_that_the_format_lacks(tmp_path):
    values = np.zeros(3, ml_dtypes.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"^x: safetensors has no dtype float8_e4m3fn"):
        safetensors.write(tmp_path / "x", {"x": from_array("x", values)}, {})


def test_written_file_is_known_by_header_and_size(tmp_path):
    file, other = tmp_path / "x", array((2, 3))
    content = {"x": from_array("x", array((3, 2)))}
    assert not safetensors.is_written(file, content, {})
    safetensors.write(file, content, {})
    assert safetensors.is_written(file, content, {})
    assert not safetensors.is_written(file, {"x": from_array("x", other)}, {})
    with file.open("ab") as end:
        end.write(b"0")
    assert not safetensors.is_written(file, content, {})


BAD_HEADERS = {
    "dtype": ({"w": entry(0, 8, dtype="F8")}, "w has dtype 'F8'"),
    "dtype_is_list": ({"w": entry(0, 8, dtype=["F32"])}, "w has dtype"),
    "too_short": ({"w": entry(0, 4)}, r"w is F32\[2\], 8 bytes, but lies at \[0, 4\]"),
    "too_long": ({"w": entry(0, 12)}, r"w is F32\[2\], 8 bytes, but lies at"),
    "outside": ({"w": entry(0, 80, (20,))}, r"80 bytes, but lies .* of 8 bytes"),
    "backwards": ({"w": entry(8, 0, (0,))}, "w is F32"),
    "huge": ({"w": entry(0, 8, (2**62, 2**62))}, "w is F32"),
    "negative": ({"w": entry(0, 8, (-1, -2))}, "w has no shape"),
    "many_dims": ({"w": entry(0, 8, (1,) * 40 + (2,))}, "w has no shape"),
    "boolean": ({"w": entry(0, 4, (True,))}, "w has no shape"),
    "one_offset": ({"w": {**entry(0, 8), "data_offsets": [8]}}, "w is F32"),
    "no_offsets": ({"w": {"dtype": "F32", "shape": [2]}}, "w has no shape"),
    "not_a_map": ({"w": [1]}, "w has no shape"),
    "gap": ({"v": entry(0, 0, (0,)), "w": entry(4, 8, (1,))}, "w follows a gap"),
    "overlap": ({"v": entry(0, 8), "w": entry(4, 8, (1,))}, "w overlaps"),
    "rest": ({"w": entry(0, 4, (1,))}, "4 bytes follow the last array"),
    "twice": (b'{"w": {}, "w": {}}', "has 'w' twice"),
    "list": (b"[]", "no JSON object"),
    "text": (b"\xff{", "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_read_refuses_a_false_header(tmp_path, case):
    header, message = BAD_HEADERS[case]
    file = make_file(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=message) as error:
        safetensors.read(file)
    assert "bad.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 5, 8, 50])
def test_read_refuses_a_file_cut_off_in_its_header(tmp_path, size):
    file = tmp_path / "x"
    safetensors.write(file, {"w": from_array("w", array((2,)))}, {})
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="cut off"):
        safetensors.read(file)


def test_read_refuses_a_file_cut_off_in_an_array(tmp_path):
    file = tmp_path / "x"
    safetensors.write(file, {"w": from_array("w", array((20,)))}, {})
    tensor = safetensors.read(file)["w"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"w is F32\[20\], 80 bytes, .* of 79 bytes"):
        safetensors.read(file)
    # Also when it happens between opening and reading.
    with pytest.raises(ValueError, match="was cut off within w"):
        tensor.read()


def test_read_refuses_a_header_longer_than_any_is(tmp_path):
    file = tmp_path / "x"
    with file.open("wb") as sparse:
        sparse.write((2**30).to_bytes(8, "little"))
        sparse.truncate(2**31)
    with pytest.raises(ValueError, match="header of 1073741824 bytes"):
        safetensors.read(file)


def make_shards(directory, weight_map):
    for number in (1, 2):
        content = {f"w{number}": from_array("w", array((number, 3)))}
        safetensors.write(directory / f"part{number}.safetensors", content, {})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / safetensors.INDEX_FILE).write_text(json.dumps(index))


SHARDS = {"w1": "part1.safetensors", "w2": "part2.safetensors"}


def test_index_joins_shards(tmp_path):
    make_shards(tmp_path, SHARDS)
    found = safetensors.read_index(tmp_path)
    assert {name: t.shape for name, t in found.items()} == {"w1": (1, 3), "w2": (2, 3)}


def test_index_follows_links_of_a_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    make_shards(blobs, SHARDS)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert safetensors.read_index(snapshot).keys() == {"w1", "w2"}


@pytest.mark.parametrize(
    "file",
    ["../part2.safetensors", "/etc/x.safetensors", "a\0.safetensors", "x.bin", 3],
)
def test_index_refuses_a_file_outside_its_directory(tmp_path, file):
    inside = tmp_path / "model"
    inside.mkdir()
    make_shards(tmp_path, {})
    make_shards(inside, {**SHARDS, "w2": file})
    with pytest.raises(ValueError, match="says that w2 is in"):
        safetensors.read_index(inside)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({**SHARDS, "w2": "part3.safetensors"}, "cannot read .*part3.safetensors"),
        ({**SHARDS, "w3": "part1.safetensors"}, "part1.safetensors lacks w3"),
        ([], "has no weight_map"),
    ],
)
def test_index_refuses_what_is_missing(tmp_path, weight_map, message):
    make_shards(tmp_path, weight_map)
    with pytest.raises(ValueError, match=message):
        safetensors.read_index(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.msgpack", "m.pkl"])
def test_index_refuses_weights_that_only_a_program_opens(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=f"holds {name} but no model.safetensors"):
        safetensors.read_index(tmp_path)


def test_index_refuses_a_directory_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
        safetensors.read_index(tmp_path)
