"""T5X's names and shapes of our parameters.

One table serves every layout that T5X and flaxformer write; a `Layout` says how they
differ. Kernels of one attention layer with 4 heads of width 8, embed 32, 2 layers:

    examples/t5, flaxformer     encoder/layers_0/attention/query/kernel   [32, 32]
    scalable_t5, not scanned    encoder/layers_0/attention/query/kernel   [32, 4, 8]
    scalable_t5, scanned        encoder/encoder/attention/query/kernel    [32, 2, 4, 8]
    ours                        encoder.layers.attention.query            [2, 32, 32]
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

from ul2.interop.tensors import Tensor, layer, merged, split, stacked, transposed
from ul2.models.config import ModelConfig

_PROJECTIONS: Final = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a T5X model arranges its parameters.

    Attributes:
        name: for reports.
        scan_axis: dim that counts layers, of arrays that hold all of them; None where
            each layer has its own.
        split_heads: heads and their width are two dims.
    """

    name: str
    scan_axis: int | None = None
    split_heads: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where T5X keeps a parameter of ours.

    Attributes:
        path: our dotted path.
        names: T5X's name; one per layer where layers are apart.
        layout: of the model.
        heads_axis: the dim, of one layer's array of ours, that joins heads and width;
            None for all but attention kernels.
        head_dim: width of a head.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout
    heads_axis: int | None = None
    head_dim: int = 1

    @property
    def is_stack(self) -> bool:
        """Whether ours has a leading dim for layers."""
        return ".layers." in self.path

    @property
    def embed_axis(self) -> int:
        """The dim, of one layer's matrix of ours, that is as wide as the model."""
        return 1 if self.path.endswith((".out", ".wo")) else 0

    def to_ours(self, theirs: Mapping[str, Tensor]) -> Tensor:
        """Returns our parameter, made of theirs."""
        if not self.is_stack:
            return theirs[self.names[0]]
        if self.layout.scan_axis is None:
            return stacked([self._join(theirs[name], 0) for name in self.names])
        whole = theirs[self.names[0]]
        return self._join(moved(whole, self.layout.scan_axis, 0), 1)

    def to_theirs(self, ours: Tensor) -> dict[str, Tensor]:
        """Returns their parameters, made of ours."""
        if not self.is_stack:
            return {self.names[0]: ours}
        if self.layout.scan_axis is None:
            return {
                name: self._part(layer(ours, index), 0)
                for index, name in enumerate(self.names)
            }
        whole = self._part(ours, 1)
        return {self.names[0]: moved(whole, 0, self.layout.scan_axis)}

    def _join(self, tensor: Tensor, leading: int) -> Tensor:
        if self.heads_axis is None or not self.layout.split_heads:
            return tensor
        return merged(tensor, leading + self.heads_axis)

    def _part(self, tensor: Tensor, leading: int) -> Tensor:
        if self.heads_axis is None or not self.layout.split_heads:
            return tensor
        return split(tensor, leading + self.heads_axis, self.head_dim)


def place(path: str, config: ModelConfig, layout: Layout) -> Place:
    """Returns where T5X keeps the parameter `path` of a model."""
    stack, *rest = path.split(".")
    top = "" if config.num_encoder_layers else "decoder/"
    if stack == "embedder":
        name = f"{top}token_embedder/embedding"
        if rest[0] == "logits_kernel":
            name = "decoder/logits_dense/kernel"
        return Place(path, (name,), layout)
    if rest[0] == "final_norm":
        return Place(path, (f"{stack}/{stack}_norm/scale",), layout)
    if rest[0] == "relative_bias":
        return Place(path, (f"{stack}/relpos_bias/rel_embedding",), layout)
    module, leaf = rest[1:]
    name = f"{_module(stack, module)}/{leaf}"
    if leaf == "wi_0" and not config.gated:
        name = name.removesuffix("_0")
    if leaf not in ("scale", "rel_embedding"):
        name += "/kernel"
    num_layers = getattr(config, f"num_{stack}_layers")
    names = tuple(f"{stack}/layers_{index}/{name}" for index in range(num_layers))
    if layout.scan_axis is not None:
        names = (f"{stack}/{stack}/{name}",)
    heads_axis = None
    if leaf in _PROJECTIONS:
        heads_axis = 0 if leaf == "out" else 1
    return Place(path, names, layout, heads_axis, config.head_dim)


def _module(stack: str, module: str) -> str:
    """Returns T5X's name of a part of a layer."""
    own = "" if stack == "encoder" else "self_"
    return {
        "attention": f"{own}attention",
        "cross_attention": "encoder_decoder_attention",
        "mlp": "mlp",
        "relative_bias": "relpos_bias",
        "pre_attention_norm": f"pre_{own}attention_layer_norm",
        "pre_cross_attention_norm": "pre_cross_attention_layer_norm",
        "pre_mlp_norm": "pre_mlp_layer_norm",
    }[module]


def moved(tensor: Tensor, source: int, destination: int) -> Tensor:
    """Returns the tensor with one dim moved."""
    order = [axis for axis in range(len(tensor.shape)) if axis != source]
    order.insert(destination, source)
    return transposed(tensor, order)
