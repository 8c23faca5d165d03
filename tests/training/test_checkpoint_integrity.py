"""A checkpoint that is not what was written is named, and stepped over or refused."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from training_toys import ToyBatches, read_state, rewrite_contract

from ul2.training import integrity, run_directory
from ul2.training.checkpoints import read_contract, read_opt_state, read_params
from ul2.training.state import with_shardings

CONFIG = "loop.TrainSettings.seed = 0\nrecipe.Recipe.seed = 0\n"


@pytest.fixture(scope="module")
def go(train_toy):
    return functools.partial(train_toy, config_text=CONFIG)


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """A run with checkpoints 3 and 6, which nothing disturbed."""
    model_dir = tmp_path_factory.mktemp("runs") / "whole"
    go(model_dir)
    return model_dir


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def abstract(programs):
    return with_shardings(programs.abstract, programs.shardings).params


@pytest.fixture
def read_all(programs):
    return lambda model_dir: read_state(model_dir, programs)


def largest(folder):
    return max(folder.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())


def truncate(checkpoint):
    file = largest(checkpoint / "params" / "ocdbt.process_0")
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(checkpoint):
    file = largest(checkpoint / "train_state" / "ocdbt.process_0")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def lose_a_file(checkpoint):
    (checkpoint / "params" / "_METADATA").unlink()


def take_anothers_file(checkpoint):
    """Of the same length, from an older checkpoint of the same run."""
    name = "params/array_metadatas/process_0"
    other = (checkpoint.parent / "3" / name).read_bytes()
    assert len(other) == (checkpoint / name).stat().st_size
    (checkpoint / name).write_bytes(other[::-1])


def half_write_the_contract(checkpoint):
    file = checkpoint / "contract" / "metadata"
    file.write_text(file.read_text()[:40])


def lose_the_list(checkpoint):
    (checkpoint / "checksums.json").unlink()


def spoil_the_list(checkpoint):
    (checkpoint / "checksums.json").write_text('{"files": {"../../metrics.jsonl": [1')


def lose_an_item(checkpoint):
    shutil.rmtree(checkpoint / "train_state")


def empty_it(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def call_an_older_one_so(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.parent / "3", checkpoint)


DAMAGES = [
    (truncate, r"params/ocdbt\S+: \d+ bytes, not \d+"),
    (flip_a_bit, r"train_state/\S+: is not what was written \(its checksum differs\)"),
    (lose_a_file, "params/_METADATA: is missing"),
    (take_anothers_file, "process_0: is not what was written"),
    (half_write_the_contract, "contract/metadata: 40 bytes, not"),
    (lose_the_list, "checksums.json: is missing"),
    (spoil_the_list, "checksums.json: is no list of files"),
    (lose_an_item, "train_state/.*: is missing"),
    (empty_it, "its contract cannot be read"),
    (call_an_older_one_so, "its contract says that it is step 3"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damaged_checkpoint_is_named_and_stepped_over(
    run, whole, go, read_all, caplog, damage, reason
):
    damage(run / "checkpoints" / "6")
    damaged = names_in(run / "checkpoints" / "6")
    go(run)
    [line] = [r.getMessage() for r in caplog.records if "cannot be used" in r.msg]
    assert line.startswith("checkpoint 6 cannot be used") and "\n" not in line
    assert re.search(reason, line), line
    assert line.endswith("going on from step 3.")
    # It stays for a person to look at, and its step is there again.
    assert names_in(run / "checkpoints" / "6.damaged") == damaged
    jax.tree.map(np.testing.assert_array_equal, read_all(run), read_all(whole))
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert (run / name).read_text() == (whole / name).read_text()


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_step_can_be_damaged_twice(run, go):
    for _ in range(2):
        truncate(run / "checkpoints" / "6")
        go(run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["3", "6", "6.damaged", "6.damaged1"]


def test_run_whose_checkpoints_are_all_damaged_ends_and_touches_nothing(run, go):
    truncate(run / "checkpoints" / "3")
    lose_a_file(run / "checkpoints" / "6")
    before = names_in(run / "checkpoints")
    batches = ToyBatches()
    with pytest.raises(ValueError, match=r"can be used \(6: .*; 3: .*\); nothing") as e:
        go(run, batches=batches)
    assert "choose another MODEL_DIR" in str(e.value) and "\n" not in str(e.value)
    assert names_in(run / "checkpoints") == before
    assert batches.index == 0


def test_checkpoint_of_another_run_is_stepped_over(run, whole, go, read_all, tmp_path):
    other = CONFIG.replace("seed = 0", "seed = 1")
    go(tmp_path / "other", config_text=other)
    shutil.rmtree(run / "checkpoints" / "6")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "6", run / "checkpoints" / "6")
    assert run_directory.newest_step(run) == 6  # no config.gin tells
    (run / "config.gin").write_text(CONFIG)
    assert run_directory.newest_step(run) == 3
    go(run)
    assert (run / "checkpoints" / "6.foreign").is_dir()
    jax.tree.map(np.testing.assert_array_equal, read_all(run), read_all(whole))


def test_run_of_which_no_checkpoint_is_its_own_is_refused(run, go):
    with pytest.raises(
        ValueError, match=r"is of another run \(.*seed: 0 -> 2"
    ) as error:
        go(run, config_text=CONFIG.replace("seed = 0", "seed = 2"))
    assert "choose another MODEL_DIR" in str(error.value)


def test_checkpoint_from_before_checksums_is_read_and_said_to_be_unverified(
    run, go, caplog
):
    rewrite_contract(run, 6)
    assert go(run).step == 6
    [line] = [r.getMessage() for r in caplog.records if "checksums" in r.msg]
    assert line.startswith("checkpoint 6 has no checksums")


# What else orbax was reading is done when nobody waits for it any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoint_from_before_checksums_that_cannot_be_read_is_stepped_over(
    run, whole, go, read_all
):
    rewrite_contract(run, 6)
    (run / "checkpoints" / "6" / "params" / "manifest.ocdbt").write_bytes(b"no")
    go(run)
    assert (run / "checkpoints" / "6.damaged").is_dir()
    jax.tree.map(np.testing.assert_array_equal, read_all(run), read_all(whole))


def test_what_is_not_whole_is_removed_when_a_run_starts(run, go):
    """What kills leave: of a save, of a removal, and of orbax's manager before."""
    leftovers = ["9.partial0", "2.deleting", "9.orbax-checkpoint-tmp"]
    for name in leftovers:
        shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / name)
    go(run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["3", "6"]


@pytest.mark.parametrize("damage", [truncate, lose_a_file])
def test_reader_is_told_and_never_handed_an_older_one(run, abstract, damage):
    damage(run / "checkpoints" / "6")
    for path in (run, run / "checkpoints" / "6"):
        with pytest.raises(ValueError, match=r"checkpoints/6 is damaged") as error:
            read_contract(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"choose another step \(found \[3\]\)"):
        read_params(run, abstract)
    assert read_params(run, abstract, step=3) is not None


def test_bit_that_flipped_is_found_by_those_that_read_the_arrays(run, abstract):
    flip_a_bit(run / "checkpoints" / "6")  # of the optimizer
    assert read_params(run, abstract) is not None
    with pytest.raises(ValueError, match=r"train_state/\S+: is not what was written"):
        read_opt_state(run, {}, 6)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../config.gin", "params/../../x"])
def test_list_of_files_leads_nowhere_else(run, name):
    folder = run / "checkpoints" / "6"
    fields = json.loads((folder / integrity.CHECKSUMS).read_text())
    fields["files"][name] = [0, 0]
    (folder / integrity.CHECKSUMS).write_text(json.dumps(fields))
    assert integrity.find_damage(folder) == "checksums.json: is no list of files"


def test_processes_share_the_reading_and_one_of_them_finds_it(run):
    folder = run / "checkpoints" / "6"
    flip_a_bit(folder)
    found = [integrity.find_damage(folder, part=(index, 3)) for index in range(3)]
    assert len([one for one in found if one]) == 1
    assert integrity.find_damage(folder, items=["params"]) is None
