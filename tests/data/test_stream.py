"""Example k is a function of (seed, k), shares are exact, and all text is read."""

import hashlib

import numpy as np
import pytest
from data_toys import EOS, RingSplit, examples_of, make_stream, make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.data.stream import BatchPlan
from ul2.data.token_store import TokenStore
from ul2.data.token_store_writer import TokenStoreWriter
from ul2.denoising.denoisers import merge
from ul2.denoising.mixture import from_rows, named

UNEVEN = from_rows(
    [
        ("r", "R", 3, 0.15, "random", 0.5),
        ("s", "S", None, 0.25, "suffix", 0.3),
        ("x", "X", 8, 0.5, "random", 0.2),
    ]
)


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def texts_of(stream, batch):
    """Returns each example's text, denoiser after denoiser."""
    return [
        merge(denoiser, inputs, targets, stream.vocab)
        for denoiser, made in zip(
            stream.mixture.denoisers, stream.examples(batch), strict=True
        )
        for inputs, targets in examples_of(made)
    ]


def epoch_starts(stream, index, epoch):
    """Returns where the texts of one denoiser start in one epoch."""
    places = stream.mixture.counts[index] * stream.rounds_per_epoch
    composition = np.zeros(len(stream.fits), np.int64)
    composition[index] = places
    return stream.starts(index, BatchPlan(composition, composition * epoch))


def test_examples_are_a_function_of_seed_and_batch():
    forwards, backwards = make_stream(), make_stream()
    batches = [0, 1, 2, 77, 1_000_003]
    first = [forwards.examples(batch) for batch in batches]
    second = [backwards.examples(batch) for batch in reversed(batches)]
    for ours, theirs in zip(first, reversed(second), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("change", ["seed", "batch"])
def test_another_seed_or_batch_is_another_draw(change):
    stream = make_stream()
    other = make_stream(seed=1) if change == "seed" else stream
    ours, theirs = stream.examples(3), other.examples(3 + (change == "batch"))
    for left, right in zip(ours, theirs, strict=True):
        assert left.inputs.shape != right.inputs.shape or not np.array_equal(
            left.inputs, right.inputs
        )


def test_spans_are_drawn_anew_for_every_batch():
    stream = make_stream("span_corruption", batch_size=1)
    vocab = stream.vocab
    masks = {
        tuple(np.isin(stream.examples(batch)[0].inputs[0], vocab.sentinel_ids))
        for batch in range(30)
    }
    assert len(masks) > 25


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.sampled_from(["ul2", "ul2r", "sclm", UNEVEN]), st.integers(1, 40))
def test_plans_have_exact_shares_over_a_period_and_count_what_came_before(
    objective, batch_size
):
    stream = make_stream(objective, batch_size=batch_size)
    counts = np.array(stream.mixture.counts)
    period = len(stream.compositions)
    before = np.zeros(len(counts), np.int64)
    for batch in range(2 * period):
        plan = stream.plan(batch)
        assert plan.composition.sum() == batch_size
        share = counts * batch_size / counts.sum()
        assert np.abs(plan.composition - share).max() < 1
        np.testing.assert_array_equal(plan.first, before)
        before += plan.composition
        if (batch + 1) % period == 0:
            rounds = before.sum() // counts.sum()
            np.testing.assert_array_equal(before, counts * rounds)
    far = stream.plan(period * 10**9)
    assert (far.first == before // 2 * 10**9).all()


def test_order_of_batches_differs_between_periods():
    stream = make_stream(batch_size=5)
    assert len(stream.compositions) == 7
    orders = {
        tuple(tuple(stream.plan(7 * period + i).composition) for i in range(7))
        for period in range(8)
    }
    assert len(orders) > 1


@pytest.mark.parametrize("objective", ["ul2", "sclm", UNEVEN], ids=["ul2", "sclm", "u"])
@pytest.mark.parametrize("rounds", [1, 2, 13])
def test_every_token_is_read_once_an_epoch_but_for_less_than_a_round(objective, rounds):
    round_tokens = make_stream(objective).round_tokens
    stream = make_stream(objective, num_tokens=rounds * round_tokens + 11)
    assert stream.rounds_per_epoch == rounds
    for epoch in (0, 1, 5):
        reads = np.zeros(stream.split.num_tokens, np.int64)
        for index, fit in enumerate(stream.fits):
            starts = epoch_starts(stream, index, epoch)
            places = (starts[:, None] + np.arange(fit.text)) % len(reads)
            np.add.at(reads, places, 1)
        assert reads.max() == 1
        assert (reads == 0).sum() == 11 < stream.round_tokens


def test_batches_of_an_epoch_hold_its_text():
    # Tokens are their own positions, so merged examples tell what was read.
    stream = make_stream(UNEVEN, batch_size=10)
    per_epoch = int(stream.batches_per_epoch)
    assert per_epoch == stream.batches_per_epoch > 3
    texts = [text for batch in range(per_epoch) for text in texts_of(stream, batch)]
    read = np.sort(np.concatenate(texts))
    assert len(np.unique(read)) == len(read)
    assert 0 <= stream.split.num_tokens - len(read) < stream.round_tokens
    for text in texts:  # running text, around the end of the ring at most once
        jumps = np.diff(text) != 1
        assert jumps.sum() <= 1
        assert (np.diff(text)[jumps] == 1 - stream.split.num_tokens).all()


def test_epochs_differ_in_cuts_and_order():
    stream = make_stream()
    first, second = (epoch_starts(stream, 0, epoch) for epoch in (0, 1))
    assert len(set(first.tolist()) & set(second.tolist())) < len(first) / 2
    steps = [np.diff(starts) for starts in (first, second)]
    assert not np.array_equal(*steps)


def test_examples_of_a_batch_come_from_all_over_the_split():
    stream = make_stream("span_corruption", num_tokens=200_000, batch_size=64)
    starts = stream.starts(0, stream.plan(0))
    quarters = np.histogram(starts, 4, (0, 200_000))[0]
    assert quarters.min() >= 6  # 16 each on average
    gaps = np.diff(np.sort(starts))
    assert gaps.max() > 2 * gaps.min()


def test_document_ends_stay_in_the_text(tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        np.append(rng.integers(10, 500, rng.integers(1, 60)), EOS) for _ in range(200)
    ]
    model = b"a tokenizer"
    vocab = make_vocab()
    fields = vocab.to_json() | {"tokenizer_sha256": hashlib.sha256(model).hexdigest()}
    vocab = type(vocab).from_json(fields)
    with TokenStoreWriter(
        tmp_path / "s", tokenizer=model, vocab=vocab, shard_tokens=900
    ) as writer:
        for index, document in enumerate(documents):
            lengths = np.array([len(document)])
            writer.add("train", document, lengths, [("a.txt", index)])
    split = TokenStore.open(tmp_path / "s").split("train")
    stored = make_stream(split=split, vocab=vocab)
    ring = np.concatenate(documents)
    in_memory = make_stream(split=RingSplit(ring), vocab=vocab)
    for batch in (0, 1, 9):
        assert_same(stored.examples(batch), in_memory.examples(batch))
    texts = np.concatenate(texts_of(stored, 0))
    share = (ring == EOS).mean()
    assert (texts == EOS).mean() == pytest.approx(share, rel=0.3)


def test_batch_without_a_denoiser_has_no_example_of_it():
    stream = make_stream(batch_size=1)
    for batch in range(7):
        held = [len(made.inputs) for made in stream.examples(batch)]
        assert sorted(held) == [0, 0, 0, 0, 0, 0, 1]
        assert held == stream.plan(batch).composition.tolist()


def test_too_small_a_split_says_what_a_round_takes():
    needed = make_stream().round_tokens
    with pytest.raises(ValueError) as error:
        make_stream(num_tokens=needed - 1)
    assert f"split 'train' has {needed - 1} tokens" in str(error.value)
    assert f"takes {needed} at INPUTS_LENGTH=64, TARGETS_LENGTH=64" in str(error.value)
    assert make_stream(num_tokens=needed).rounds_per_epoch == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "BATCH_SIZE=0 must be at least 1"),
        ({"seed": -1}, "SEED=-1 must lie in"),
        ({"seed": 2**32}, "SEED=4294967296 must lie in"),
        ({"vocab": make_vocab(3)}, "15 sentinels needed by denoiser 'x_3_50'"),
    ],
)
def test_impossible_streams_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        make_stream(**changes)


def test_capped_mixture_streams_with_few_sentinels():
    stream = make_stream(named("ul2", cap_spans=True), vocab=make_vocab(3))
    for text, fit in zip(texts_of(stream, 0)[::2], stream.fits, strict=True):
        assert len(text) == fit.text
