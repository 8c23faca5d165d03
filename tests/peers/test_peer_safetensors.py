"""The library of safetensors reads what we write, and we what it writes."""

import ml_dtypes
import numpy as np
import pytest

from ul2.interop import safetensors
from ul2.interop.tensors import from_array

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peer = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.peers

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16"]
DTYPES += ["int8", "uint8", "bool"]


def arrays():
    values = np.random.default_rng(0).normal(size=(5, 7)) * 100
    return {
        f"{name}{n}": values[:n].astype(getattr(ml_dtypes, name, name))
        for name in DTYPES
        for n in (1, 5)
    }


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def test_library_reads_our_file(tmp_path):
    ours = {name: from_array(name, value) for name, value in arrays().items()}
    safetensors.write(tmp_path / "x.safetensors", ours, {"format": "pt"})
    found = peer.load_file(tmp_path / "x.safetensors")
    for name, value in arrays().items():
        assert str(found[name].dtype) == f"torch.{value.dtype.name}"
        np.testing.assert_array_equal(found[name].view(torch.uint8), bits(value))


def test_we_read_the_file_of_the_library(tmp_path):
    theirs = {
        name: torch.from_numpy(bits(value)).view(getattr(torch, value.dtype.name))
        for name, value in arrays().items()
    }
    peer.save_file(theirs, tmp_path / "x.safetensors")
    found = safetensors.read(tmp_path / "x.safetensors")
    for name, value in arrays().items():
        assert found[name].dtype == value.dtype
        assert found[name].read().tobytes() == value.tobytes()
