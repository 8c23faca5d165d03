"""How well a model predicts given outputs, token by token.

    targets      True  <eos>
    log p        -0.2  -0.1
    likeliest?   yes   yes

    loss                0.15    nats per token, EOS included
    token_accuracy      100 %
    sequence_accuracy   100 %   examples all of whose tokens are the likeliest

Nothing is decoded, so this costs one forward pass. It is the loss of training: the
compiled evaluation step of `ul2.training` runs with every example as a denoiser of its
own, so that its sums per denoiser are sums per example.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ul2.batch import Batch, one_per_row
from ul2.sharding.placement import num_batch_shards, place
from ul2.sharding.rules import DEFAULT_RULES, Rules
from ul2.training.state import ModelDef, Params
from ul2.training.step import EvalStep, make_eval_step
from ul2.vocab import Vocab, round_up

# Lengths are rounded up to it, so that few programs are compiled; logits exist for so
# many columns at once.
_LENGTH_MULTIPLE: Final = 32


class TokenScore(NamedTuple):
    """Sums over the tokens of one target."""

    log_prob: float
    num_correct: int
    num_tokens: int


class TeacherForced:
    """Scores given targets.

    Args:
        model: an `EncoderDecoder` or a `DecoderOnly`, its parameters on `mesh`.
        vocab: start, EOS and pad ids.
        mesh: where it runs.
        rules: logical axis to mesh axis.
        batch_size: examples that are scored together, at most.
    """

    def __init__(
        self,
        model: Any,
        vocab: Vocab,
        mesh: Mesh,
        rules: Rules = DEFAULT_RULES,
        *,
        batch_size: int = 32,
    ) -> None:
        self._vocab = vocab
        self._architecture: str = model.architecture
        self._rows = round_up(batch_size, num_batch_shards(mesh, rules))
        self._place = functools.partial(place, mesh=mesh, rules=rules)
        definition, self._params = split_model(model)
        self._step: EvalStep = make_eval_step(
            definition,
            mesh,
            rules,
            param_shardings=jax.tree.map(lambda leaf: leaf.sharding, self._params),
            num_denoisers=self._rows,
            vocab_size=vocab.padded_size,
            loss_chunk=_LENGTH_MULTIPLE,
        )

    def score(
        self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[TokenScore]:
        """Returns the score of each target, given its inputs.

        Args:
            inputs: ids, mode and EOS included.
            targets: ids, EOS included.
        """
        order = sorted(
            range(len(inputs)), key=lambda i: -len(inputs[i]) - len(targets[i])
        )
        scores: dict[int, TokenScore] = {}
        for start in range(0, len(order), self._rows):
            some = order[start : start + self._rows]
            batch = self._batch([inputs[i] for i in some], [targets[i] for i in some])
            sums = jax.device_get(self._step(self._params, self._place(batch)))
            for row, index in enumerate(some):
                scores[index] = TokenScore(
                    -float(sums.loss[row]),
                    round(float(sums.correct[row])),
                    round(float(sums.tokens[row])),
                )
        return [scores[index] for index in range(len(inputs))]

    def _batch(
        self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> Batch:
        """Lays out one example a row; rows that are left over count for nothing."""
        spare = self._rows - len(inputs)
        inputs = [*inputs, *[inputs[0]] * spare]
        targets = [*targets, *[targets[0]] * spare]
        joined = targets
        prefixes = np.zeros(self._rows, np.int32)
        encoder = None
        if self._architecture == "decoder_only":
            joined = [[*a, *b] for a, b in zip(inputs, targets, strict=True)]
            # As in training: the inputs, and the place that reads the last of them.
            prefixes = np.array([len(row) + 1 for row in inputs], np.int32)
        else:
            encoder = one_per_row(inputs, _length(inputs), pad_id=self._vocab.pad_id)
        length = _length(joined)
        shifted = [[self._vocab.start_id, *row[:-1]] for row in joined]
        decoder = one_per_row(shifted, length, pad_id=self._vocab.pad_id)
        learned = one_per_row(joined, length, pad_id=self._vocab.pad_id)
        rows = np.arange(self._rows, dtype=np.int32)[:, None]
        present = learned.segment_ids > 0
        counted = present & (learned.positions >= prefixes[:, None] - 1)
        counted &= rows < self._rows - spare
        return Batch(
            encoder=encoder,
            decoder=decoder,
            targets=learned.tokens,
            loss_weights=counted.astype(np.float32),
            denoiser_ids=np.where(counted, rows, -1).astype(np.int32),
            prefix_lengths=prefixes[:, None],
        )


def split_model(model: Any) -> tuple[ModelDef, Params]:
    """Returns a model without its arrays, and the arrays."""
    graphdef, state = nnx.split(model, nnx.Param)
    params: Params = nnx.to_pure_dict(state)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return ModelDef(graphdef, {}, abstract), params


def summarize(scores: Sequence[TokenScore]) -> dict[str, float]:
    """Returns loss and accuracies over all examples; see the module."""
    tokens = sum(score.num_tokens for score in scores)
    whole = sum(score.num_correct == score.num_tokens for score in scores)
    return {
        "loss": -math.fsum(score.log_prob for score in scores) / tokens,
        "token_accuracy": 100 * sum(score.num_correct for score in scores) / tokens,
        "sequence_accuracy": 100 * whole / len(scores),
    }


def _length(rows: Sequence[Sequence[int]]) -> int:
    return round_up(max(map(len, rows)), _LENGTH_MULTIPLE)
