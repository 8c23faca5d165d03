"""`TokenizerVocabulary`: our `Tokenizer` as a seqio vocabulary, with the same ids.

`seqio.SentencePieceVocabulary` encodes the characters `<extra_id_0>` to the sentinel
where a model has it as a user-defined symbol, puts every added sentinel in reverse
order, which is T5's for one hundred of them only, and disagrees with itself:
TensorFlow Text has a SentencePiece of its own that settles ties between equally likely
pieces another way (`666` as `6 66` or `66 6`: 45 of 1,257 documents of Python's own
documentation). So inside TensorFlow, too, the ids come from the `Tokenizer`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from jaxtyping import Int32, Int64

from ul2.tasks.tokenizer import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
    """The vocabulary of a task's features.

    All ids, sentinels included, count as the vocabulary's own: `extra_ids` is 0.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps `tokenizer`."""
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenizerVocabulary)
            and self.tokenizer.vocab == other.tokenizer.vocab
        )

    def __hash__(self) -> int:
        return hash((self.tokenizer.sha256, self.tokenizer.vocab.size))

    @property
    def bos_id(self) -> int | None:
        """None: no text starts with a token of its own."""
        return None

    @property
    def eos_id(self) -> int:
        """Id of EOS."""
        return self.tokenizer.vocab.eos_id

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self.tokenizer.vocab.pad_id

    @property
    def unk_id(self) -> int:
        """Id of what the vocabulary cannot write."""
        return self.tokenizer.vocab.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        """Encodes one string, or each of a vector of strings to a ragged tensor."""
        dtypes = (tf.int32, tf.int64)
        ids, lengths = tf.numpy_function(self._encode_bytes, [s], dtypes)
        ids.set_shape([None])
        if not s.shape.rank:
            return ids
        lengths.set_shape([None])
        return tf.RaggedTensor.from_row_lengths(ids, lengths)

    def _encode_bytes(
        self, data: Any
    ) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " S"]]:
        """Returns the ids of all strings back to back, and how many each has."""
        texts = [one.decode(errors="replace") for one in np.atleast_1d(data)]
        rows = self.tokenizer.encode(texts)
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
        return ids, np.fromiter(map(len, rows), np.int64)

    def _decode_tf(self, ids: Any) -> Any:
        """Decodes one row of ids, or each row of a matrix."""
        text = tf.numpy_function(self._decode_rows, [ids], tf.string)
        text.set_shape(ids.shape[:-1])
        return text

    def _decode_rows(self, ids: Int32[np.ndarray, "... L"]) -> Any:
        """Returns the UTF-8 text of every row."""
        rows = ids.reshape(-1, ids.shape[-1])
        texts = [self.tokenizer.decode(row).encode() for row in rows]
        return np.array(texts, object).reshape(ids.shape[:-1])
