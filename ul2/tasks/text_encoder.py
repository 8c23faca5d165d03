"""Text to ids and nothing else: what a process that only encodes needs of a tokenizer.

It is pickled with its model, so another process needs no file and loads neither the
decoder nor the vocab contract:

    encoder = pickle.loads(pickle.dumps(tokenizer.encoder))
    encoder.encode_arrays(["a b", ""])       [array([51, 9], int32), array([], int32)]
"""

from typing import Any, Final

import numpy as np
import sentencepiece
from numpy.typing import NDArray

# SentencePiece writes a space as this character, so this character itself is only
# safe as three bytes.
SPACE: Final = "▁"


class TextEncoder:
    """Encodes text with a SentencePiece model whose special ids no text can spell."""

    def __init__(self, model: bytes, byte_ids_of_space: list[int]) -> None:
        """Loads a model.

        Args:
            model: the content of a model file, special ids made control symbols.
            byte_ids_of_space: ids of the bytes of `▁`; none where the model loses it.

        Raises:
            RuntimeError: SentencePiece cannot load it.
        """
        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._byte_ids_of_space = byte_ids_of_space

    def __reduce__(self) -> tuple[Any, ...]:
        return TextEncoder, (self._model, self._byte_ids_of_space)

    def encode_one(self, text: str) -> list[int]:
        """Returns the ids of a text, SentencePiece's sign for a space included."""
        if not self._byte_ids_of_space or SPACE not in text:
            ids: list[int] = self._processor.encode(text)
            return ids
        first, *rest = self._processor.encode(text.split(SPACE))
        for part in rest:
            first += self._byte_ids_of_space
            first += part
        ids = first
        return ids

    def encode_lists(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text."""
        if self._is_for_one_by_one(texts):
            return [self.encode_one(text) for text in texts]
        ids: list[list[int]] = self._processor.encode(texts, num_threads=1)
        return ids

    def encode_arrays(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Returns the ids of each text as an array: a fifth faster than as lists."""
        if self._is_for_one_by_one(texts):
            return [np.array(self.encode_one(text), np.int32) for text in texts]
        rows: list[NDArray[np.int32]] = self._processor.encode(
            texts, num_threads=1, return_type="numpy"
        )
        return rows

    def _is_for_one_by_one(self, texts: list[str]) -> bool:
        """Returns whether the processor alone would get some of these wrong."""
        return bool(self._byte_ids_of_space) and any(SPACE in text for text in texts)
