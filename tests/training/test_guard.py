"""What is a spike, and what is only how batches of a mixture differ."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ul2.training.guard import WARM_UP, Guard, Measured, judge, passed

# Of UL2's seven denoisers, as they differ after some thousand updates.
LEVELS = np.array([1.9, 2.2, 2.9, 2.6, 3.1, 2.4, 3.4])
EXAMPLE_TOKENS = np.array([114, 100, 128, 510, 512, 92, 511])
STEPS = 1500


@functools.partial(jax.jit, static_argnums=(2, 3))
def judged(guard, series, threshold=10.0, holds=False):
    """Judges one update after another."""

    def one(guard, measured):
        return judge(guard, Measured(*measured), threshold, holds)

    return jax.lax.scan(one, guard, series)


def series_of(loss, tokens, norms):
    """Returns what so many updates measured; `others` are one learning rate."""
    ones = jnp.ones(len(norms))
    return jnp.asarray(loss), jnp.asarray(tokens), jnp.asarray(norms), (ones,)


def mixture(seed=0, examples=112, steps=STEPS):
    """Returns the sums of updates on random compositions, with heavy-tailed examples.

    Real batches hold each denoiser in its exact share; these vary far more.
    """
    rng = np.random.default_rng(seed)
    falling = 1 + 2 * np.exp(-np.arange(steps) / 300)[:, None]
    counts = rng.multinomial(examples, np.full(7, 1 / 7), steps)
    noise = rng.standard_t(4, (steps, 7)) * 0.5 / np.sqrt(np.maximum(counts, 1))
    tokens = counts * EXAMPLE_TOKENS
    loss = tokens * (LEVELS * falling + noise)
    norms = np.exp(rng.normal(size=steps) * 0.3) * falling[:, 0]
    return loss.astype(np.float32), tokens.astype(np.float32), norms.astype(np.float32)


@pytest.mark.parametrize("examples", [14, 112, 1024])
def test_what_batches_of_a_mixture_hold_is_no_spike(examples):
    _, verdicts = judged(Guard.fresh(7), series_of(*mixture(1, examples)))
    assert not verdicts.spike.any() and verdicts.made.all()


def test_batch_of_the_hardest_denoiser_alone_is_no_spike():
    loss, tokens, norms = mixture()
    mean = loss[-2] / np.maximum(tokens[-2], 1)
    tokens[-1] = [0, 0, 0, 0, 0, 0, 57_232]
    loss[-1] = tokens[-1] * mean
    _, verdicts = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    assert not verdicts.spike.any()
    # A mean over everything would be far off: by what the denoisers differ in.
    whole = (array.sum(1, keepdims=True) for array in (loss, tokens))
    _, verdicts = judged(Guard.fresh(1), series_of(*whole, norms))
    assert verdicts.loss_score[-1] > 5


@pytest.mark.parametrize("at", [WARM_UP, 700, STEPS - 1])
def test_loss_that_jumps_is_a_spike_on_its_step(at):
    loss, tokens, norms = mixture()
    loss[at] += 2.5 * tokens[at]
    _, verdicts = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    assert np.flatnonzero(verdicts.spike).tolist() == [at]
    assert verdicts.made.all() and verdicts.spikes[-1] == 1


def test_norm_that_jumps_is_a_spike():
    loss, tokens, norms = mixture()
    norms[800] *= 1e3
    norms[900] /= 1e3  # what is far too small is none
    _, verdicts = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    assert np.flatnonzero(verdicts.spike).tolist() == [800]
    assert verdicts.norm_score[800] > 10 > verdicts.loss_score[800]


def test_nothing_is_a_spike_before_the_means_are_warm_or_without_a_threshold():
    loss, tokens, norms = mixture()
    loss[WARM_UP - 1] += 9 * tokens[WARM_UP - 1]
    series = series_of(loss, tokens, norms)
    assert not judged(Guard.fresh(7), series)[1].spike.any()
    loss[700] += 9 * tokens[700]
    series = series_of(loss, tokens, norms)
    assert judged(Guard.fresh(7), series)[1].spike[700]
    assert not judged(Guard.fresh(7), series, 0.0)[1].spike.any()


def test_spike_does_not_hide_the_next_and_a_new_level_is_accepted():
    loss, tokens, norms = mixture()
    loss[[700, 701, 720]] += 4 * tokens[[700, 701, 720]]
    loss[1000:] += 2.5 * tokens[1000:]
    _, verdicts = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    spikes = np.flatnonzero(verdicts.spike)
    assert spikes[:3].tolist() == [700, 701, 720]
    assert spikes[3] == 1000 and len(spikes) < 30 and spikes[-1] < 1050


def test_what_is_not_finite_is_never_made_and_is_no_part_of_the_means():
    loss, tokens, norms = mixture(steps=3)
    guard, _ = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    for place in ("loss", "norm", "other"):
        bad = {"loss": loss[0], "norm": norms[0], "other": np.ones(())}
        for value in (np.nan, np.inf, -np.inf):
            changed = {**bad, place: np.asarray(bad[place] + value, np.float32)}
            measured = Measured(
                changed["loss"], tokens[0], changed["norm"], (changed["other"],)
            )
            held, verdict = judge(guard, measured, 10.0, False)
            assert not verdict.made and not verdict.finite and not verdict.spike
            assert held.held
            jax.tree.map(
                np.testing.assert_array_equal, held._replace(held=guard.held), guard
            )


def test_nothing_is_made_or_learned_while_an_update_is_held():
    loss, tokens, norms = mixture(steps=3)
    guard, _ = judged(Guard.fresh(7), series_of(loss, tokens, norms))
    measured = Measured(loss[0], tokens[0], norms[0], ())
    held = guard._replace(held=jnp.asarray(True))
    after, verdict = judge(held, measured, 10.0, False)
    assert verdict.waited and not verdict.made
    jax.tree.map(np.testing.assert_array_equal, after, held)
    step, freed = passed(jnp.asarray(3), held)
    assert (int(step), int(freed.skipped), int(freed.in_a_row)) == (4, 1, 1)
    assert not freed.held
    again, verdict = judge(freed, measured, 10.0, False)
    assert verdict.made and int(again.in_a_row) == 0 and int(again.skipped) == 1


def test_guard_is_the_same_after_json():
    guard, _ = judged(Guard.fresh(7), series_of(*mixture(steps=50)))
    fields = json.loads(json.dumps(guard.to_json(), allow_nan=False))
    jax.tree.map(np.testing.assert_array_equal, Guard.from_json(fields, 7), guard)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [1.0] * 6},
        {"losses": None},
        {"losses": [float("nan")] * 7},
        {"seen": [10**30] * 7},
        {"observed": "many"},
        {"more": 1},
    ],
)
def test_guard_that_does_not_fit_begins_anew(change):
    fields = {**Guard.fresh(7)._replace(skipped=np.int32(3)).to_json(), **change}
    fresh = Guard.from_json(fields, 7)
    jax.tree.map(np.testing.assert_array_equal, fresh, Guard.fresh(7))
