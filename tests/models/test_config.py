import re

import pytest
from flax import nnx
from model_fixtures import tiny_config

from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish"}, "activation='swish' is not one of ['silu'"),
        ({"positions": "absolute"}, "positions='absolute' is not one of"),
        ({"relative_bias": "none"}, "relative_bias='none' is not one of"),
        ({"dtype": "float16"}, "dtype='float16' is not one of"),
        ({"remat": "minimal"}, "remat='minimal' is not one of"),
        ({"embed_dim": 0}, "embed_dim=0 must be at least 1"),
        ({"num_encoder_layers": -1}, "num_encoder_layers=-1 must be at least 0"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 does not divide num_heads=4"),
        ({"dropout_rate": 1.0}, "set DROPOUT_RATE"),
        ({"positions": "rope", "head_dim": 7}, "head_dim=7 must be even"),
        ({"relative_buckets": 30}, "relative_buckets=30 must be a multiple of 4"),
        ({"relative_max_distance": 16}, "must exceed relative_buckets / 2 = 16"),
    ],
)
def test_bad_config_is_one_line(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_encoder_layers_must_fit_the_architecture():
    with pytest.raises(ValueError, match="use DecoderOnly"):
        EncoderDecoder(tiny_config(num_encoder_layers=0), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use EncoderDecoder"):
        DecoderOnly(tiny_config(), rngs=nnx.Rngs(0))
