"""Mixtures that move: examples on time, batches by arithmetic, all text read."""

import json

import numpy as np
import pytest
from data_toys import examples_of, make_stream, make_vocab, numbered_split
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.batch import HostRows, padding_fraction
from ul2.data import quotas as quotas_module
from ul2.data.loader import Loader, Source
from ul2.data.moving_stream import MovingBatches, MovingStream
from ul2.data.packing import ARCHITECTURES, pack
from ul2.data.quotas import Quotas
from ul2.denoising.denoisers import merge
from ul2.denoising.mixture import from_rows, named
from ul2.denoising.moving import PARTS, moving
from ul2.denoising.ramps import Ramp, cosine, linear, stages

ROWS = [
    ("r", "R", 3, 0.15, "random", 0.5),
    ("s", "S", None, 0.25, "suffix", 0.3),
    ("x", "X", 8, 0.5, "random", 0.2),
]
MOVING = moving(
    from_rows(ROWS),
    rates={"r": cosine(0.5, 0, steps=60), "s": stages([0, 0.3], [0, 25])},
    noise_densities={"x": linear(0.5, 0.2, steps=80)},
)


def make_moving(mixture=MOVING, length=64, batch_size=14, num_tokens=20_000, **changes):
    fields = {
        "split": numbered_split(num_tokens),
        "mixture": mixture,
        "vocab": make_vocab(),
        "inputs_length": length,
        "targets_length": length,
        "batch_size": batch_size,
        "seed": 0,
    }
    return MovingStream(**{**fields, **changes})


def make_source(host=None, architecture="encoder_decoder", **changes):
    stream = make_moving(**{"batch_size": 28, **changes})
    packing = pack(stream, architecture, shards=4)
    return Source(stream, packing, *([host] if host else []))


def leaves(batch):
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    return [array for side in sides for array in side] + list(batch[2:])


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_quotas_are_those_of_the_docstring():
    mixture = moving(
        named("sclm"),
        rates={
            "causal_lm": stages([0, 1, 1, 3], [0, 1, 2, 3]),
            "span_corruption": stages([1, 3, 1, 1], [0, 1, 2, 3]),
        },
    )
    quotas = Quotas(mixture, 1, (0, 1))
    made = [quotas.segment(step).compositions.tolist() for step in range(3)]
    assert made == [[[0, 1]], [[0, 1]], [[1, 0]]]


@st.composite
def ramps(draw):
    form = draw(st.sampled_from(["linear", "cosine", "stages"]))
    steps = draw(st.lists(st.integers(1, 60), max_size=3, unique=True))
    steps = (0, *sorted(steps))
    values = draw(st.lists(st.integers(0, 5), min_size=len(steps), max_size=len(steps)))
    values[-1] = values[-1] or 1
    return Ramp(form, steps, tuple(map(float, values)))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 30), st.sampled_from([4096, 7]))
def test_shares_are_less_than_one_example_off_their_sum(
    data, num_denoisers, batch_size, most_segments
):
    # One that is always there, so that not all are ever 0.
    rows = [(f"d{i}", None, 3, 0.15, "random", 1) for i in range(num_denoisers + 1)]
    rates = {f"d{i}": data.draw(ramps()) for i in range(num_denoisers)}
    mixture = moving(from_rows(rows), rates=rates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quotas_module, "_MOST_SEGMENTS", most_segments)
        quotas = Quotas(mixture, batch_size, tuple(range(num_denoisers + 1)))
    assert quotas.count <= most_segments
    assert (quotas.length == 1) == (mixture.last <= most_segments)
    shares = mixture.parts(np.arange(quotas.last + 200)) * batch_size
    before, batch = np.zeros(num_denoisers + 1, np.int64), 0
    for number in range(quotas.count + 2):
        segment = quotas.segment(number)
        assert_same(segment.first, before)
        assert quotas.find(batch) == (number, 0)
        off = before - shares[:batch].sum(axis=0) / PARTS
        # Behind the last step shares are those of the rates, not rounded to millionths.
        assert np.abs(off).max() < 1 + 1e-6 * batch * batch_size
        rows = segment.compositions
        assert (rows >= 0).all()
        assert (rows.sum(axis=1) == batch_size).all()
        wanted = rows.mean(axis=0)
        assert (np.abs(rows - wanted) < 1).all()
        batch += len(rows)
        before = before + rows.sum(axis=0)
        # Who has no share has no example.
        silent = (shares[batch - len(rows) : batch] == 0).all(axis=0)
        if quotas.length == 1:
            begun = shares[:batch].sum(axis=0) % PARTS > 0
            assert (rows.sum(axis=0)[silent & ~begun] == 0).all()


def test_plans_are_found_without_those_before_them():
    stream, other = make_moving(), make_moving()
    before = np.zeros(3, np.int64)
    for batch in range(200):
        plan = stream.plan(batch)
        assert_same(plan.first, before)
        before = before + plan.composition
    batches = [10**9, 150, 3, 60, 0]
    ours = {batch: stream.examples(batch) for batch in batches}
    for batch in reversed(batches):
        for left, right in zip(ours[batch], other.examples(batch), strict=True):
            assert_same(left, right)


def test_a_denoiser_that_is_not_wanted_has_no_example():
    stream = make_moving()
    held = np.array([stream.plan(batch).composition for batch in range(120)])
    assert (held[:25, 1] == 0).all()
    assert (held[26:, 1] > 0).all()
    assert (held[61:, 0] == 0).all()
    assert (held[:40, 0] > 0).all()


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_token_is_read_once_an_epoch_but_for_two_batches(rounds):
    stream = make_moving(num_tokens=4_000 * rounds, batch_size=7)
    for epoch in (0, 1, 4):
        first, last = (stream._first_batch(one) for one in (epoch, epoch + 1))
        assert last > first
        reads = np.zeros(stream.split.num_tokens, np.int64)
        texts = []
        for batch in range(first, last):
            examples = stream.examples(batch)
            for denoiser, made in zip(
                stream.denoisers_at(batch), examples, strict=True
            ):
                for inputs, targets in examples_of(made):
                    texts.append(merge(denoiser, inputs, targets, stream.vocab))
        for text in texts:  # tokens are their own positions, from 10 on
            np.add.at(reads, text - 10, 1)
            assert (np.diff(text) != 1).sum() <= 1
        assert reads.max() == 1
        assert (reads == 0).sum() < 2 * stream._batch_tokens
    starts = [stream.starts(2, stream.plan(b)).tolist() for b in (0, last)]
    assert starts[0] != starts[1]


def test_texts_of_a_denoiser_come_from_all_over_the_split():
    stream = make_moving(num_tokens=200_000, batch_size=56)
    starts = np.concatenate([stream.starts(2, stream.plan(b)) for b in range(4)])
    quarters = np.histogram(starts, 4, (0, 200_000))[0]
    assert quarters.min() >= len(starts) / 8


def test_density_of_a_step_is_that_of_its_examples():
    stream = make_moving()
    text = stream.fits[2].text
    for batch in (0, 40, 80, 500):
        made = stream.examples(batch)[2]
        density = stream.denoisers_at(batch)[2].noise_density
        assert density == pytest.approx(max(0.2, 0.5 - 0.3 * batch / 80))
        marks = np.isin(made.targets, stream.vocab.sentinel_ids).sum(axis=1)
        noise = made.target_lengths - 1 - marks
        assert noise.tolist() == [round(text * density)] * len(noise)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 14, 40])
def test_every_example_is_dealt_once_and_no_row_overflows(architecture, batch_size):
    stream = make_moving(batch_size=batch_size)
    packing = pack(stream, architecture)
    shapes = set()
    for batch in range(0, 130, 3):
        dealt, shape = packing.deal_batch(stream.plan(batch))
        shapes.add(shape)
        assert sorted(dealt.ravel()) == list(range(batch_size))
        examples = stream.examples(batch)
        sides = np.stack(
            [
                np.concatenate([made.input_lengths for made in examples]),
                np.concatenate([made.target_lengths for made in examples]),
            ],
            axis=1,
        )
        if architecture == "decoder_only":
            sides = sides.sum(axis=1, keepdims=True)
        assert (sides[dealt].sum(axis=1) <= shape.widths).all()
        assert (sides.max(axis=0) <= shape.views).all()
    assert len(shapes) <= 2


def test_batch_that_is_fuller_than_planned_gets_wider_rows(monkeypatch):
    # Planned with the last steps alone, where next to nothing is masked.
    mixture = moving(
        named("span_corruption"),
        noise_densities={"span_corruption": linear(0.5, 0.05, steps=50)},
    )
    practice = MovingBatches.practice
    monkeypatch.setattr(MovingBatches, "practice", lambda self: practice(self)[-1:])
    source = make_source(mixture=mixture)
    first, last = source[0], source[50]
    assert last.targets.shape[1] == source.packing.widths[1]
    assert first.targets.shape[1] > source.packing.widths[1]
    assert first.encoder.tokens.shape[1] == source.packing.widths[0]


def test_rows_are_as_full_as_those_of_the_fullest_step():
    mixture = moving(named("ul2"), rates={"s": linear(1, 4, steps=400)})
    stream = make_moving(mixture, length=128, batch_size=56, num_tokens=100_000)
    source = Source(stream, pack(stream, "decoder_only"))
    padding = [padding_fraction(source[batch]) for batch in (0, 200, 400)]
    assert max(padding) < 0.2
    assert min(padding) < 0.05


@pytest.mark.parametrize("parts", [[(0,), (1,)], [(0, 1), (2, 3)]])
def test_hosts_read_the_rows_of_one_batch(parts):
    count = 2 if parts[0] == (0,) else 4
    for batch in (0, 30, 61):
        alone = leaves(make_source()[batch])
        for one in parts:
            host = HostRows(one, count)
            for ours, whole in zip(
                leaves(make_source(host)[batch]), alone, strict=True
            ):
                np.testing.assert_array_equal(ours, host.of(whole))


def test_loader_goes_on_where_the_position_was_taken():
    first = Loader(make_source())
    for _ in range(27):
        next(first)
    position = json.loads(json.dumps(first.position()))
    second = Loader(make_source())
    second.seek(position)
    for _ in range(2):
        assert_same(leaves(next(first)), leaves(next(second)))


@pytest.mark.parametrize(
    "other",
    [
        make_stream(MOVING.settled, batch_size=28),
        make_moving(
            moving(from_rows(ROWS), rates={"r": cosine(0.5, 0, steps=61)}),
            batch_size=28,
        ),
    ],
    ids=["still", "slower"],
)
def test_position_is_refused_by_another_movement(other):
    position = Loader(make_source()).position()
    source = Source(other, pack(other, "encoder_decoder"))
    with pytest.raises(ValueError, match=r"another stream .*moves: "):
        Loader(source).seek(json.loads(json.dumps(position)))


def test_too_small_a_split_says_what_two_batches_take():
    stream = make_moving()
    needed = 2 * stream._batch_tokens
    assert make_moving(num_tokens=needed).batches_per_epoch >= 1
    with pytest.raises(ValueError) as error:
        make_moving(num_tokens=needed - 1)
    assert f"split 'train' has {needed - 1} tokens, but two batches" in str(error.value)
    assert f"up to {needed} at BATCH_SIZE=14" in str(error.value)


def test_mixture_that_stands_still_keeps_its_shares():
    stream = make_moving(moving(named("ul2")))
    period = make_stream().compositions
    total = sum(stream.plan(batch).composition for batch in range(len(period)))
    assert_same(total, period.sum(axis=0))
