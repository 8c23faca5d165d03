"""Scores of given targets, against the logits of one example at a time."""

import jax
import numpy as np
import pytest
from evaluation_toys import VOCAB, WordTokenizer, make_task
from flax import nnx
from model_fixtures import tiny_model

from ul2.batch import Batch, one_per_row
from ul2.evaluation.evaluator import TaskEvaluator
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.teacher_forced import (
    TeacherForced,
    TokenScore,
    summarize,
)
from ul2.sharding.mesh import make_mesh
from ul2.sharding.rules import replicated
from ul2.tasks.text_task import TextExample

INPUTS = [[5, 10, 11, 1], [6, *range(8, 28), 1], [12, 1]]
TARGETS = [[14, 1], [1], [15, 16, 17, 1]]


def model_on(mesh, architecture):
    model = tiny_model(architecture, vocab_size=128)
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.device_put(state, replicated(mesh)))


def alone(model, inputs, targets):
    """Returns the score of one target from the logits of its own unpadded example."""
    if model.architecture == "encoder_decoder":
        encoder, row, first = one_per_row([inputs]), targets, 0
    else:
        encoder, row, first = None, [*inputs, *targets], len(inputs)
    prefix = np.array([[first + 1 if first else 0]], np.int32)
    batch = Batch(
        encoder=encoder,
        decoder=one_per_row([[VOCAB.start_id, *row[:-1]]]),
        targets=np.array([row]),
        loss_weights=np.ones((1, len(row)), np.float32),
        denoiser_ids=np.zeros((1, len(row)), np.int32),
        prefix_lengths=prefix,
    )
    logits = nnx.jit(lambda model, batch: model.logits(batch))(model, batch)
    logits = np.asarray(logits, np.float64)[0, first:]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return TokenScore(
        log_probs[range(len(targets)), targets].sum(),
        int((logits.argmax(-1) == targets).sum()),
        len(targets),
    )


@pytest.mark.parametrize(
    ("architecture", "devices"), [("encoder_decoder", 8), ("decoder_only", 1)]
)
def test_scores_are_those_of_each_example_alone(architecture, devices):
    mesh = make_mesh("auto", jax.devices()[:devices])
    model = model_on(mesh, architecture)
    scorer = TeacherForced(model, VOCAB, mesh, batch_size=2)
    found = scorer.score(INPUTS, TARGETS)
    wanted = [alone(model, *pair) for pair in zip(INPUTS, TARGETS, strict=True)]
    assert [one[1:] for one in found] == [one[1:] for one in wanted]
    np.testing.assert_allclose(
        [one.log_prob for one in found], [one.log_prob for one in wanted], rtol=1e-5
    )


def test_likeliest_tokens_are_all_correct():
    mesh = make_mesh("auto", jax.devices()[:1])
    model = model_on(mesh, "encoder_decoder")
    scorer = TeacherForced(model, VOCAB, mesh, batch_size=128)
    every = [[token] for token in range(128)]
    scores = scorer.score([[9, 1]] * 128, every)
    best = max(range(128), key=lambda token: scores[token].log_prob)
    assert [token for token in range(128) if scores[token].num_correct] == [best]
    assert sum(np.exp(score.log_prob) for score in scores) == pytest.approx(1, rel=1e-5)


def test_summary_counts_tokens_and_whole_sequences():
    # The example of the module, and one with a wrong token.
    assert summarize([TokenScore(-0.3, 2, 2)]) == pytest.approx(
        {"loss": 0.15, "token_accuracy": 100, "sequence_accuracy": 100}
    )
    both = summarize([TokenScore(-0.3, 2, 2), TokenScore(-1.7, 1, 2)])
    assert both == pytest.approx(
        {"loss": 0.5, "token_accuracy": 75, "sequence_accuracy": 50}
    )


def test_task_is_scored_without_decoding():
    mesh = make_mesh("auto", jax.devices()[:1])

    class Silent:
        model = model_on(mesh, "encoder_decoder")
        vocab = VOCAB
        tokenizer = WordTokenizer()

    examples = [TextExample("is it", "yes"), TextExample("q:", "1 2 3 4 5 6 7 = so")]
    evaluator = TaskEvaluator(
        EvaluationSettings(method="teacher_forced"), mesh, lambda *a, **k: examples
    )
    task = make_task(targets_length=8)
    result = evaluator(Silent(), task, "X")
    assert result.metric == "loss"
    assert result.counts == {
        "examples": 2,
        "truncated_inputs": 0,
        "truncated_targets": 1,
    }
    wanted = TeacherForced(Silent.model, VOCAB, mesh).score(
        [[7, 8, 9, 1], [7, WordTokenizer().encode("q:")[0], 1]],
        [[14, 1], WordTokenizer().encode(examples[1].targets)[:8]],
    )
    assert result.scores == pytest.approx(summarize(wanted))
    assert [row["tokens"] for row in result.rows] == [2, 8]
    assert evaluator(Silent(), task, None).scores != result.scores
