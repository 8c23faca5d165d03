"""`ModelConfig`: every number a model is built from, checked once."""

import dataclasses
import typing
from typing import Any, Final, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from ul2.spelling import did_you_mean

_DTYPES: Final[dict[str, DTypeLike]] = {
    "bfloat16": jnp.bfloat16,
    "float32": jnp.float32,
}
_CHOICES: Final = {
    "activation": ("silu", "gelu", "relu"),
    "positions": ("relative", "rope"),
    "relative_bias": ("shared", "per_layer"),
    "dtype": tuple(_DTYPES),
    "remat": ("none", "dots", "full", "offload"),
}
_SIZES: Final = (
    "vocab_size",
    "embed_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_decoder_layers",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What distinguishes one model from another of its architecture.

    Attributes:
        vocab_size: rows of the embedding table: the padded size, not the number of
            ids the tokenizer can name.
        num_kv_heads: heads of keys and values; None for as many as queries have.
        num_encoder_layers: 0 for a decoder-only model.
        activation: of the feed-forward block; "gelu" is its tanh form.
        gated: whether a second projection multiplies the activation (SwiGLU, GEGLU).
        positions: "relative" adds T5's learned bias to the attention logits. "rope"
            rotates queries and keys, and divides their product by sqrt(head_dim);
            T5's form has no such factor, its query initialisation absorbs it.
        relative_bias: one table for a whole stack (T5, UL2) or one in each layer
            (T5X's scanned models, UMT5).
        relative_max_distance: from here on all distances share the last bucket.
        rope_theta: wavelength base of the rotation.
        tied_embeddings: the embedding table also makes the logits, from hidden
            states scaled by embed_dim**-0.5; otherwise they have a kernel of their own.
        decoder_final_norm_scale: False where the norm above the decoder has no
            parameter (UL2 20B).
        dtype: of the computation; parameters are drawn in float32.
        remat: what the backward pass finds stored. "none" recomputes nothing; "dots"
            keeps the results of projections (T5X and MaxText say "minimal"); "full"
            keeps the input of each layer alone; "offload" too, in the host's memory.
            The host's memory is pinned; where devices are CPUs, it is their own.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    activation: Literal["silu", "gelu", "relu"]
    gated: bool
    positions: Literal["relative", "rope"]
    relative_bias: Literal["shared", "per_layer"] = "shared"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rope_theta: float = 10_000.0
    tied_embeddings: bool
    decoder_final_norm_scale: bool = True
    dropout_rate: float
    dtype: Literal["bfloat16", "float32"]
    remat: Literal["none", "dots", "full", "offload"]
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name}={value!r} is not one of {list(allowed)}"
                    f"{did_you_mean(str(value), allowed)}; set {name.upper()}."
                )
        for name in _SIZES:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.num_encoder_layers < 0:
            raise ValueError(
                f"num_encoder_layers={self.num_encoder_layers} must be at least 0."
            )
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide "
                f"num_heads={self.num_heads}."
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                f"dropout_rate={self.dropout_rate} is not in [0, 1); set DROPOUT_RATE."
            )
        self._check_positions()

    def _check_positions(self) -> None:
        if self.positions == "rope":
            if self.head_dim % 2:
                raise ValueError(
                    f"head_dim={self.head_dim} must be even for positions='rope'."
                )
            return
        # Half of the buckets look forward; half of those hold one distance each.
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise ValueError(
                f"relative_buckets={self.relative_buckets} must be a multiple of 4."
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance={self.relative_max_distance} must exceed "
                f"relative_buckets / 2 = {self.relative_buckets // 2}."
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def compute_dtype(self) -> DTypeLike:
        """Dtype of activations."""
        return _DTYPES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """Returns every field as a plain JSON value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Reads what `to_json` wrote; fields with a default may be missing.

        Raises:
            ValueError: a field is missing or unknown, or of another type.
        """
        kinds = typing.get_type_hints(cls)
        if not isinstance(fields, dict):
            raise ValueError(f"model config: {fields!r} is no object.")
        needed = {
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING
        }
        missing, unknown = needed - set(fields), set(fields) - set(kinds)
        if missing or unknown:
            raise ValueError(
                f"model config: missing {sorted(missing)}, unknown {sorted(unknown)}."
            )
        for name, value in fields.items():
            if not _is_of(kinds[name], value):
                raise ValueError(f"model config: {name}={value!r} is of another type.")
        return cls(**fields)


def _is_of(kind: Any, value: Any) -> bool:
    """Returns whether a JSON value is of the type of a field."""
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str)
    kinds = typing.get_args(kind) or (kind,)
    return type(value) in kinds or (kind is float and type(value) is int)
