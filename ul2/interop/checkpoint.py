"""What is in a checkpoint, whoever wrote it, in our names and our layout.

Readers (`t5x`, `huggingface`, `own`) make a `Checkpoint`; writers take one. Nothing is
loaded until somebody reads a `Tensor` of it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ul2.interop.tensors import Tensor
from ul2.models.config import ModelConfig
from ul2.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Adafactor's state: of each parameter either `v`, or `v_row` and `v_col`.

    Keys are our dotted parameter paths. A stacked parameter's moments have the layers
    in front. As in `training.optimizers`, `v_row` keeps the second largest dim of a
    matrix and `v_col` the largest; of equal ones `v_row` keeps the first.

    Attributes:
        step: updates done.
        v_row: row means.
        v_col: column means.
        v: second moments that are not factored.
    """

    step: int
    v_row: Mapping[str, Tensor]
    v_col: Mapping[str, Tensor]
    v: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model that lies on disk.

    Attributes:
        path: what was opened.
        format: `ul2`, `t5x` or `huggingface`.
        layout: which of the format's layouts, e.g. `scalable_t5`.
        architecture: `encoder_decoder` or `decoder_only`.
        config: of the model.
        preset: the published model whose sizes these are; None for no known one.
        vocab: the vocab contract; without sentinels and modes where no tokenizer is
            known.
        tokenizer: the SentencePiece model file; None where there is none.
        step: updates done; 0 where the format does not say.
        params: dotted parameter path, as in `training.state`, to its values.
        moments: the state of Adafactor, if it is there.
        assumed: what the files do not say and was taken for granted, a line each.
    """

    path: Path
    format: str
    layout: str
    architecture: str
    config: ModelConfig
    preset: str | None
    vocab: Vocab
    tokenizer: bytes | None
    step: int
    params: Mapping[str, Tensor]
    moments: Moments | None = None
    assumed: tuple[str, ...] = ()
