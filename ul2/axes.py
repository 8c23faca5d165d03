"""Logical axis names: what a dim of a parameter or activation means.

Models name their dims with these; `ul2.sharding.rules` maps the names to axes of
the device mesh. Nothing else connects the two.
"""

from typing import Final

# Parameters.
LAYERS: Final = "layers"  # the stacked copies of one block
EMBED: Final = "embed"  # width of the residual stream
HEADS: Final = "heads"  # query heads x width per head, joined
KV_HEADS: Final = "kv_heads"  # key/value heads x width per head, joined
MLP: Final = "mlp"  # hidden width of the feed-forward block
VOCAB: Final = "vocab"  # rows of the embedding table
BIAS_HEADS: Final = "bias_heads"  # heads of the relative position bias
BUCKETS: Final = "buckets"  # buckets of the relative position bias

# Activations.
BATCH: Final = "batch"  # packed rows
LENGTH: Final = "length"  # columns of a row, inside a sublayer
RESIDUAL_LENGTH: Final = "residual_length"  # columns of a row, between sublayers
HEAD: Final = "head"  # heads, each whole

ALL: Final = (
    LAYERS,
    EMBED,
    HEADS,
    KV_HEADS,
    MLP,
    VOCAB,
    BIAS_HEADS,
    BUCKETS,
    BATCH,
    LENGTH,
    RESIDUAL_LENGTH,
    HEAD,
)
