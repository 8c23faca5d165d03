"""Published models, told by their sizes.

Sizes alone do not tell every two models apart (Flan-T5 is T5 1.1, Flan-UL2 is UL2), so
a preset names all that share them. Sources: the gin files of T5X (`t5x/examples/t5`),
the config.json files of the models on Hugging Face, and for UL2 20B its public gin.
"""

import dataclasses
from typing import Any, Final

from ul2.models.config import ModelConfig
from ul2.spelling import did_you_mean

_T5_ROWS, _MT5_ROWS, _UMT5_ROWS = 32128, 250112, 256384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of a published encoder-decoder.

    Attributes:
        vocab_size: rows of the embedding table.
        embed_dim: see `ModelConfig`, as for all that follow.
        num_heads: of every attention.
        head_dim: of every head.
        mlp_dim: of the feed-forward block.
        num_layers: of the encoder, and of the decoder.
        activation: of the feed-forward block.
        gated: whether it has a second projection.
        relative_bias: one table for a stack, or one for each layer.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int
    activation: str
    gated: bool = True
    relative_bias: str = "shared"

    def fields(self) -> dict[str, Any]:
        """Returns what it says of a `ModelConfig`, by field."""
        fields = dataclasses.asdict(self)
        layers = fields.pop("num_layers")
        return {**fields, "num_encoder_layers": layers, "num_decoder_layers": layers}

    def differences(self, config: ModelConfig) -> list[str]:
        """Returns in what a model differs, a phrase each; none where it fits."""
        return [
            f"{name} {getattr(config, name)} (the preset has {value})"
            for name, value in self.fields().items()
            if getattr(config, name) != value
        ]


def _family(
    prefix: str,
    sizes: dict[str, tuple[int, int, int, int, int]],
    vocab_size: int,
    activation: str,
    *,
    gated: bool = True,
    relative_bias: str = "shared",
) -> dict[str, Preset]:
    """Returns a preset per size: embed, heads, head width, feed-forward, layers."""
    return {
        f"{prefix}_{name}": Preset(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
            head_dim=head_dim,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            activation=activation,
            gated=gated,
            relative_bias=relative_bias,
        )
        for name, (embed_dim, num_heads, head_dim, mlp_dim, num_layers) in sizes.items()
    }


_T5_1_0: Final = {
    "small": (512, 8, 64, 2048, 6),
    "base": (768, 12, 64, 3072, 12),
    "large": (1024, 16, 64, 4096, 24),
    "3b": (1024, 32, 128, 16384, 24),
    "11b": (1024, 128, 128, 65536, 24),
}
_T5_1_1: Final = {
    "small": (512, 6, 64, 1024, 8),
    "base": (768, 12, 64, 2048, 12),
    "large": (1024, 16, 64, 2816, 24),
    "xl": (2048, 32, 64, 5120, 24),
    "xxl": (4096, 64, 64, 10240, 24),
}
_UL2: Final = {"20b": (4096, 16, 256, 16384, 32)}

PRESETS: Final[dict[str, Preset]] = {
    **_family("ul2", _UL2, _T5_ROWS, "silu"),
    **_family("flan_ul2", _UL2, _T5_ROWS, "silu"),
    **_family("t5", _T5_1_0, _T5_ROWS, "relu", gated=False),
    **_family("t5_1_1", _T5_1_1, _T5_ROWS, "gelu"),
    **_family("flan_t5", _T5_1_1, _T5_ROWS, "gelu"),
    **_family("mt5", _T5_1_1, _MT5_ROWS, "gelu"),
    **_family("umt5", _T5_1_1, _UMT5_ROWS, "gelu", relative_bias="per_layer"),
}


def get(name: str) -> Preset:
    """Returns a preset.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ValueError(f"no preset {name!r}{hint}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


def name_of(architecture: str, config: ModelConfig, hint: str = "") -> str | None:
    """Returns the preset whose sizes a model has, or None.

    Args:
        architecture: of the model; all presets are encoder-decoders.
        config: of the model.
        hint: a text that may hold the name, as a path does: of several presets with
            the same sizes, Flan is chosen where it says so.
    """
    if architecture != "encoder_decoder":
        return None
    fitting = [name for name, one in PRESETS.items() if not one.differences(config)]
    flan = [name for name in fitting if name.startswith("flan")]
    if flan and "flan" in hint.lower():
        return flan[0]
    return fitting[0] if fitting else None


def check(name: str, architecture: str, config: ModelConfig) -> None:
    """Refuses a model that is not of the preset's sizes.

    Raises:
        ValueError: names what differs, and the preset that fits.
    """
    differences = get(name).differences(config)
    if architecture != "encoder_decoder":
        differences = ["it has no encoder"]
    if differences:
        fitting = name_of(architecture, config)
        raise ValueError(
            f"the checkpoint is no {name}: {', '.join(differences)}; "
            + (f"{fitting} fits." if fitting else "no preset fits; leave --preset out.")
        )
