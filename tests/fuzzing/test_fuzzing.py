"""Whatever bytes a reader gets, it reads them or refuses them in one line.

`scripts/fuzz.py` reads as many inputs as there is time for; here are a few of each
reader, and in `corpus/` those that once were findings.
"""

import functools
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fuzzing import watching
from fuzzing.campaign import Bench, read_inputs
from fuzzing.mutations import mutate
from fuzzing.readers import READERS
from fuzzing.watching import Finding, Watch, attempt, scratch
from ul2.interop.safetensors import read_json

CORPUS = Path(__file__).parent / "corpus"
# Models are looked at whole, and an export has to be made first.
FEW = ("hugging", "tokenizer.json", "t5x", "our checkpoint", "gin")
NOT_HERE = ("stablehlo export",)


def slug(name):
    return name.replace(",", "").replace(".", "_").replace("'", "").replace(" ", "_")


BY_SLUG = {slug(name): reader for name, reader in READERS.items()}
CASES = sorted(
    f"{reader.name}/{case.name}"
    for reader in CORPUS.iterdir()
    for case in reader.iterdir()
)


# What is hooked into Python's audit stays there, so once is enough.
@functools.cache
def watch():
    return Watch()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_input_that_was_a_finding_is_none_any_more(case):
    reader = BY_SLUG[case.partition("/")[0]]
    with scratch() as folder:
        made = Bench(reader, Path(folder) / "in", 0).lay_out()
        shutil.copytree(CORPUS / case, made, dirs_exist_ok=True)
        if reader.repair is not None:
            reader.repair(made)
        assert isinstance(outcome := attempt(watch(), reader.read, made), str), outcome


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in READERS if name not in NOT_HERE])
def test_reader_reads_or_refuses_whatever_it_is_given(name):
    inputs = range(4 if name.startswith(FEW) else 40)
    with scratch() as folder:
        made = read_inputs(READERS[name], Path(folder) / "in", 6, watch(), iter(inputs))
        findings = [(i, one) for i, one in made if isinstance(one, Finding)]
    assert not findings


def test_corpus_is_small():
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert len(sizes) > 40 and sum(sizes) < 100_000


def outcome_of(read, folder):
    outcome = attempt(watch(), lambda folder: read(folder), folder)
    return outcome.kind if isinstance(outcome, Finding) else outcome


def refuse(folder):
    read_json(folder / "file")


def test_watch_tells_what_is_allowed_from_what_is_not(tmp_path, monkeypatch):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "file").write_text("[")
    (tmp_path / "secret").write_text("")
    monkeypatch.setattr(watching, "SECONDS", 1.0)

    def raise_lines(folder):
        raise ValueError("not of this package")

    for number, (read, kind) in enumerate(
        (
            (lambda folder: (folder / "file").read_bytes(), "read"),
            (refuse, "refused"),
            (raise_lines, "error"),
            (lambda folder: [][0], "error"),
            (lambda folder: time.sleep(60), "error"),
            (lambda folder: (folder / ".." / "secret").read_bytes(), "escape"),
            (lambda folder: (folder / "file").rename(tmp_path / "moved"), "escape"),
            (lambda folder: os.system("true"), "escape"),
            (lambda folder: subprocess.run("true", check=False), "escape"),
        )
    ):
        assert outcome_of(read, inside) == kind, number
    monkeypatch.setattr(watching, "MEMORY_BYTES", -1)
    assert outcome_of(lambda folder: None, inside) == "memory"


def test_input_is_a_number(tmp_path):
    made = []
    for name in ("a", "b"):
        bench = Bench(READERS["msgpack"], tmp_path / name, seed=3)
        folder = bench.make(17)
        made.append((folder / "checkpoint").read_bytes())
        assert made[0] != bench.valid["checkpoint"]
    assert made[0] == made[1]


def test_every_kind_of_change_is_made(tmp_path):
    """Of some hundred changes of a JSON file, some are JSON still, and some are not."""
    seen = set()
    for number in range(300):
        file = tmp_path / "file"
        if file.is_symlink() or file.is_file():
            file.unlink()
        elif file.is_dir():
            file.rmdir()
        file.write_text('{"shape": [2, 3], "file": "a.bin", "inner": {"x": 1}}')
        mutate(tmp_path, random.Random(number))
        if file.is_symlink() or file.is_dir() or not file.exists():
            seen.add("entry")
        elif file.stat().st_size > 2**30:
            seen.add("grown")
        else:
            content = file.read_bytes()
            seen |= {"deep"} if b"[" * 1000 in content else set()
            seen |= {"path"} if b"../.." in content else set()
            seen |= {"cut"} if len(content) < 30 else set()
    assert seen >= {"entry", "deep", "path", "cut"}
