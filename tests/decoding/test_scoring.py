"""Scores are the log softmax of the whole model, whatever else is scored."""

import jax
import numpy as np
import pytest
from model_fixtures import tiny_model
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL
from vocab_toys import toy_vocab

from ul2.batch import Batch, one_per_row
from ul2.decoding.scoring import Scorer
from ul2.sharding.mesh import make_mesh

VOCAB = toy_vocab(
    500,
    512,
    sentinel_ids=(499, 498),
    mode_ids={"[R]": (52,), "[S]": (53,), "[X]": (54,)},
    tokenizer_sha256="toy",
)
QUESTION = [52, 10, 11, 12, 1]
PAIRS = [
    (QUESTION, [30, 31, 1]),
    (QUESTION, [40, 1]),
    (QUESTION, [30, 41, 42, 43, 1]),
    ([13, 1], [1]),
    ([53, *range(100, 130), 1], [*range(200, 240), 1]),
    (QUESTION, []),
]


@pytest.fixture(scope="module", params=["encoder_decoder", "decoder_only"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def scorer(model):
    """Compiles each program once for all tests."""
    return Scorer(model, VOCAB)


def expected(model, inputs, targets):
    """Takes a target's log probabilities from the logits of the whole model."""
    if not targets:
        return []
    prefix = [0] if model.architecture == "encoder_decoder" else [0, *inputs]
    decoder = one_per_row([[*prefix, *targets[:-1]]])
    zeros = np.zeros(decoder.tokens.shape, np.int32)
    encoder = one_per_row([inputs]) if model.architecture == "encoder_decoder" else None
    prefixes = np.array([[len(prefix) if encoder is None else 0]], np.int32)
    logits = model.logits(Batch(encoder, decoder, zeros, zeros, zeros, prefixes))
    log_probs = jax.nn.log_softmax(logits[0, len(prefix) - 1 :])
    return np.asarray(log_probs)[range(len(targets)), targets].tolist()


def score(scorer, pairs, **options):
    return scorer.score([i for i, _ in pairs], [t for _, t in pairs], **options)


def assert_expected(model, scores, pairs):
    for found, (inputs, targets) in zip(scores, pairs, strict=True):
        wanted = expected(model, inputs, targets)
        np.testing.assert_allclose(
            found.token_log_probs,
            wanted,
            rtol=REORDERED_SUM_RTOL,
            atol=REORDERED_SUM_ATOL,
        )
        assert found.num_tokens == len(targets)
        assert found.log_prob == pytest.approx(sum(wanted), rel=REORDERED_SUM_RTOL)


def test_scores_are_those_of_the_whole_models_logits(model, scorer):
    assert_expected(model, score(scorer, PAIRS), PAIRS)


def test_choices_that_share_a_row_keep_rotary_positions():
    model = tiny_model("decoder_only", positions="rope", num_kv_heads=2)
    assert_expected(model, score(Scorer(model, VOCAB), PAIRS[:3]), PAIRS[:3])


def test_forced_prefix_is_read_and_not_counted(scorer):
    whole = score(scorer, PAIRS[:3])
    rest = score(scorer, PAIRS[:3], forced=[0, 1, 4])
    for all_of_it, found, forced in zip(whole, rest, (0, 1, 4), strict=True):
        assert found.token_log_probs == all_of_it.token_log_probs[forced:]
        assert found.num_tokens == len(found.token_log_probs)


def test_score_does_not_depend_on_what_else_is_scored(scorer):
    others = [([60 + i, 1], [i + 1, 1]) for i in range(20)]
    alone = score(scorer, PAIRS[3:5])
    among = score(scorer, [*others[:7], *PAIRS[3:5], *others[7:]])[7:9]
    assert among == alone


def test_targets_of_different_owners_share_no_row(scorer):
    (alone,) = score(scorer, PAIRS[:1])
    shared, of_another = score(scorer, [PAIRS[0], PAIRS[0]], owners=[0, 1])
    assert shared == of_another == alone


def test_more_choices_than_a_row_holds_are_scored(model, scorer):
    choices = [(QUESTION, [200 + i, 1]) for i in range(19)]
    assert_expected(model, score(scorer, choices), choices)


def test_scores_of_a_sharded_model_are_the_same(model):
    mesh = make_mesh("data=2,fsdp=2,tensor=2", jax.devices()[:8])
    sharded = Scorer(model, VOCAB, mesh=mesh)
    assert_expected(model, score(sharded, PAIRS[:4]), PAIRS[:4])


def test_inputs_of_choices_are_read_once(model, monkeypatch):
    columns = []
    kind = type(model)
    read = kind.encode if model.architecture == "encoder_decoder" else kind.__call__

    def noted(self, batch, **options):
        packed = batch if model.architecture == "encoder_decoder" else batch.decoder
        columns.append(packed.tokens.shape)
        return read(self, batch, **options)

    name = "encode" if model.architecture == "encoder_decoder" else "__call__"
    monkeypatch.setattr(kind, name, noted)
    long = [53, *range(100, 195), 1]
    score(Scorer(model, VOCAB), [(long, [i, 1]) for i in range(20, 24)])
    # Four rows of four choices are free for others.
    assert columns == [(4, 112)]


def test_logits_exist_for_a_few_columns_at_once(model, monkeypatch):
    shapes = []
    kind = type(model)
    whole = kind.unembed

    def noted(self, hidden):
        shapes.append(hidden.shape[:2])
        return whole(self, hidden)

    monkeypatch.setattr(kind, "unembed", noted)
    score(Scorer(model, VOCAB), [(QUESTION, [*range(2, 90)])])
    assert shapes == [(16, 16)]
