"""The names that T5 and UMT5 of Hugging Face's transformers give our parameters.

A `Linear` there keeps its kernel transposed, and every layer has arrays of its own:

    ours                          theirs, for layer i of 2
    encoder.layers.attention.out  encoder.block.i.layer.0.SelfAttention.o.weight
    [2, heads * width, embed]     [embed, heads * width]
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from ul2.interop.tensors import Tensor, layer, stacked, transposed
from ul2.models.config import ModelConfig

EMBEDDING: Final = "shared.weight"
HEAD: Final = "lm_head.weight"
# Under these names the embedding table may stand in a file once more.
COPIES: Final = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Never used: left over in files of T5 from when it was made (2020).
LEFTOVERS: Final = frozenset(
    {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}
)
_PROJECTIONS: Final = {"query": "q", "key": "k", "value": "v", "out": "o"}
_BIAS: Final = "SelfAttention.relative_attention_bias"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter of ours is in a file of theirs.

    Attributes:
        path: our dotted path.
        names: their name; one per layer where ours are stacked.
        is_stack: whether ours has a leading dim for layers.
        is_transposed: whether rows and columns are exchanged.
    """

    path: str
    names: tuple[str, ...]
    is_stack: bool
    is_transposed: bool

    def to_ours(self, theirs: Mapping[str, Tensor]) -> Tensor:
        """Returns our parameter, made of theirs."""
        parts = [self._turned(theirs[name]) for name in self.names]
        return stacked(parts) if self.is_stack else parts[0]

    def to_theirs(self, ours: Tensor) -> dict[str, Tensor]:
        """Returns their arrays, made of our parameter."""
        parts = (
            (layer(ours, index) if self.is_stack else ours)
            for index in range(len(self.names))
        )
        return dict(zip(self.names, map(self._turned, parts), strict=True))

    def their_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of their arrays where ours has `shape`."""
        one = shape[1:] if self.is_stack else shape
        return dict.fromkeys(self.names, one[::-1] if self.is_transposed else one)

    def _turned(self, tensor: Tensor) -> Tensor:
        return transposed(tensor) if self.is_transposed else tensor


def places(paths: Iterable[str], config: ModelConfig) -> list[Place]:
    """Returns where the parameters of an encoder-decoder are."""
    return [_place(path, config) for path in paths]


def _place(path: str, config: ModelConfig) -> Place:
    stack, *rest = path.split(".")
    is_stack = rest[0] == "layers"
    is_transposed = rest[-1] not in ("embedding", "scale")
    if stack == "embedder":
        name = EMBEDDING if rest[0] == "embedding" else HEAD
        return Place(path, (name,), False, is_transposed)
    if not is_stack:
        name = (
            "final_layer_norm"
            if rest[0] == "final_norm"
            else f"block.0.layer.0.{_BIAS}"
        )
        return Place(path, (f"{stack}.{name}.weight",), False, is_transposed)
    sizes = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    part = _part(stack, rest[1], rest[2], config.gated)
    names = tuple(
        f"{stack}.block.{index}.layer.{part}.weight" for index in range(sizes[stack])
    )
    return Place(path, names, True, is_transposed)


def _part(stack: str, module: str, leaf: str, gated: bool) -> str:
    """Returns the name of an array within its layer."""
    last = 1 if stack == "encoder" else 2
    return {
        "attention": f"0.SelfAttention.{_PROJECTIONS.get(leaf)}",
        "cross_attention": f"1.EncDecAttention.{_PROJECTIONS.get(leaf)}",
        "relative_bias": f"0.{_BIAS}",
        "mlp": f"{last}.DenseReluDense.{leaf if gated or leaf == 'wo' else 'wi'}",
        "pre_attention_norm": "0.layer_norm",
        "pre_cross_attention_norm": "1.layer_norm",
        "pre_mlp_norm": f"{last}.layer_norm",
    }[module]
