"""What is done about bad updates: each fault is injected, and bits are compared."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_toys import NAMES, ToyBatches, ToyModel, make_run, make_settings

from ul2.run_files import EVENTS, METRICS
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.sharding.rules import replicated
from ul2.training import guard
from ul2.training.checkpoints import Contract, load_model, read_contract
from ul2.training.events import PASSED
from ul2.training.guard import Guard, GuardSettings
from ul2.training.loop import step_settings, train
from ul2.training.run import Programs
from ul2.training.run_checkpoints import Checkpoints
from ul2.training.state import init_state


def policy(name, on_spike=None):
    return GuardSettings(
        on_bad_numbers=name,
        on_spike=on_spike or name,
        spike_threshold=6.0,
        max_bad_updates=3,
    )


SKIP, ROLLBACK, STOP = map(policy, ("skip", "rollback", "stop"))
LOG = policy("stop", "log")
WARM = 20
# The batch that is a spike, and a run that holds it.
SPIKE = WARM + 8
LONG = {"total_steps": SPIKE + 4, "save_every_steps": 10, "log_every_steps": 5}


class StoppedError(Exception):
    """The machine went away."""


class FaultyBatches(ToyBatches):
    """Toy batches in any order, some of which are bad.

    Args:
        bad: numbers of the batches whose loss is infinite.
        spikes: numbers of those whose targets nobody would expect.
        order: which batch stands at each position; in order by default.
        stop: position at which the machine goes away.
    """

    def __init__(self, bad=(), spikes=(), order=None, stop=None):
        super().__init__()
        self.bad, self.spikes, self.order, self.stop = bad, spikes, order, stop
        self.read = []

    def __next__(self):
        if self.index == self.stop:
            raise StoppedError
        position = self.index
        number = self.order[position] if self.order else position
        self.index = number
        batch = super().__next__()
        self.index = position + 1
        self.read.append(number)
        # What can be learned by heart: a few tokens, always the same.
        batch.targets[:] = np.where(batch.loss_weights > 0, batch.targets % 4 + 3, 0)
        if number in self.bad:
            batch.loss_weights[3, 2] = np.inf
        if number in self.spikes:
            batch.targets[:] = np.where(batch.loss_weights > 0, 88, 0)
        return batch


class Toys:
    """Runs on one mesh that share what is compiled."""

    def __init__(self, mesh):
        self.mesh, self._programs = mesh, {}

    def train(self, model_dir, batches, policy, **changes):
        settings = make_settings(
            **{"eval_every_steps": 0, "save_every_steps": 3, **changes}, guard=policy
        )
        run = make_run(model_dir, mesh=self.mesh, batches=batches, eval_batches=None)
        programs = self.programs(settings)
        return train(run, settings, programs=programs, clock=lambda: 0.0)

    def programs(self, settings):
        compiled = step_settings(settings, len(NAMES))
        if compiled not in self._programs:
            run = make_run("unused", mesh=self.mesh)
            self._programs[compiled] = Programs(run, compiled)
        return self._programs[compiled]


@pytest.fixture(scope="module")
def toys():
    return Toys(make_mesh("fsdp=8", jax.devices()[:8]))


@pytest.fixture(scope="module")
def warm_toys():
    """The same, with a guard that judges spikes soon."""
    patch = pytest.MonkeyPatch()
    patch.setattr(guard, "WARM_UP", WARM)
    yield Toys(make_mesh("auto", jax.devices()[:1]))
    patch.undo()


def params_of(model_dir, mesh, step=None):
    model, _ = load_model(model_dir, mesh, make_model=ToyModel, step=step)
    return jax.device_get(jax.tree.leaves(model))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(ours, theirs, mesh):
    jax.tree.map(
        np.testing.assert_array_equal, params_of(ours, mesh), params_of(theirs, mesh)
    )
    for name in (METRICS, EVENTS):
        assert (ours / name).read_text() == (theirs / name).read_text()


def left_out(toys, settings, steps, without):
    """Returns the parameters after updates that are all good, for some were left out.

    By the very program of the run: another's sums may differ in their last bits.
    """
    programs = toys.programs(make_settings(guard=settings))
    step = programs.train_step(0)
    state = init_state(ToyModel, programs.optimizer, toys.mesh, seed=0)
    state = state._replace(guard=Guard.fresh(len(NAMES)).placed(replicated(toys.mesh)))
    batches = FaultyBatches()
    for number in range(steps):
        batch = place(next(batches), toys.mesh)
        if number in without:
            state = state._replace(step=state.step + 1)
        else:
            state, _ = step(state, batch)
    return jax.device_get(jax.tree.leaves(programs.model.merge(state.params)))


# The first update, one before and one after a checkpoint, the last, some in a row.
@pytest.mark.parametrize("bad", [(0,), (2,), (5,), (1, 2, 3)])
def test_skipped_update_is_one_that_was_never_there(tmp_path, toys, bad):
    batches = FaultyBatches(bad=bad)
    summary = toys.train(tmp_path, batches, SKIP)
    assert summary.step == 6 and batches.read == list(range(6))
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(tmp_path, toys.mesh),
        left_out(toys, SKIP, 6, bad),
    )
    contract = read_contract(tmp_path)
    assert contract.data_position == {"index": 6}
    assert contract.guard["skipped"] == len(bad)
    assert contract.optimizer_steps == 6 - len(bad)
    events = lines_of(tmp_path / EVENTS)
    assert [(e["event"], e["step"], e["batch"]) for e in events] == [
        ("skip", number + 1, {"index": number}) for number in bad
    ]
    assert all(event["rows"] == [3] for event in events)
    lines = lines_of(tmp_path / METRICS)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert (line["loss"] is None) == (line["step"] - 1 in bad) == ("events" in line)
        assert line["skipped_updates"] == sum(n < line["step"] for n in bad)


@pytest.mark.parametrize("stop", [4, 5])
def test_run_with_skipped_updates_goes_on_bitwise_after_a_kill(tmp_path, toys, stop):
    bad = (2, 4)
    toys.train(tmp_path / "whole", FaultyBatches(bad=bad), SKIP)
    with pytest.raises(StoppedError):
        toys.train(tmp_path / "parts", FaultyBatches(bad=bad, stop=stop), SKIP)
    toys.train(tmp_path / "parts", FaultyBatches(bad=bad), SKIP)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", toys.mesh)


def test_too_many_skipped_updates_in_a_row_stop_the_run(tmp_path, toys):
    with pytest.raises(FloatingPointError, match=r"step 5: .*3 were skipped in a row"):
        toys.train(tmp_path, FaultyBatches(bad=(1, 2, 3, 4)), SKIP)
    assert [e["event"] for e in lines_of(tmp_path / EVENTS)] == ["skip"] * 3 + ["stop"]


def test_update_that_was_made_ends_the_row(tmp_path, toys):
    bad = (0, 1, 2, 4, 5, 6)
    assert toys.train(tmp_path, FaultyBatches(bad=bad), SKIP, total_steps=7).step == 7


def test_stop_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path, toys):
    with pytest.raises(FloatingPointError) as error:
        toys.train(tmp_path, FaultyBatches(bad=(4,)), LOG)
    text = str(error.value)
    assert text.startswith("step 5: not finite: the loss of S (inf), the norm of the ")
    assert "first bad: the loss weights of the batch, in row 3\n" in text
    assert "batch at {'index': 4}" in text
    assert "no checkpoint was made of it, the last is step 3." in text
    assert "ON_BAD_NUMBERS" in text
    assert read_contract(tmp_path).step == 3
    [event] = lines_of(tmp_path / EVENTS)
    assert (event["event"], event["cause"], event["step"]) == ("stop", "not finite", 5)
    last = lines_of(tmp_path / METRICS)[-1]
    assert last["events"] == [{"event": "stop", "step": 5, "batch": {"index": 4}}]
    # The same run under another policy is the run that had that policy all along.
    toys.train(tmp_path, FaultyBatches(bad=(4,)), SKIP)
    toys.train(tmp_path / "skipping", FaultyBatches(bad=(4,)), SKIP)
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(tmp_path, toys.mesh),
        params_of(tmp_path / "skipping", toys.mesh),
    )


# Back to step 3, to the very start, and back twice, from the batch after.
@pytest.mark.parametrize(
    ("bad", "order"),
    [
        ((4,), (0, 1, 2, 5, 6, 7)),
        ((1,), (2, 3, 4, 5, 6, 7)),
        ((4, 6), (0, 1, 2, 7, 8, 9)),
        ((2, 8), (3, 4, 5, 9, 10, 11)),
    ],
)
def test_rollback_goes_on_with_the_batches_after_the_bad_one(
    tmp_path, toys, bad, order
):
    summary = toys.train(tmp_path / "run", FaultyBatches(bad=bad), ROLLBACK)
    assert summary.step == 6
    toys.train(tmp_path / "clean", FaultyBatches(order=order), LOG)
    ours, theirs = tmp_path / "run", tmp_path / "clean"
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(ours, toys.mesh),
        params_of(theirs, toys.mesh),
    )
    lines = lines_of(ours / METRICS)
    losses = [line["loss"] for line in lines_of(theirs / METRICS)]
    assert [line["loss"] for line in lines] == losses
    assert lines[-1]["rollbacks"] == len(bad)
    events = lines_of(ours / EVENTS)
    assert [e["batch"] for e in events] == [{"index": number} for number in bad]
    assert {e["event"] for e in events} == {"rollback"}


@pytest.mark.parametrize("stop", [5, 8])
def test_rollback_is_the_same_after_a_kill(tmp_path, toys, stop):
    bad = (4, 6)
    toys.train(tmp_path / "whole", FaultyBatches(bad=bad), ROLLBACK)
    with pytest.raises(StoppedError):
        toys.train(tmp_path / "parts", FaultyBatches(bad=bad, stop=stop), ROLLBACK)
    toys.train(tmp_path / "parts", FaultyBatches(bad=bad), ROLLBACK)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", toys.mesh)


def test_replay_from_an_older_checkpoint_passes_over_the_same_batches(tmp_path, toys):
    toys.train(tmp_path / "whole", FaultyBatches(bad=(4, 6)), ROLLBACK)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for step in ("3", "6"):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / step)
    batches = FaultyBatches(bad=(4, 6))
    toys.train(tmp_path / "again", batches, ROLLBACK)
    # It knows already what is bad, and reads none of it.
    assert batches.read == [0, 1, 2, 7, 8, 9]
    assert_same_run(tmp_path / "again", tmp_path / "whole", toys.mesh)


def test_rollback_that_keeps_meeting_bad_numbers_ends(tmp_path, toys):
    batches = FaultyBatches(bad=range(4, 100))
    with pytest.raises(FloatingPointError, match=r"back to step 3 3 times") as error:
        toys.train(tmp_path, batches, ROLLBACK)
    assert "step 4: not finite: the loss of" in str(error.value)
    assert read_contract(tmp_path).step == 3
    assert len(lines_of(tmp_path / EVENTS)) == 4


def test_damaged_record_of_passed_batches_is_refused(tmp_path, toys):
    toys.train(tmp_path, FaultyBatches(bad=(4,)), ROLLBACK)
    for content in ("[{", '[{"step": 3}]', '{"a": 1}', '[{"step": -1, "start": {}, '
                    '"end": {}, "times": 1}]'):  # fmt: skip
        (tmp_path / PASSED).write_text(content)
        with pytest.raises(ValueError, match=r"passed_batches.json is damaged"):
            toys.train(tmp_path, FaultyBatches(), ROLLBACK, total_steps=7)


@pytest.mark.parametrize("policy", [SKIP, ROLLBACK, STOP, LOG])
def test_spike_is_met_on_the_step_that_shows_it(tmp_path, warm_toys, policy):
    batches = FaultyBatches(spikes=(SPIKE,))
    if policy is STOP:
        with pytest.raises(FloatingPointError, match=rf"step {SPIKE + 1}: a spike: "):
            warm_toys.train(tmp_path, batches, policy, **LONG)
    else:
        assert warm_toys.train(tmp_path, batches, policy, **LONG).step == SPIKE + 4
    [event] = lines_of(tmp_path / EVENTS)
    kind = "spike" if policy.on_spike == "log" else policy.on_spike
    assert (event["event"], event["cause"], event["step"]) == (kind, "spike", SPIKE + 1)
    assert event["batch"] == {"index": SPIKE}
    assert event["loss_score"] > 6
    # The examples that lost the most, where the parameters are still at hand.
    assert len(event["worst_examples"]) == (0 if kind == "spike" else 5)
    line = lines_of(tmp_path / METRICS)[-1]
    if kind == "rollback":
        assert batches.read == [*range(SPIKE + 2), *range(SPIKE + 1, 2 * SPIKE - 15)]
        assert (line["rollbacks"], line["spikes"]) == (1, 0)
        return
    assert batches.read == list(range(SPIKE + (2 if kind == "stop" else 4)))
    assert (line["spikes"], line["skipped_updates"]) == (1, int(kind == "skip"))
    if kind == "skip":
        clean = FaultyBatches(bad=(SPIKE,))
        warm_toys.train(tmp_path / "clean", clean, SKIP, **LONG)
        jax.tree.map(
            np.testing.assert_array_equal,
            params_of(tmp_path, warm_toys.mesh),
            params_of(tmp_path / "clean", warm_toys.mesh),
        )


def test_what_spikes_are_judged_by_survives_a_kill(tmp_path, warm_toys):
    with pytest.raises(StoppedError):
        batches = FaultyBatches(spikes=(SPIKE,), stop=SPIKE)
        warm_toys.train(tmp_path / "parts", batches, SKIP, **LONG)
    assert read_contract(tmp_path / "parts").guard["observed"] == 20
    for name in ("parts", "whole"):
        batches = FaultyBatches(spikes=(SPIKE,))
        warm_toys.train(tmp_path / name, batches, SKIP, **LONG)
    # Without what was saved, the means would not be warm again by then.
    assert [e["step"] for e in lines_of(tmp_path / "parts" / EVENTS)] == [SPIKE + 1]
    assert_same_run(tmp_path / "parts", tmp_path / "whole", warm_toys.mesh)


def test_checkpoint_from_before_guards_goes_on(tmp_path, toys):
    toys.train(tmp_path, FaultyBatches(), LOG, total_steps=3)
    [path] = (tmp_path / "checkpoints" / "3" / "contract").glob("metadata")
    fields = json.loads(path.read_text())
    del fields["guard"], fields["checksums"]
    path.write_text(json.dumps(fields))
    (path.parents[1] / "checksums.json").unlink()  # there was none either
    toys.train(tmp_path, FaultyBatches(), LOG)
    assert read_contract(tmp_path).guard["observed"] == 3


def test_parameters_that_are_bad_already_cannot_be_skipped_around(tmp_path, toys):
    mesh = toys.mesh
    programs = Programs(
        make_run(tmp_path, mesh=mesh), step_settings(make_settings(), len(NAMES))
    )
    state = init_state(ToyModel, programs.optimizer, mesh, seed=0)
    up = state.params["up"].at[1, 3, 4].set(jnp.nan)
    run = make_run(tmp_path, mesh=mesh)
    contract = Contract(0, None, run.vocab, run.config_text, run.mixture)
    checkpoints = Checkpoints(tmp_path, keep=1, contract=contract)
    bad = state._replace(params={**state.params, "up": up}, step=state.step + 3)
    checkpoints.save(3, bad, {"index": 3}, prior_steps=0)
    checkpoints.close()
    with pytest.raises(FloatingPointError, match="skipping helps nothing") as error:
        toys.train(tmp_path, FaultyBatches(), SKIP)
    assert "the norm of the parameters (nan)" in str(error.value)
    assert "not finite before: up, layer 1" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_bad_numbers": "log"}, "stop, skip, rollback; set ON_BAD_NUMBERS"),
        ({"on_spike": "ignore"}, "log, stop, skip, rollback; set ON_SPIKE"),
        ({"spike_threshold": -1.0}, "set SPIKE_THRESHOLD"),
        ({"spike_threshold": float("nan")}, "set SPIKE_THRESHOLD"),
        ({"max_bad_updates": 0}, "set MAX_BAD_UPDATES"),
    ],
)
def test_policies_that_are_none_name_the_knob(changes, message):
    with pytest.raises(ValueError, match=message):
        GuardSettings(**changes)
