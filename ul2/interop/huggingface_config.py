"""`config.json` of T5, mT5 and UMT5, read and written.

Versions of transformers disagree about two things. What version 4 called
`tie_word_embeddings` meant both that the head is the embedding table and that hidden
states are scaled by d_model**-0.5 before it. Version 5 always says that it ties, finds
out by the weights whether it does, and keeps the other half in `scale_decoder_outputs`,
or for mT5 and UMT5 nowhere: it never scales the one and always the other.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ul2.interop.safetensors import read_json
from ul2.interop.tensors import dtype_of
from ul2.models.config import ModelConfig
from ul2.vocab import Vocab

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
_MODEL_TYPES: Final = ("t5", "mt5", "umt5")
_ACTIVATIONS: Final[dict[str, Literal["silu", "gelu", "relu"]]] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
}
_DTYPES: Final = ("float32", "bfloat16", "float16")
# The key for what only we read; transformers keeps it.
_OURS: Final = "ul2"
_MAX_SIZE: Final = 2**31


def is_here(path: Path) -> bool:
    """Returns whether a directory is a model of transformers."""
    return (path / CONFIG).is_file()


def read_fields(path: Path) -> dict[str, Any]:
    """Returns what `config.json` says.

    Raises:
        ValueError: it is missing, or of a model that is not T5.
    """
    fields = read_json(path / CONFIG)
    model_type = fields.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ValueError(
            f"{path / CONFIG} is of model type {model_type!r}; only "
            f"{', '.join(_MODEL_TYPES)} can be read."
        )
    return fields


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes one of the JSON files of a model directory."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def model_config(path: Path, fields: Mapping[str, Any], *, tied: bool) -> ModelConfig:
    """Returns our config of a model.

    Args:
        path: the directory, for errors.
        fields: of `config.json`.
        tied: whether the embedding table also makes the logits.

    Raises:
        ValueError: a field is missing or cannot be.
    """
    file = path / CONFIG
    activation, gated = _feed_forward(file, fields)

    def count(key: str, default: int | None = None) -> int:
        value = fields.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _MAX_SIZE:
            raise ValueError(f"{file}: {key} is {value!r}, which is no size.")
        return value

    def number(key: str, default: float) -> float:
        value = fields.get(key, default)
        # Also of a whole number that no float holds.
        if type(value) not in (int, float) or not abs(value) < _MAX_SIZE:
            raise ValueError(f"{file}: {key} is {value!r}, which is no number.")
        return float(value)

    try:
        return ModelConfig(
            vocab_size=count("vocab_size"),
            embed_dim=count("d_model"),
            num_heads=count("num_heads"),
            head_dim=count("d_kv"),
            mlp_dim=count("d_ff"),
            num_encoder_layers=count("num_layers"),
            num_decoder_layers=count("num_decoder_layers", count("num_layers")),
            activation=activation,
            gated=gated,
            positions="relative",
            relative_bias=("per_layer" if fields["model_type"] == "umt5" else "shared"),
            relative_buckets=count("relative_attention_num_buckets", 32),
            relative_max_distance=count("relative_attention_max_distance", 128),
            tied_embeddings=tied,
            dropout_rate=number("dropout_rate", 0.1),
            dtype=(
                "bfloat16"
                if fields.get("dtype", fields.get("torch_dtype")) == "bfloat16"
                else "float32"
            ),
            remat="none",
            norm_epsilon=number("layer_norm_epsilon", 1e-6),
        )
    except ValueError as error:
        message = str(error)
        prefix = "" if message.startswith(str(file)) else f"{file}: "
        raise ValueError(f"{prefix}{message}") from None


@dataclasses.dataclass(frozen=True)
class Ours:
    """What a `config.json` of ours says beyond what transformers knows.

    Attributes:
        decoder_final_norm_scale: False where the norm above the decoder had none, and
            its ones are there for transformers.
        head_dtype: what the head was before it was multiplied; None for the same.
    """

    decoder_final_norm_scale: bool = True
    head_dtype: np.dtype[Any] | None = None


def read_ours(fields: Mapping[str, Any]) -> Ours:
    """Returns what a `config.json` says that we wrote; the defaults for any other."""
    ours = fields.get(_OURS)
    if not isinstance(ours, dict):
        return Ours()
    head_dtype = ours.get("head_dtype")
    return Ours(
        decoder_final_norm_scale=ours.get("decoder_final_norm_scale") is not False,
        head_dtype=dtype_of(head_dtype) if head_dtype in _DTYPES else None,
    )


def scales_logits(fields: Mapping[str, Any]) -> bool:
    """Returns whether the model scales hidden states before its head."""
    if fields["model_type"] == "mt5":
        version = str(fields.get("transformers_version", "4"))
        return version.startswith(("2.", "3.", "4")) and (
            fields.get("tie_word_embeddings", False) is True
        )
    scales = fields.get("scale_decoder_outputs")
    if isinstance(scales, bool):
        return scales
    return fields.get("tie_word_embeddings") is not False


def special_ids(path: Path, fields: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the pad id, the end id, and the id that a decoder reads first.

    Raises:
        ValueError: one of them is no id of the embedding table.
    """
    generation = {}
    if (path / GENERATION_CONFIG).is_file():
        generation = read_json(path / GENERATION_CONFIG)

    def token(key: str, default: int) -> int:
        value = fields.get(key)
        value = generation.get(key) if value is None else value
        value = default if value is None else value
        if isinstance(value, list) and value:
            value = value[0]
        if type(value) is not int or not 0 <= value < fields["vocab_size"]:
            raise ValueError(
                f"{path / CONFIG}: {key} {value!r} is not one of "
                f"{fields['vocab_size']} ids."
            )
        return value

    pad_id = token("pad_token_id", 0)
    start_id = token("decoder_start_token_id", pad_id)
    return pad_id, token("eos_token_id", 1), start_id


def export_fields(
    config: ModelConfig, vocab: Vocab, *, dtype: str, head_dtype: str
) -> dict[str, Any]:
    """Returns a `config.json` that versions 4 and 5 of transformers both understand.

    An untied UMT5 is the exception: version 5 scales its hidden states, so its head is
    written multiplied by d_model**0.5 (see `scales_logits`), and version 4 makes
    logits that are larger by this factor.
    """
    is_umt5 = config.relative_bias == "per_layer"
    ours: dict[str, Any] = {}
    if not config.decoder_final_norm_scale:
        ours["decoder_final_norm_scale"] = False
    if is_umt5 and not config.tied_embeddings:
        ours["head_dtype"] = head_dtype
    name = "UMT5" if is_umt5 else "T5"
    act = "gelu_new" if config.activation == "gelu" else config.activation
    # Only `gated-gelu` is read as the tanh form.
    proj = f"gated-{config.activation}" if config.gated else act
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": name.lower(),
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": proj,
        "dense_act_fn": act,
        "is_gated_act": config.gated,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_factor": 1.0,
        "tie_word_embeddings": config.tied_embeddings,
        "scale_decoder_outputs": config.tied_embeddings or is_umt5,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **generation_fields(vocab),
        **({_OURS: ours} if ours else {}),
    }


def generation_fields(vocab: Vocab) -> dict[str, Any]:
    """Returns the ids that transformers decodes with."""
    return {
        "pad_token_id": vocab.pad_id,
        "eos_token_id": vocab.eos_id,
        "decoder_start_token_id": vocab.start_id,
    }


def _feed_forward(
    file: Path, fields: Mapping[str, Any]
) -> tuple[Literal["silu", "gelu", "relu"], bool]:
    """Returns the activation, and whether a second projection multiplies it."""
    default = "relu" if fields["model_type"] == "t5" else "gated-gelu"
    proj = str(fields.get("feed_forward_proj", default))
    act = "gelu_new" if proj == "gated-gelu" else proj.removeprefix("gated-")
    act = fields.get("dense_act_fn", act)
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        hint = (
            " (the erf form; ours is its tanh form, gelu_new)" if act == "gelu" else ""
        )
        raise ValueError(
            f"{file}: the activation {act!r}{hint} is not one of "
            f"{', '.join(_ACTIVATIONS)}."
        )
    return _ACTIVATIONS[act], bool(
        fields.get("is_gated_act", proj.startswith("gated-"))
    )
