"""The normalised relative gain."""

import math

import pytest

from ul2.evaluation.relative_gain import oriented, relative_gain


def test_gain_is_the_mean_of_the_gains_in_percent_of_the_reference():
    # The example of the module.
    gain = relative_gain(
        {"boolq": ("accuracy", 66), "xsum": ("rougeL", 27), "text": ("loss", 2.0)},
        {"boolq": ("accuracy", 60), "xsum": ("rougeL", 30), "text": ("loss", 2.5)},
    )
    assert gain.tasks == pytest.approx({"boolq": 10, "xsum": -10, "text": 20})
    assert gain.mean == pytest.approx(20 / 3)
    assert not gain.left_out


def test_reference_gains_nothing_over_itself():
    scores = {"a": ("f1", 3.0), "b": ("loss", 1.5), "c": ("perplexity", 7.0)}
    assert relative_gain(scores, scores).mean == 0


def test_negative_reference_counts_by_its_size():
    gain = relative_gain({"a": ("correlation", 10)}, {"a": ("correlation", -20)})
    assert gain.mean == pytest.approx(150)


def test_perplexity_counts_as_negative_log_perplexity():
    assert oriented("perplexity", math.exp(2)) == pytest.approx(-2)
    assert oriented("loss", 2.0) == -2
    assert oriented("validation_loss", 2.0) == -2
    assert oriented("accuracy", 2.0) == 2
    ours, base = {"t": ("perplexity", math.e**2)}, {"t": ("perplexity", math.e**4)}
    assert relative_gain(ours, base).mean == pytest.approx(50)


@pytest.mark.parametrize(
    ("score", "reference", "why"),
    [
        (("f1", 1.0), ("f1", 0.0), "zero"),
        (("f1", 1.0), ("accuracy", 1.0), "has accuracy, not f1"),
        (("perplexity", 2.0), ("perplexity", 1.0), "zero"),
        (("f1", math.nan), ("f1", 1.0), "not finite"),
        (("perplexity", 0.0), ("perplexity", 2.0), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_a_reason(score, reference, why):
    both = ("f1", 2.0)
    gain = relative_gain({"a": score, "b": both}, {"a": reference, "b": ("f1", 1.0)})
    assert why in gain.left_out["a"]
    assert gain.mean == 100
    alone = relative_gain({"a": score}, {"a": reference})
    assert alone.mean is None


def test_task_that_the_reference_lacks_is_left_out():
    gain = relative_gain({"a": ("f1", 2.0)}, {})
    assert (gain.mean, list(gain.left_out)) == (None, ["a"])
