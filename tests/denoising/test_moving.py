"""Ramps are what their names say; movements that cannot be are refused in a line."""

import dataclasses
import json

import numpy as np
import pytest
from denoising_toys import make_texts, make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from ul2.denoising.denoisers import denoise
from ul2.denoising.mixture import Mixture, from_rows, named
from ul2.denoising.moving import PARTS, moving
from ul2.denoising.ramps import constant, cosine, linear, stages


def at(ramp, *steps):
    return ramp(np.array(steps)).tolist()


def test_ramps_are_those_of_the_docstring():
    assert at(linear(0.3, 0.15, steps=100), 0, 50, 100, 10**9) == [
        0.3,
        pytest.approx(0.225),
        0.15,
        0.15,
    ]
    bent = at(cosine(0.3, 0.15, steps=100), 0, 1, 50, 99, 100)
    assert bent == pytest.approx([0.3, 0.3, 0.225, 0.15, 0.15], abs=1e-4)
    assert bent[1] != bent[0] and bent[-1] == 0.15
    steps = at(stages([1, 0, 1], starts=[0, 500, 900]), 0, 499, 500, 899, 900, 10**6)
    assert steps == [1, 1, 0, 0, 1, 1]
    assert at(linear(1, 2, steps=10, begin=5), 0, 5, 10, 15, 16) == [1, 1, 1.5, 2, 2]
    assert at(constant(7), 0, 10**12) == [7, 7]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: linear(0, 1, steps=0), r"linear: steps \[0, 0\] must be whole .* set"),
        (lambda: cosine(0, 1, steps=5, begin=-1), r"cosine: steps \[-1, 4\] must be"),
        (lambda: linear(0, 1, steps=2.5), r"steps \[0, 2.5\] must be whole numbers"),
        (lambda: linear(0, 1, steps=10**9), r"steps \[0, 1000000000\] must be"),
        (lambda: linear(0, float("inf"), steps=5), r"values \[inf\] are not finite"),
        (lambda: stages([1, 2], [0, 0]), r"stages: steps \[0, 0\] .* or starts"),
        (lambda: stages([1, 2, 3], [0, 9, 5]), r"steps \[0, 9, 5\] must be"),
        (lambda: stages([1, 2], [5, 9]), r"starts \[5, 9\] must begin with 0"),
        (lambda: stages([], []), r"starts \[\] must begin with 0"),
        (lambda: stages([1], [0, 9]), r"1 values \[1.0\] for 2 starts \[0, 9\]"),
    ],
)
def test_impossible_ramps_are_refused(make, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rates": [1, 2]}, r"rates = \[1, 2\] must be ramps by name, such as {'caus"),
        ({"rates": {"q": constant(1)}}, r"rates names 'q', .* one of \['causal_lm', "),
        ({"rates": {"causal_lm": 3}}, r"rates\['causal_lm'\] = 3 is no ramp; use @ra"),
        (
            {"rates": {"causal_lm": linear(1, -1, steps=9)}},
            r"rates\['causal_lm'\] falls to -1.0; a rate is at least 0",
        ),
        (
            {
                "rates": {
                    "causal_lm": stages([1, 0], [0, 5]),
                    "span_corruption": stages([1, 0, 1], [0, 3, 9]),
                }
            },
            "rates: all rates are 0 at step 5; keep one above 0",
        ),
        (
            {"rates": {"causal_lm": linear(1, 0.12345, steps=9)}},
            r"rates end at \[0.12345, 1.0\], exact only over 22469 examples",
        ),
        (
            {"noise_densities": {"span_corruption": linear(0.3, 0, steps=9)}},
            r"noise_densities\['span_corruption'\] comes to 0.0; .* stays in \(0, 1\)",
        ),
        (
            {"noise_densities": {"span_corruption": linear(1, 0.5, steps=9)}},
            r"noise_densities\['span_corruption'\] comes to 1.0; .* stays in \(0, 1\)",
        ),
        ({"noise_densities": {"x": constant(0.5)}}, "noise_densities names 'x'"),
    ],
)
def test_impossible_movements_are_refused_with_their_knob(changes, problem):
    with pytest.raises(ValueError, match=f"moving.{problem}") as caught:
        moving(named("sclm"), **changes)
    assert "\n" not in str(caught.value)


def test_density_that_the_denoiser_cannot_have_is_refused():
    with pytest.raises(ValueError, match=r"'s': a uniform suffix of mean 0\.75"):
        moving(named("ul2"), noise_densities={"s": linear(0.75, 0.25, steps=9)})


def test_shares_are_whole_parts_of_the_rates_at_each_step():
    mixture = moving(named("ul2"), rates={"s": linear(1, 4, steps=10)})
    parts = mixture.parts(np.arange(20))
    assert (parts.sum(axis=1) == PARTS).all()
    assert parts[0].tolist() == pytest.approx([PARTS / 7] * 7, abs=1)
    assert parts[10].tolist() == [100_000] * 2 + [400_000] + [100_000] * 4
    assert (parts[10:] == parts[10]).all()
    gone = moving(named("sclm"), rates={"span_corruption": stages([1, 0], [0, 5])})
    assert gone.parts(np.array([4, 5])).tolist() == [[PARTS // 2] * 2, [PARTS, 0]]


def test_what_does_not_move_is_the_mixture():
    still = moving(named("ul2r"))
    assert still.settled == named("ul2r")
    assert still.last == 0
    fits = still.fit(128, 128, make_vocab())
    assert fits == named("ul2r").fit(128, 128, make_vocab())
    assert still.fits_at(5, fits, make_vocab()) == fits
    assert still.denoisers_at(5) == named("ul2r").denoisers


def test_held_out_text_is_masked_by_all_rates_and_the_last_densities():
    mixture = moving(
        named("sclm"),
        rates={"causal_lm": stages([3, 0], [0, 50])},
        noise_densities={"span_corruption": cosine(0.3, 0.15, steps=100)},
    )
    assert type(mixture.settled) is Mixture
    # Three quarters up to step 50, none from there on.
    assert mixture.settled.shares == pytest.approx((0.375, 0.625), abs=0.03)
    assert mixture.settled.denoisers == named("sclm").denoisers


def test_a_moving_mixture_is_json():
    mixture = moving(named("ul2"), rates={"s": linear(1, 4, steps=10)})
    assert json.loads(json.dumps(mixture.to_json())) == mixture.to_json()
    assert json.dumps(dataclasses.asdict(mixture))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from([(3, "random"), (1, "scattered"), (8, "t5"), (None, "suffix")]),
    st.floats(0.05, 0.5),
    st.floats(0.05, 0.5),
    st.integers(20, 200),
    st.integers(20, 200),
)
def test_examples_fit_at_every_density_and_fill_a_side_at_one(
    kind, start, end, inputs_length, targets_length
):
    mean, placement = kind
    mixture = moving(
        from_rows([("d", "R", mean, 0.2, placement, 1)]),
        noise_densities={"d": linear(start, end, steps=40)},
    )
    vocab = make_vocab()
    fits = mixture.fit(inputs_length, targets_length, vocab)
    rng = np.random.default_rng(0)
    longest = np.zeros(2, np.int64)
    for step in range(0, 44, 4):
        (denoiser,), (fit,) = (
            mixture.denoisers_at(step),
            mixture.fits_at(step, fits, vocab),
        )
        made = denoise(denoiser, make_texts(rng, 2, fits[0].text), vocab=vocab, rng=rng)
        assert made.input_lengths.max() <= fit.inputs <= fits[0].inputs <= inputs_length
        assert made.target_lengths.max() <= fit.targets <= fits[0].targets
        assert fit.spans <= fits[0].spans
        longest = np.maximum(longest, (fit.inputs, fit.targets))
    assert fits[0].targets <= targets_length
    assert tuple(longest) == (fits[0].inputs, fits[0].targets)


def test_too_few_sentinels_at_any_step_are_refused_before_the_first():
    mixture = moving(
        named("span_corruption"),
        noise_densities={"span_corruption": linear(0.15, 0.5, steps=10)},
    )
    needed = mixture.fit(512, 512, make_vocab())[0].spans
    assert needed > named("span_corruption").fit(512, 512, make_vocab())[0].spans
    with pytest.raises(ValueError, match=f"{needed} sentinels needed by denoiser"):
        mixture.fit(512, 512, make_vocab(needed - 1))
