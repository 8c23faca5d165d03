"""Preflight measures what examples are, not what they were declared to be."""

import numpy as np
import pytest
from denoising_toys import MODE_PIECES, make_texts, make_vocab

from ul2.denoising.denoisers import Denoiser, Examples, denoise
from ul2.denoising.mixture import OBJECTIVES, named
from ul2.denoising.preflight import distribution, measure


def measured(declared, made=None, count=40, mode_ids=None, lengths=(512, 512)):
    """Measures `count` examples per unit of rate, made by `made` or as declared."""
    vocab = make_vocab(mode_ids=mode_ids)
    rng = np.random.default_rng(0)
    fits = declared.fit(*lengths, vocab)
    examples = [
        denoise(
            denoiser,
            make_texts(rng, count * rate, fit.text),
            vocab=vocab,
            rng=rng,
        )
        for denoiser, rate, fit in zip(
            made or declared.denoisers, declared.counts, fits, strict=True
        )
    ]
    return measure(declared, fits, examples, vocab)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("mode_ids", [None, MODE_PIECES], ids=["ids", "pieces"])
def test_examples_measure_as_declared(objective, mode_ids):
    mixture = named(objective)
    fits = mixture.fit(512, 512, make_vocab(mode_ids=mode_ids))
    for index, found in enumerate(measured(mixture, mode_ids=mode_ids)):
        denoiser, fit = mixture.denoisers[index], fits[index]
        assert (found.name, found.mode) == (denoiser.name, denoiser.mode)
        assert found.measured_share == pytest.approx(found.rate)
        # Whole tokens and spans: no closer than half of one.
        assert found.measured_noise_density == pytest.approx(
            found.noise_density, abs=0.5 / fit.text + 1e-9
        )
        spans = found.measured_noise_density * fit.text / found.mean_span_length
        assert spans == pytest.approx(max(fit.spans, 1), abs=0.51)
        assert found.sentinels_needed == fit.spans * denoiser.sentinels
        assert found.text_length == fit.text


def test_ul2_measures_the_published_share_of_targets():
    # By arithmetic on T5's lengths (114, 100, 255.5, 512 x 3, 92 with S of half): R a
    # tenth of the targets, X three quarters or more.
    mixture = named("ul2", s_denoiser="half")
    shares = {"R": 0.0, "S": 0.0, "X": 0.0}
    for found in measured(mixture):
        shares[found.mode] += found.target_share
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["R"] == pytest.approx(0.10, abs=0.01)
    assert shares["S"] == pytest.approx(0.12, abs=0.01)
    assert shares["X"] == pytest.approx(0.78, abs=0.01)


def test_lengths_are_those_of_the_examples():
    r_3_15, *_, s = measured(named("ul2"), lengths=(512, 512))[:3]
    assert (r_3_15.measured_inputs_length, r_3_15.measured_targets_length) == (512, 114)
    assert s.text_length == 510  # one place is the mode's, one the EOS's
    assert s.measured_targets_length == 255 / 2 + 1


@pytest.mark.parametrize(
    ("index", "wrong", "density", "span"),
    [
        # What public re-implementations made of the paper's table.
        (4, Denoiser("x_8_15", "X", 8, 0.15), 0.15, 8),
        (2, Denoiser("s_half", "S", None, 0.5, "suffix"), 0.5, 255),
        (1, Denoiser("r_9_15", "R", 9, 0.15), 0.15, 9),
        (5, Denoiser("x_3_15", "X", 3, 0.15), 0.15, 3),
        # The wrong kind altogether: no sentinel to count.
        (0, Denoiser("lm", "R", None, 0.5, "fixed_suffix", False), 0.5, 0),
    ],
)
def test_wrong_denoiser_is_measured_as_what_it_is(index, wrong, density, span):
    mixture = named("ul2")
    made = list(mixture.denoisers)
    made[index] = wrong
    found = measured(mixture, made)[index]
    assert found.measured_noise_density == pytest.approx(density, abs=0.005)
    assert found.measured_mean_span_length == pytest.approx(span, rel=0.03)
    declared = (found.noise_density, found.mean_span_length)
    assert declared != pytest.approx((density, span), rel=0.05)


def test_wrong_rate_is_measured():
    mixture = named("sclm")
    vocab = make_vocab()
    rng = np.random.default_rng(0)
    fits = mixture.fit(64, 64, vocab)
    examples = [
        denoise(denoiser, make_texts(rng, count, fit.text), vocab=vocab, rng=rng)
        for denoiser, fit, count in zip(mixture.denoisers, fits, (3, 1), strict=True)
    ]
    found = measure(mixture, fits, examples, vocab)
    assert [m.rate for m in found] == [0.5, 0.5]
    assert [m.measured_share for m in found] == [0.75, 0.25]


def test_denoiser_without_examples_measures_nothing():
    mixture = named("sclm")
    vocab = make_vocab()
    rng = np.random.default_rng(0)
    fits = mixture.fit(64, 64, vocab)
    made = denoise(
        mixture.denoisers[0], make_texts(rng, 2, fits[0].text), vocab=vocab, rng=rng
    )
    none = made._replace(
        inputs=made.inputs[:0],
        input_lengths=made.input_lengths[:0],
        targets=made.targets[:0],
        target_lengths=made.target_lengths[:0],
    )
    found = measure(mixture, fits, [made, none], vocab)[1]
    assert found.measured_share == found.target_share == 0
    assert found.measured_noise_density == found.measured_mean_span_length == 0
    assert found.measured_inputs_length == found.measured_targets_length == 0


@pytest.mark.parametrize("objective", ["ul2", "span_corruption", "causal_lm"])
def test_spans_one_by_one_add_up_to_what_is_measured(objective):
    mixture, vocab = named(objective), make_vocab()
    rng = np.random.default_rng(0)
    for denoiser, fit in zip(
        mixture.denoisers, mixture.fit(96, 96, vocab), strict=True
    ):
        made = denoise(denoiser, make_texts(rng, 9, fit.text), vocab=vocab, rng=rng)
        found = distribution(denoiser, made, vocab)
        noise = found.noise_densities * fit.text
        assert found.span_lengths.sum() == pytest.approx(noise.sum())
        assert len(found.span_lengths) == 9 * max(fit.spans, 1)
        assert found.span_lengths.min() >= 1
        assert found.noise_densities.shape == (9,)


def test_spans_of_an_example_are_counted_in_order():
    vocab = make_vocab()
    first, second = vocab.sentinel_ids[:2]
    eos = vocab.eos_id
    made = Examples(
        np.array([[11, 12, first, 15, 16, second, eos]], np.int32),
        np.array([7]),
        np.array([[first, 13, 14, second, 17, eos, vocab.pad_id]], np.int32),
        np.array([6]),
    )
    denoiser = Denoiser("r", None, 1.5, 0.4)
    found = distribution(denoiser, made, vocab)
    assert found.span_lengths.tolist() == [2, 1]
    assert found.noise_densities.tolist() == [pytest.approx(3 / 7)]
