"""A store of examples gives back what was written, or is refused in one line."""

import hashlib
import json
import os

import numpy as np
import pytest

from ul2.data.example_store import is_store, open_store, write_store

SHA = "a" * 64
EXAMPLES = [([11, 12, 13], [14]), ([21, 22], [23, 24]), ([31], []), ([], [41])]


def write(path, examples=EXAMPLES, **changes):
    names = {"task": "toy", "split": "train", "tokenizer_sha256": SHA}
    write_store(path, examples, **{**names, **changes})
    return path


def read(path):
    return open_store(path, tokenizer_sha256=SHA)


def pairs(split):
    return [
        (split.inputs[row].tolist(), split.targets[row].tolist())
        for row in split.rows.tolist()
    ]


def refusal(path):
    with pytest.raises(ValueError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **changes):
    file = path / "manifest.json"
    manifest = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(manifest))


def test_store_gives_back_what_was_written(tmp_path):
    store = read(write(tmp_path / "s"))
    assert pairs(store) == EXAMPLES
    assert (store.task, store.split, len(store)) == ("toy", "train", 4)
    assert store.lengths("inputs").tolist() == [3, 2, 1, 0]
    assert store.lengths("targets").tolist() == [1, 2, 0, 1]


def test_files_are_those_of_the_worked_example(tmp_path):
    path = write(tmp_path / "s")
    assert np.fromfile(path / "inputs.tokens", "<i4").tolist() == [
        *(11, 12, 13, 21, 22, 31)
    ]
    assert np.fromfile(path / "inputs.offsets", "<u8").tolist() == [0, 3, 5, 6, 6]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["examples"] == 4
    assert (manifest["inputs"]["tokens"], manifest["inputs"]["longest"]) == (6, 3)


def test_fingerprint_is_of_the_content(tmp_path):
    first, again = (read(write(tmp_path / name)) for name in "ab")
    assert first.fingerprint == again.fingerprint
    other = read(write(tmp_path / "c", [([11, 12], [13, 14]), *EXAMPLES[1:]]))
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("file", ["inputs.tokens", "targets.offsets"])
def test_damaged_file_is_refused(tmp_path, file):
    path = write(tmp_path / "s")
    content = bytearray((path / file).read_bytes())
    content[3] ^= 1
    (path / file).write_bytes(content)
    assert f"{file} is damaged" in refusal(path)
    os.truncate(path / file, 4)
    assert f"{file} is damaged" in refusal(path)
    (path / file).unlink()
    assert refusal(path).endswith(f"delete {path} and it is made again.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format version 2, this ul2 reads 1"),
        ({"tokenizer_sha256": "b" * 64}, f"with the tokenizer {'b' * 64}, not with"),
        ({"examples": 10**15}, "its 1000000000000000 examples are not those of"),
        ({"examples": "4"}, "is damaged (no examples)"),
        ({"inputs": {"tokens_sha256": "../x"}}, "no inputs.tokens_sha256"),
        ({"task": None}, "is damaged (no task)"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path, changes, message):
    path = write(tmp_path / "s")
    edit(path, **changes)
    assert message in refusal(path)


def test_what_is_no_manifest_is_refused(tmp_path):
    assert "is no store of examples" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "format version None" in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "is damaged" in refusal(tmp_path)


def test_offsets_that_go_back_are_refused(tmp_path):
    path = write(tmp_path / "s")
    wrong = np.array([0, 5, 3, 6, 6], "<u8").tobytes()
    (path / "inputs.offsets").write_bytes(wrong)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["inputs"]["offsets_sha256"] = hashlib.sha256(wrong).hexdigest()
    edit(path, **manifest)
    assert "are not those of inputs.offsets" in refusal(path)


def test_nothing_half_written_stays_behind(tmp_path):
    def broken():
        yield EXAMPLES[0]
        raise RuntimeError("the reader failed")

    with pytest.raises(RuntimeError, match="the reader failed"):
        write(tmp_path / "s", broken())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="split 'train' of task 'toy' holds no exa"):
        write(tmp_path / "s", [])
    assert not list(tmp_path.iterdir())


def test_store_that_another_run_finished_first_is_kept(tmp_path):
    path = write(tmp_path / "s")
    before = read(path).fingerprint
    write(path, EXAMPLES[:2])
    assert read(path).fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert is_store(path) and not is_store(tmp_path)


def test_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write examples .*EXAMPLES_DIR"):
        write(tmp_path / "file" / "s")


def test_held_out_examples_are_a_share_told_apart_by_inputs(tmp_path):
    examples = [([i // 2, 5], [i]) for i in range(2000)]
    store = read(write(tmp_path / "s", examples))
    rest, held = store.hold_out(0.2)
    assert sorted(pairs(rest) + pairs(held)) == sorted(pairs(store))
    assert 300 < len(held) < 500
    of_held = {tuple(inputs) for inputs, _ in pairs(held)}
    assert not of_held & {tuple(inputs) for inputs, _ in pairs(rest)}
    assert len({store.fingerprint, rest.fingerprint, held.fingerprint}) == 3
    assert held.lengths("targets").tolist() == [1] * len(held)
