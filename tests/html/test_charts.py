"""Charts lose no spike, and hide nothing that is not finite."""

import itertools
import math
import re

import pytest

from ul2.html.buckets import bucketed
from ul2.html.charts import Line, histogram, line_chart, spread
from ul2.html.scales import Scale, duration, number, scale_of, tick_labels

NAN = math.nan


def test_a_spike_of_one_value_survives_any_downsampling():
    steps = list(range(100_000))
    values = [2.0] * len(steps)
    values[54_321] = 93.5
    buckets = bucketed(steps, values, 300)
    assert len(buckets) == 300
    [hit] = [b for b in buckets if b.high > 2]
    assert hit.high == 93.5
    assert hit.first <= 54_321 <= hit.last
    assert hit.low == 2.0
    assert 2.0 < hit.mean < 3.0


def test_buckets_are_all_of_the_values_each_once():
    steps = [1, 2, 3, 50, 51, 99, 100]
    values = [1.0, NAN, 3.0, 5.0, math.inf, 7.0, 8.0]
    buckets = bucketed(steps, values, 3)
    assert [(b.first, b.last, b.low, b.high, b.lacking) for b in buckets] == [
        (1, 3, 1.0, 3.0, 1),
        (50, 51, 5.0, 5.0, 1),
        (99, 100, 7.0, 8.0, 0),
    ]
    assert [b.first for b in bucketed(steps, values, 7)] == steps
    assert bucketed([], [], 5) == []
    [alone] = bucketed([4], [NAN], 5)
    assert math.isnan(alone.mean)
    assert alone.lacking == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_series_are_drawn_value_by_value(count):
    buckets = bucketed(list(range(count)), [float(n) for n in range(count)], 300)
    chart = line_chart("loss", "nats", [Line("a", 0, buckets)])
    [path] = re.findall(r'class="line solid"[^>]* d="([^"]*)"', chart)
    assert len(re.findall("[ML]", path)) == count
    assert ("<circle" in chart) == (count == 1)


def test_what_is_not_finite_is_marked_and_breaks_the_line():
    values = [1.0, 2.0, NAN, 4.0]
    chart = line_chart("x", "", [Line("a", 0, bucketed([0, 1, 2, 3], values, 300))])
    assert chart.count('class="lacking"') == 1
    [path] = re.findall(r'class="line solid"[^>]* d="([^"]*)"', chart)
    assert path.count("M") == 2
    assert "nan" not in chart.lower().replace("not finite", "")
    assert "inf" not in chart.replace("not finite", "")


def test_values_far_apart_get_an_axis_of_ratios():
    def chart(values):
        buckets = bucketed(list(range(len(values))), values, 300)
        return line_chart("x", "", [Line("a", 0, buckets)])

    assert "logarithmic" in chart([1.0, 100.0])
    assert "logarithmic" not in chart([1.0, 10.0])
    assert "logarithmic" not in chart([0.0, 100.0])


def test_labels_at_the_ends_of_lines_keep_apart_and_inside():
    assert spread([10, 12, 30], 10, 0, 100) == [6, 16, 30]
    found = spread([50.0] * 7, 13, 10, 200)
    assert found[0] >= 10
    assert all(b - a == pytest.approx(13) for a, b in itertools.pairwise(found))
    assert max(spread([199, 199, 199], 13, 10, 200)) <= 200


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (2.9, 10.4), (0, 1e6), (1e-9, 2e-9), (-5, 5)]
)
def test_ticks_are_few_round_and_inside(low, high):
    ticks = Scale(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
    labels = tick_labels(ticks, number)
    assert len(set(labels)) == len(labels)


def test_one_value_is_an_axis_too():
    for value in (0.0, 3.0, -2.0):
        scale = scale_of([value], 0, 100)
        assert 0 <= scale(value) <= 100
    assert scale_of([], 0, 1).low < scale_of([], 0, 1).high


def test_numbers_are_written_for_people():
    assert [number(v) for v in (0.0125, 4.5912, 81234.0, 1.2e6, NAN)] == [
        *("0.0125", "4.59", "81,234", "1.2 M", "not a number")
    ]
    assert [duration(v) for v in (0.9, 61, 3600, 93784)] == [
        "0s",
        "1m 1s",
        "1h",
        "1d 2h",
    ]


def test_histogram_shows_what_was_declared():
    chart = histogram(
        "r", "tokens", [(0.5, 1.5, 0.4), (1.5, 2.5, 0.6)], colour=0, declared=64.0
    )
    assert "declared 64" in chart
    assert "2: 60.0%" in chart
    assert chart.count("<rect") == 2
