"""Steps through a cache give the logits of the whole sequence at once."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from model_fixtures import tiny_model

from ul2.batch import Batch, one_per_row
from ul2.decoding.rows import take_rows
from ul2.models import blocks
from ul2.models.cache import Cache

COLUMNS = 5
CHANGES = (
    {},
    {"positions": "rope"},
    {"relative_bias": "per_layer"},
    {"num_kv_heads": 2, "tied_embeddings": True},
    {"num_kv_heads": 1, "positions": "rope"},
)


class State(NamedTuple):
    """A search of nothing but its cache."""

    cache: Cache


def make_batch(inputs, outputs, prefix_lengths, length=None):
    decoder = one_per_row(outputs, length)
    return Batch(
        encoder=None if inputs is None else one_per_row(inputs, length),
        decoder=decoder,
        targets=decoder.tokens,
        loss_weights=np.ones(decoder.tokens.shape, np.float32),
        denoiser_ids=np.zeros(decoder.tokens.shape, np.int32),
        prefix_lengths=np.array(prefix_lengths, np.int32)[:, None],
    )


def make_rows(architecture, lengths):
    """Returns inputs, whole sequences behind prompts of `lengths`, and prefixes."""
    rng = np.random.default_rng(0)
    sequences = [[0, *rng.integers(2, 512, n + COLUMNS - 1).tolist()] for n in lengths]
    if architecture == "decoder_only":
        return None, sequences, [max(1, n - 1) for n in lengths]
    inputs = [rng.integers(2, 512, n).tolist() for n in (5, 9, 2)]
    return inputs, sequences, [0] * len(lengths)


@pytest.fixture(params=["cut", "stacked"])
def layers(request, monkeypatch):
    """Runs layers one by one, and as deep stacks are run."""
    if request.param == "stacked":
        monkeypatch.setattr(blocks, "_MAX_CUT", 0)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_cached_logits_are_those_of_the_whole_sequence(architecture, changes):
    model = tiny_model(architecture, **changes)
    lengths = [3, 7, 1]
    inputs, sequences, prefixes = make_rows(architecture, lengths)
    whole = model.logits(make_batch(inputs, sequences, prefixes))
    prompts = [row[:n] for row, n in zip(sequences, lengths, strict=True)]
    hidden, cache = model.prefill(
        make_batch(inputs, prompts, prefixes), hypotheses=1, columns=COLUMNS
    )
    read = model.unembed(hidden)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(read[row, :n], whole[row, :n], atol=1e-5)
    step = model.make_step()
    for column in range(COLUMNS):
        tokens = jnp.array(
            [[r[n + column]] for r, n in zip(sequences, lengths, strict=True)]
        )
        hidden, cache = step(tokens, jnp.full(3, column), cache)
        logits = model.unembed(hidden)[:, 0]
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(
                logits[row], whole[row, n + column], atol=1e-5, err_msg=str(column)
            )


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("may_reorder", [False, True])
@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_rows_of_another_cache_go_on_as_they_would_in_it(architecture, may_reorder):
    model = tiny_model(architecture)
    inputs, sequences, prefixes = make_rows(architecture, [3, 4, 2])
    prompts = [row[:n] for row, n in zip(sequences, [3, 4, 2], strict=True)]

    def prefill(rows):
        some = [
            given and [given[n] for n in rows] for given in (inputs, prompts, prefixes)
        ]
        batch = make_batch(*some, length=9)
        _, cache = model.prefill(
            batch, hypotheses=2, columns=3, may_reorder=may_reorder
        )
        return cache

    step = model.make_step()
    whole = prefill([0, 1, 2])
    first, whole = step(jnp.array([[5, 6]] * 3), jnp.array([0, 0, 0]), whole)
    other = State(prefill([2, 0]))
    mixed = take_rows(State(whole), other, jnp.array([-1, 0, 1])).cache
    tokens, columns = jnp.array([[7, 8], [5, 6], [5, 6]]), jnp.array([1, 0, 0])
    hidden, _ = step(tokens, columns, mixed)
    second, _ = step(jnp.array([[7, 8]] * 3), jnp.array([1, 1, 1]), whole)
    want = jnp.stack([second[0], first[2], first[0]])
    np.testing.assert_allclose(hidden, want, atol=1e-5)
    assert np.abs(np.asarray(first[2] - first[0])).max() > 1e-3


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_hypotheses_share_their_prompt_and_nothing_else(architecture):
    model = tiny_model(architecture, num_kv_heads=2)
    inputs, sequences, prefixes = make_rows(architecture, [3, 4, 2])
    prompts = [row[:n] for row, n in zip(sequences, [3, 4, 2], strict=True)]
    batch = make_batch(inputs, prompts, prefixes)
    _, alone = model.prefill(batch, hypotheses=1, columns=2)
    _, together = model.prefill(batch, hypotheses=3, columns=2)
    tokens = np.random.default_rng(1).integers(2, 512, (2, 3, 3))
    step = model.make_step()
    for column, one in enumerate(tokens):
        hidden, together = step(jnp.array(one), jnp.full(3, column), together)
    for hypothesis in range(3):
        cache = alone
        for column, one in enumerate(tokens):
            token = jnp.array(one[:, hypothesis : hypothesis + 1])
            want, cache = step(token, jnp.full(3, column), cache)
        np.testing.assert_allclose(hidden[:, hypothesis], want[:, 0], atol=1e-5)


@pytest.mark.usefixtures("layers")
def test_reordered_hypothesis_goes_on_from_what_another_wrote():
    model = tiny_model("encoder_decoder")
    inputs, _, prefixes = make_rows("encoder_decoder", [1, 1, 1])
    batch = make_batch(inputs, [[0]] * 3, prefixes)
    _, cache = model.prefill(batch, hypotheses=2, columns=2, may_reorder=True)
    step = model.make_step()
    _, cache = step(jnp.array([[5, 6]] * 3), jnp.zeros(3, int), cache)
    swapped = cache.reorder(jnp.array([[1, 0], [0, 0], [1, 1]]))
    token = jnp.array([[7, 7]] * 3)
    before, _ = step(token, jnp.ones(3, int), cache)
    after, _ = step(token, jnp.ones(3, int), swapped)
    np.testing.assert_array_equal(after[0], before[0, ::-1])
    np.testing.assert_array_equal(after[1, 1], before[1, 0])
    np.testing.assert_array_equal(after[2, 0], before[2, 1])
    assert np.abs(np.asarray(before[0, 0] - before[0, 1])).max() > 1e-3
