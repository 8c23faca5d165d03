"""`TokenizerVocabulary`: our `Tokenizer` as a seqio vocabulary, with the same ids.

`seqio.SentencePieceVocabulary` agrees with it on text, but encodes the characters
`<extra_id_0>` to the sentinel where a model has it as a user-defined symbol, and puts
every added sentinel in reverse order, which is T5's for one hundred of them only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from ul2.tasks.tokenizer import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):  # type: ignore[misc]
    """The vocabulary of a task's features.

    All ids, sentinels included, count as the vocabulary's own: `extra_ids` is 0.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps `tokenizer`."""
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer
        self._tf_tokenizers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # TensorFlow's tokenizers cannot be pickled; they are made anew when needed.
        return {**self.__dict__, "_tf_tokenizers": {}}

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
        """Encodes one string, or each of a vector of strings."""
        model = self._tf_tokenizer("encoding_model")
        byte_ids = self.tokenizer.byte_ids_of_space
        if not byte_ids:
            return model.tokenize(s)
        if s.shape.rank:
            ragged = tf.RaggedTensorSpec([None], tf.int32)
            return tf.map_fn(self._encode_tf, s, fn_output_signature=ragged)
        # As `Tokenizer.encode` does: the parts between, joined by the bytes.
        parts = model.tokenize(tf.strings.split(s, sep="▁"))
        joints = tf.tile(tf.constant([byte_ids], tf.int32), [parts.nrows(), 1])
        return tf.concat([parts, joints], axis=1).flat_values[: -len(byte_ids)]

    def _decode_tf(self, ids: Any) -> Any:
        return self._tf_tokenizer("decoding_model").detokenize(ids)

    def _tf_tokenizer(self, model: str) -> Any:
        """Returns TensorFlow's tokenizer of one of the two models."""
        # Its resource belongs to no graph, so that any may use it.
        with tf.init_scope():
            if model not in self._tf_tokenizers:
                self._tf_tokenizers[model] = tf_text.SentencepieceTokenizer(
                    model=getattr(self.tokenizer, model)
                )
        return self._tf_tokenizers[model]
