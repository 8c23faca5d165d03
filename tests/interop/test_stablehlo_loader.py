"""The loader in an export needs jax alone, and refuses what is damaged."""

import hashlib
import json
import subprocess
import sys

import pytest
from stablehlo_toys import ARCHITECTURES, make_checkpoint

from ul2.interop import stablehlo, stablehlo_loader


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in ARCHITECTURES}
    for name, folder in made.items():
        stablehlo.write(make_checkpoint(name), folder)
    return made


@pytest.fixture
def copied(exports, tmp_path):
    for file in exports["encoder_decoder"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# Python's -I leaves the environment and the current folder out; this leaves out more.
ISOLATED = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ul2", "flax", "orbax", "optax", "jaxtyping"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_loader(folder, *arguments):
    command = [sys.executable, "-I", "-c", ISOLATED, str(folder / "load.py")]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loader_runs_with_jax_alone(exports, architecture):
    folder = exports[architecture]
    ran = run_loader(folder, folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"ok: {architecture}, ")
    assert ran.stdout.count("\n") == 1


def test_loader_refuses_a_damaged_file_in_one_line(copied):
    content = bytearray((copied / "params.safetensors").read_bytes())
    content[-100] ^= 1
    (copied / "params.safetensors").write_bytes(content)
    ran = run_loader(copied, copied)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert "params.safetensors is damaged" in ran.stderr


@pytest.mark.parametrize("file", ["encode.stablehlo", "params.safetensors"])
def test_missing_and_truncated_files_are_named(copied, file):
    content = (copied / file).read_bytes()
    (copied / file).write_bytes(content[:-1])
    for check_hashes in (True, False):
        with pytest.raises(ValueError, match=rf"{file} is damaged.*bytes"):
            stablehlo_loader.load(copied, check_hashes=check_hashes)
    (copied / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} is missing"):
        stablehlo_loader.load(copied)


def changed_manifest(folder, change):
    path = folder / "export.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.pop("vocab"), "vocab"),
        (lambda m: m.update(files=[]), "damaged"),
        (lambda m: m["files"].pop("encode.stablehlo"), "encode.stablehlo"),
        (lambda m: m["functions"]["encode"].pop("arguments"), "arguments"),
        (lambda m: m["functions"].update(score=3), "damaged"),
        (lambda m: m["files"].update({"../x": {}}), "no plain file name"),
        (lambda m: m["files"].update({"/etc/passwd": {}}), "no plain file name"),
        (lambda m: m["files"].update({"..": {}}), "no plain file name"),
        (lambda m: m["functions"]["encode"].update(file="../x"), "has no hash"),
        (
            lambda m: m["parameters"]["embedder.embedding"].update(shape=[1, 2]),
            "no embedder.embedding as in export.json",
        ),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_in_one_line(copied, change, message):
    changed_manifest(copied, change)
    with pytest.raises(ValueError, match=message) as error:
        stablehlo_loader.load(copied)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"text"'])
def test_a_manifest_that_is_no_manifest_is_refused(copied, text):
    (copied / "export.json").write_text(text)
    with pytest.raises(ValueError, match=r"export\.json is damaged"):
        stablehlo_loader.load(copied)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        b'{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}',
    ],
)
def test_headers_of_parameters_are_checked(copied, header):
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    refused_parameters(copied, content)


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 16])
def test_files_of_parameters_without_header_are_refused(copied, content):
    refused_parameters(copied, content)


def refused_parameters(folder, content):
    """Loads an export whose manifest agrees with bad parameters."""
    (folder / "params.safetensors").write_bytes(content)
    identity = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed_manifest(
        folder, lambda m: m["files"].update({"params.safetensors": identity})
    )
    with pytest.raises(ValueError, match=r"params\.safetensors is damaged") as error:
        stablehlo_loader.load(folder)
    assert "\n" not in str(error.value)


def test_functions_that_are_not_there_and_wrong_arguments_are_named(exports):
    model = stablehlo_loader.load(exports["decoder_only"])
    with pytest.raises(ValueError, match=r"has \['decode', 'score'\], not encode"):
        model.encode([[7, 8]])
    with pytest.raises(ValueError, match="score takes tokens, prefix_lengths; got 1"):
        model.score([[7, 8]])


@pytest.mark.parametrize("content", [b"", b"no program", b"\xff" * 900])
def test_loader_refuses_a_damaged_program_in_one_line(copied, content):
    manifest = json.loads((copied / "export.json").read_text())
    file = manifest["functions"]["score"]["file"]
    (copied / file).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    manifest["files"][file] = {"bytes": len(content), "sha256": sha256}
    (copied / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"{file} is damaged: ") as caught:
        stablehlo_loader.load(copied)
    assert "\n" not in str(caught.value)
