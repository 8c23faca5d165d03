import math

import pytest

from ul2.training.schedules import constant, cosine, inverse_square_root, linear


def values(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_inverse_square_root_is_flat_then_falls_as_t5x():
    schedule = inverse_square_root(1.0, warmup_steps=10_000)
    expected = [0.01, 0.01, 1 / math.sqrt(10_001), 0.001]
    assert values(schedule, 0, 10_000, 10_001, 10**6) == pytest.approx(expected)


def test_constant_rises_then_stays():
    schedule = constant(0.5, warmup_steps=10)
    assert values(schedule, 0, 5, 10, 999) == pytest.approx([0.0, 0.25, 0.5, 0.5])
    assert values(constant(0.5), 0) == [0.5]


def test_cosine_follows_half_a_cosine():
    schedule = cosine(2.0, total_steps=110, warmup_steps=10, end_fraction=0.1)
    quarter = 0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2
    expected = [0.0, 2.0, quarter, 1.1, 0.2, 0.2]
    assert values(schedule, 0, 10, 35, 60, 110, 500) == pytest.approx(expected)


def test_linear_falls_in_a_line():
    schedule = linear(1.0, total_steps=100, warmup_steps=20)
    expected = [0.5, 1.0, 0.5, 0.0]
    assert values(schedule, 10, 20, 60, 100) == pytest.approx(expected)


def test_warm_up_longer_than_the_run_names_the_knobs():
    with pytest.raises(ValueError, match="WARMUP_STEPS or TOTAL_STEPS"):
        cosine(1.0, total_steps=10, warmup_steps=10)
    with pytest.raises(ValueError, match="WARMUP_STEPS"):
        inverse_square_root(1.0, warmup_steps=0)
