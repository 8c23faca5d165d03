"""`mixture_of_denoisers`: tokenized documents to UL2 examples, inside a seqio task.

Documents are joined with EOS between them and cut into blocks. A block is a whole
number of rounds of the mixture, so the shares are exact in every block; the order of
the denoisers within it is drawn anew for each. The denoising is `ul2.denoising`, run on
a block at a time: the same code as the token stream's.

This is the road for data too big or too live to store; the token store is the fast one.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import seqio
import tensorflow as tf
from jaxtyping import Int32, Int64, Integer

from ul2.denoising.denoisers import denoise
from ul2.denoising.mixture import Mixture
from ul2.denoising.moving import MovingMixture
from ul2.vocab import Vocab

_BLOCK_TOKENS: Final = 65_536
_SIDES: Final = ("inputs", "targets")

# [C, L] tokens and [C] lengths of the inputs, then of the targets.
_Rows = tuple[
    Int32[np.ndarray, "C L"],
    Int64[np.ndarray, " C"],
    Int32[np.ndarray, "C L"],
    Int64[np.ndarray, " C"],
]


def mixture_of_denoisers(
    dataset: Any,
    sequence_length: Mapping[str, int] | None,
    output_features: Mapping[str, Any],
    *,
    mixture: Mixture,
    vocab: Vocab,
    block_tokens: int = _BLOCK_TOKENS,
) -> Any:
    """Turns a dataset of documents into one of `inputs` and `targets`.

    Every token of every document is in exactly one example; the last block is short.
    Modes, sentinels and EOS are in place and everything fits `sequence_length`.

    Args:
        dataset: documents, their ids in the field `targets`, without EOS.
        sequence_length: lengths of `inputs` and `targets`.
        output_features: the task's features; seqio passes them.
        mixture: the denoisers.
        vocab: the vocab contract of the tokenizer.
        block_tokens: about how many tokens a block has.

    Raises:
        ValueError: a length is missing, or the mixture does not fit the lengths or
            the sentinels of the vocabulary.
    """
    missing = [s for s in _SIDES if s not in (sequence_length or {})]
    if missing or sequence_length is None:
        raise ValueError(
            f"mixture_of_denoisers needs the lengths of inputs and targets; got "
            f"{dict(sequence_length or {})}; set INPUTS_LENGTH and TARGETS_LENGTH."
        )
    wrong = [s for s in _SIDES if output_features[s].vocabulary.eos_id != vocab.eos_id]
    assert not wrong, f"features {wrong} have the vocabulary of another tokenizer"
    if isinstance(mixture, MovingMixture):
        raise ValueError(
            "a mixture that moves needs a token store: seqio does not say which step "
            "an example is for."
        )
    plan = _Plan(mixture, vocab, sequence_length, block_tokens)

    def denoise_block(block: Any, seed: Any) -> dict[str, Any]:
        dtypes = (tf.int32, tf.int64, tf.int32, tf.int64)
        rows = tf.numpy_function(plan.denoise, [block, tf.stack(seed)], dtypes)
        for row, rank in zip(rows, (2, 1, 2, 1), strict=True):
            row.set_shape([None] * rank)
        return dict(
            zip(("inputs", "inputs#", "targets", "targets#"), rows, strict=True)
        )

    def cut(example: dict[str, Any]) -> dict[str, Any]:
        return {side: example[side][: example[f"{side}#"]] for side in _SIDES}

    blocks = _cut_blocks(dataset, plan.block_tokens, vocab.eos_id)
    examples = seqio.map_over_dataset(denoise_block, num_seeds=1)(blocks).unbatch()
    return examples.map(cut, tf.data.AUTOTUNE)


def _cut_blocks(dataset: Any, block_tokens: int, eos_id: int) -> Any:
    """Joins documents, an EOS behind each, and cuts blocks of `block_tokens`.

    documents [11 12] [21] [31 32]      blocks of 4  [11 12 1 21] [1 31 32 1]
    """

    def close(document: dict[str, Any]) -> tuple[Any, Any]:
        tokens = tf.cast(document["targets"], tf.int32)
        # An empty document is no text, so it closes nothing.
        end = tf.fill([tf.cast(tf.size(tokens) > 0, tf.int32)], eos_id)
        return tf.concat([tokens, end], 0), False

    def extend(rest: Any, element: tuple[Any, Any]) -> tuple[Any, Any]:
        tokens, is_last = element
        tokens = tf.concat([rest, tokens], 0)
        full = tf.size(tokens) // block_tokens * block_tokens
        count = tf.where(is_last, tf.size(tokens), full)
        blocks = tf.RaggedTensor.from_row_starts(
            tokens[:count], tf.range(0, count, block_tokens)
        )
        return tokens[count:], blocks

    no_tokens = tf.zeros([0], tf.int32)
    last = tf.data.Dataset.from_tensors((no_tokens, True))
    joined = dataset.map(close, tf.data.AUTOTUNE).concatenate(last)
    # The EOS of the last document alone is no block.
    return joined.scan(no_tokens, extend).unbatch().filter(lambda b: tf.size(b) > 1)


class _Plan:
    """How many tokens each denoiser takes, and what a block is made of."""

    def __init__(
        self,
        mixture: Mixture,
        vocab: Vocab,
        sequence_length: Mapping[str, int],
        block_tokens: int,
    ) -> None:
        self._mixture = mixture
        self._vocab = vocab
        self._lengths = {side: sequence_length[side] for side in _SIDES}
        fits = mixture.fit(self._lengths["inputs"], self._lengths["targets"], vocab)
        self._text_lengths = np.array([fit.text for fit in fits])
        one_round = np.repeat(np.arange(len(fits)), mixture.counts)
        round_tokens = int(self._text_lengths[one_round].sum())
        rounds = max(1, round(block_tokens / round_tokens))
        self._denoiser_ids = np.tile(one_round, rounds)
        self.block_tokens = rounds * round_tokens

    def denoise(
        self, block: Integer[np.ndarray, " T"], seed: Int64[np.ndarray, " two"]
    ) -> _Rows:
        """Returns the examples of one block, in random order of the denoisers."""
        # Philox counts: one seed gives the same numbers on every machine.
        entropy = [int(word) & 0xFFFFFFFF_FFFFFFFF for word in seed]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        ids = rng.permutation(self._denoiser_ids)
        ids, lengths = self._fill(ids, len(block))
        starts = np.cumsum(lengths) - lengths
        rows = tuple(
            np.full((len(ids), self._lengths[side]), self._vocab.pad_id, np.int32)
            for side in _SIDES
        )
        row_lengths = np.zeros((2, len(ids)), np.int64)
        # All full texts of a denoiser at once; a short one at the end by itself.
        for denoiser, length in sorted(set(zip(ids, lengths, strict=True))):
            (chosen,) = np.nonzero((ids == denoiser) & (lengths == length))
            examples = denoise(
                self._mixture.denoisers[denoiser],
                block[starts[chosen, None] + np.arange(length)],
                vocab=self._vocab,
                rng=rng,
                max_spans=self._mixture.max_spans(self._vocab),
            )
            rows[0][chosen, : examples.inputs.shape[1]] = examples.inputs
            rows[1][chosen, : examples.targets.shape[1]] = examples.targets
            row_lengths[:, chosen] = examples.input_lengths, examples.target_lengths
        return rows[0], row_lengths[0], rows[1], row_lengths[1]

    def _fill(
        self, ids: Integer[np.ndarray, " C"], num_tokens: int
    ) -> tuple[Integer[np.ndarray, " C"], Integer[np.ndarray, " C"]]:
        """Returns the denoisers that a block needs, and the length of each text.

        All of them for a full block; for the last, short one as many as it takes, the
        last of which gets what remains, two tokens at least.
        """
        lengths = self._text_lengths[ids]
        count = int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1
        ids, lengths = ids[:count], lengths[:count].copy()
        lengths[-1] = num_tokens - lengths[:-1].sum()
        if lengths[-1] == 1:
            lengths[-2:] += (-1, 1)
        return ids, lengths
