"""One denoiser: nothing is lost, everything fits, and the lengths are T5's."""

import dataclasses

import numpy as np
import pytest
from denoising_toys import (
    EOS,
    MODE_IDS,
    MODE_PIECES,
    make_texts,
    make_vocab,
    rows_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.denoising.denoisers import Denoiser, denoise, merge
from ul2.denoising.mixture import OBJECTIVES, named
from ul2.denoising.spans import PLACEMENTS, SUFFIXES


def make_denoiser(mean=3, density=0.15, mode=None, placement="random"):
    sentinels = placement not in SUFFIXES
    mean = mean if sentinels else None
    return Denoiser("d", mode, mean, density, placement, sentinels)


@st.composite
def denoisers(draw):
    placement = draw(st.sampled_from(sorted(PLACEMENTS)))
    mean = None if placement in SUFFIXES else draw(st.floats(1, 70))
    most = {"suffix": 0.5, "fixed_suffix": 1.0}.get(placement, 0.99)
    return Denoiser(
        "d",
        draw(st.sampled_from([None, "R", "S", "X"])),
        mean,
        draw(st.floats(0.01, most)),
        placement,
        # A suffix may carry a sentinel, as in the released model's prompts.
        sentinels=placement not in SUFFIXES or draw(st.booleans()),
    )


def assert_nothing_is_lost(denoiser, texts, examples, vocab):
    for text, inputs, targets in zip(
        texts,
        rows_of(examples.inputs, examples.input_lengths),
        rows_of(examples.targets, examples.target_lengths),
        strict=True,
    ):
        np.testing.assert_array_equal(merge(denoiser, inputs, targets, vocab), text)


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    denoisers(),
    st.integers(2, 400),
    st.integers(1, 5),
    st.sampled_from([None, 1, 2, 7, 100]),
    st.sampled_from([MODE_IDS, MODE_PIECES]),
    st.integers(0, 2**31),
)
def test_merge_finds_every_token_again(
    denoiser, length, count, max_spans, mode_ids, seed
):
    vocab = make_vocab(mode_ids=mode_ids)
    rng = np.random.default_rng(seed)
    texts = make_texts(rng, count, length)
    examples = denoise(denoiser, texts, vocab=vocab, rng=rng, max_spans=max_spans)
    assert_nothing_is_lost(denoiser, texts, examples, vocab)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize(("inputs_length", "targets_length"), [(512, 512), (128, 48)])
@pytest.mark.parametrize("mode_ids", [MODE_IDS, MODE_PIECES], ids=["ids", "pieces"])
@pytest.mark.parametrize("placement", [None, "t5"])
def test_examples_of_every_objective_fit_and_lose_nothing(
    objective, inputs_length, targets_length, mode_ids, placement
):
    vocab = make_vocab(mode_ids=mode_ids)
    mixture = named(objective, placement=placement)
    rng = np.random.default_rng(0)
    fits = mixture.fit(inputs_length, targets_length, vocab)
    for denoiser, fit in zip(mixture.denoisers, fits, strict=True):
        texts = make_texts(rng, 6, fit.text)
        examples = denoise(denoiser, texts, vocab=vocab, rng=rng)
        assert_nothing_is_lost(denoiser, texts, examples, vocab)
        assert examples.input_lengths.max() <= fit.inputs <= inputs_length
        assert examples.target_lengths.max() <= fit.targets <= targets_length
        if denoiser.placement != "suffix":  # every length is known beforehand
            assert set(examples.input_lengths) == {fit.inputs}
            assert set(examples.target_lengths) == {fit.targets}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(denoisers(), st.integers(8, 300), st.integers(8, 300), st.integers(0, 5))
def test_fit_takes_as_much_text_as_fits(denoiser, inputs, targets, mode_length):
    fit = denoiser.fit(inputs, targets, mode_length)
    assert fit.inputs <= inputs
    assert fit.targets <= targets
    more = denoiser.measure(fit.text + 1, mode_length, None)
    assert more.inputs > inputs or more.targets > targets


# (text, targets, spans) from random_spans_helper of t5==0.9.4, one sentinel a span, at
# 512, 1024 and 2048: the seven denoisers, then those of other papers.
T5_LENGTHS = {
    (3, 0.15): [(568, 114, 28), (1137, 229, 57), (2274, 456, 114)],
    (8, 0.15): [(588, 100, 11), (1178, 200, 22), (2357, 399, 44)],
    (3, 0.5): [(766, 512, 128), (1534, 1024, 256), (3070, 2048, 512)],
    (8, 0.5): [(908, 512, 57), (1818, 1024, 114), (3638, 2048, 227)],
    (64, 0.15): [(600, 92, 1), (1200, 184, 3), (2401, 367, 6)],
    (64, 0.5): [(1006, 512, 8), (2014, 1024, 16), (4030, 2048, 31)],
    (32, 0.15): [(598, 94, 3), (1197, 187, 6), (2395, 371, 11)],
    (32, 0.5): [(990, 512, 15), (1984, 1024, 31), (3970, 2048, 62)],
    (12, 0.5): [(944, 512, 39), (1888, 1024, 79), (3778, 2048, 157)],
}
# Here T5 drops a token that takes a span along, and announces one target too many.
T5_ONE_TOO_MANY = {(8, 0.5, 2048), (64, 0.5, 2048), (12, 0.5, 2048), (32, 0.5, 512)}


@pytest.mark.parametrize(("mean", "density"), T5_LENGTHS)
def test_lengths_without_mode_are_those_of_t5(mean, density):
    for length, (text, targets, num_spans) in zip(
        (512, 1024, 2048), T5_LENGTHS[mean, density], strict=True
    ):
        fit = make_denoiser(mean, density).fit(length, length, 0)
        assert (fit.text, fit.spans) == (text, num_spans)
        assert fit.targets == targets - ((mean, density, length) in T5_ONE_TOO_MANY)


@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_suffix_takes_the_inputs_length_without_its_eos(length):
    fit = make_denoiser(density=0.25, placement="suffix").fit(length, length, 0)
    assert fit.text == length - 1


@pytest.mark.parametrize("objective", ["ul2", "ul2r", "t5gemma2"])
def test_mode_length_is_part_of_the_budget(objective):
    mixture = named(objective)
    vocab = make_vocab(mode_ids=MODE_PIECES)
    plain = [denoiser.fit(512, 512, 0) for denoiser in mixture.denoisers]
    fits = mixture.fit(512, 512, vocab)
    for denoiser, fit, longer in zip(mixture.denoisers, fits, plain, strict=True):
        assert fit.inputs <= 512
        assert fit.text <= longer.text
        mode = len(vocab.mode(denoiser.mode))
        assert fit == denoiser.fit(512, 512, mode)
        if denoiser.noise_density == 0.15:  # the inputs bind, not the targets
            assert longer.text - fit.text >= mode


def test_denoise_makes_the_examples_of_its_docstring():
    vocab = make_vocab()
    denoiser = make_denoiser(1.5, 0.43, "R")
    assert denoiser.count(7) == (3, 2)
    examples = denoise(
        denoiser,
        np.tile(np.arange(11, 18), (400, 1)),
        vocab=vocab,
        rng=np.random.default_rng(0),
    )
    first, second = vocab.sentinel_ids[:2]
    wanted = (
        (*vocab.mode("R"), 11, 12, first, 15, 16, second, EOS),
        (first, 13, 14, second, 17, EOS),
    )
    made = set(
        zip(
            map(tuple, examples.inputs.tolist()),
            map(tuple, examples.targets.tolist()),
            strict=True,
        )
    )
    assert wanted in made
    assert len(made) == 20  # two divisions of the noise, ten of the kept tokens

    suffix = make_denoiser(density=0.43, mode="S", placement="fixed_suffix")
    split = denoise(
        suffix,
        np.arange(11, 18)[None],
        vocab=vocab,
        rng=np.random.default_rng(0),
    )
    assert split.inputs.tolist() == [[*vocab.mode("S"), 11, 12, 13, 14, EOS]]
    assert split.targets.tolist() == [[15, 16, 17, EOS]]


@pytest.mark.parametrize("placement", ["random", "t5", "scattered"])
def test_sentinels_count_up_once_each_on_both_sides(placement):
    vocab = make_vocab()
    denoiser = make_denoiser(3, 0.5, "X", placement)
    rng = np.random.default_rng(0)
    examples = denoise(denoiser, make_texts(rng, 8, 766), vocab=vocab, rng=rng)
    wanted = list(vocab.sentinel_ids[:128])
    for side in (examples.inputs, examples.targets):
        for row in side:
            assert row[np.isin(row, vocab.sentinel_ids)].tolist() == wanted
    assert (examples.targets[:, 0] == wanted[0]).all()


def test_suffix_may_carry_one_sentinel():
    vocab = make_vocab()
    denoiser = Denoiser("s", "S", None, 0.5, "fixed_suffix", sentinels=True)
    examples = denoise(
        denoiser,
        np.array([[11, 12, 13, 14]]),
        vocab=vocab,
        rng=np.random.default_rng(0),
    )
    first = vocab.sentinel_ids[0]
    assert examples.inputs.tolist() == [[*vocab.mode("S"), 11, 12, first, EOS]]
    assert examples.targets.tolist() == [[first, 13, 14, EOS]]


def test_causal_lm_moves_the_whole_text():
    (causal,) = named("causal_lm").denoisers
    fit = causal.fit(512, 512, 0)
    assert (fit.text, fit.targets) == (511, 512)
    examples = denoise(
        causal,
        np.array([[11, 12, 13]]),
        vocab=make_vocab(),
        rng=np.random.default_rng(0),
    )
    assert examples.inputs.tolist() == [[EOS]]
    assert examples.targets.tolist() == [[11, 12, 13, EOS]]


@pytest.mark.parametrize(
    ("density", "text", "mean"), [(0.25, 511, 128), (0.5, 511, 255.5)]
)
def test_suffix_is_a_quarter_or_a_half_on_average(density, text, mean):
    denoiser = make_denoiser(density=density, placement="suffix")
    assert denoiser.fit(512, 512, 0).text == text
    rng = np.random.default_rng(0)
    texts = make_texts(rng, 2_000, text)
    examples = denoise(denoiser, texts, vocab=make_vocab(), rng=rng)
    lengths = examples.target_lengths - 1
    assert lengths.mean() == mean  # exact: texts come in mirrored pairs
    assert (lengths.min(), lengths.max()) == (1, 2 * mean - 1)


def test_rows_are_padded_behind_their_lengths():
    vocab = make_vocab()
    rng = np.random.default_rng(0)
    denoiser = make_denoiser(density=0.5, placement="suffix")
    examples = denoise(denoiser, make_texts(rng, 9, 50), vocab=vocab, rng=rng)
    for tokens, lengths in (examples[:2], examples[2:]):
        assert tokens.dtype == np.int32
        behind = np.arange(tokens.shape[1]) >= lengths[:, None]
        assert (tokens[behind] == vocab.pad_id).all()
        assert (tokens[~behind] != vocab.pad_id).all()
        assert (tokens[np.arange(9), lengths - 1] == EOS).all()


def test_same_generator_makes_the_same_examples():
    texts = make_texts(np.random.default_rng(0), 4, 200)
    made = [
        denoise(
            make_denoiser(3, 0.5),
            texts,
            vocab=make_vocab(),
            rng=np.random.default_rng(seed),
        )
        for seed in (7, 7, 8)
    ]
    np.testing.assert_array_equal(made[0].inputs, made[1].inputs)
    assert not np.array_equal(made[0].inputs, made[2].inputs)


def test_too_few_sentinels_are_refused_by_denoise():
    with pytest.raises(ValueError, match=r"'d': 128 sentinels needed .* has 100"):
        denoise(
            make_denoiser(3, 0.5),
            np.full((1, 766), 11),
            vocab=make_vocab(100),
            rng=np.random.default_rng(0),
        )


def test_capped_spans_are_fewer_and_longer():
    vocab = make_vocab(100)
    denoiser = make_denoiser(3, 0.5)
    fit = denoiser.fit(512, 512, 0, max_spans=100)
    assert fit.spans == 100
    assert fit.text > 766  # fewer sentinels leave room for text
    rng = np.random.default_rng(0)
    texts = make_texts(rng, 4, fit.text)
    examples = denoise(denoiser, texts, vocab=vocab, rng=rng, max_spans=100)
    assert_nothing_is_lost(denoiser, texts, examples, vocab)
    assert examples.target_lengths.tolist() == [fit.targets] * 4


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mode": "Q"}, r"'d': mode='Q' is not one of \['R', 'S', 'X'\]"),
        ({"placement": "edge"}, "placement='edge' is not one of"),
        ({"noise_density": 0.0}, r"noise_density=0.0 is not in \(0, 1\]"),
        ({"noise_density": 1.1}, r"noise_density=1.1 is not in \(0, 1\]"),
        ({"noise_density": float("nan")}, r"noise_density=nan is not in \(0, 1\]"),
        ({"noise_density": 1.0}, "use a density below 1"),
        ({"mean_span_length": None}, "mean_span_length=None is below 1"),
        ({"mean_span_length": 0.5}, "mean_span_length=0.5 is below 1"),
        ({"sentinels": False}, "need sentinels"),
        ({"placement": "suffix"}, "drop mean_span_length"),
        (
            {"placement": "suffix", "mean_span_length": None, "noise_density": 0.75},
            "placement='fixed_suffix'",
        ),
    ],
)
def test_impossible_denoisers_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(make_denoiser(), **changes)


def test_lengths_that_hold_no_text_are_refused():
    with pytest.raises(ValueError, match="INPUTS_LENGTH=3 and TARGETS_LENGTH=512"):
        make_denoiser().fit(3, 512, 2)


@pytest.mark.parametrize("spoil", ["mode", "inputs", "targets", "start"])
def test_merge_refuses_sides_that_do_not_match(spoil):
    vocab = make_vocab()
    mode = vocab.mode("R")
    first, second, third = vocab.sentinel_ids[:3]
    inputs = [*mode, 11, first, 12, second, EOS]
    targets = [first, 21, second, 22, EOS]
    denoiser = make_denoiser(mode="R")
    whole = merge(denoiser, np.array(inputs), np.array(targets), vocab)
    assert whole.tolist() == [11, 21, 12, 22]
    if spoil == "mode":
        inputs = inputs[1:]
    elif spoil == "inputs":
        inputs[4] = third
    elif spoil == "targets":
        targets = targets[2:]
    else:
        targets = [20, *targets]
    with pytest.raises(
        ValueError, match="mode 'R'" if spoil == "mode" else "inputs have"
    ):
        merge(denoiser, np.array(inputs), np.array(targets), vocab)
