import dataclasses
import json

import pytest
from model_fixtures import tiny_config

from ul2.models import architectures
from ul2.models.config import ModelConfig


@pytest.mark.parametrize("architecture", list(architectures.ARCHITECTURES))
def test_model_is_the_same_after_json(architecture):
    layers = 0 if architecture == "decoder_only" else 2
    config = dataclasses.replace(
        tiny_config(), num_encoder_layers=layers, num_kv_heads=2, dtype="bfloat16"
    )
    text = json.dumps(architectures.to_json(architecture, config))
    assert architectures.from_json(json.loads(text)) == (architecture, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": "16"}, "embed_dim='16' is of another type"),
        ({"embed_dim": True}, "embed_dim=True is of another type"),
        ({"embed_dim": -1}, "embed_dim=-1 must be at least 1"),
        ({"activation": "swish"}, "activation='swish' is not one of"),
        ({"size": 3}, r"missing \[\], unknown \['size'\]"),
    ],
)
def test_impossible_config_is_refused(changes, message):
    fields = {**tiny_config().to_json(), **changes}
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(fields)


def test_config_may_lack_what_has_a_default():
    fields = tiny_config().to_json()
    del fields["relative_bias"]
    assert ModelConfig.from_json(fields).relative_bias == "shared"
    del fields["embed_dim"]
    with pytest.raises(ValueError, match=r"missing \['embed_dim'\]"):
        ModelConfig.from_json(fields)


@pytest.mark.parametrize("fields", [None, [], {}, {"architecture": "x", "config": {}}])
def test_what_is_no_model_is_refused(fields):
    with pytest.raises(ValueError, match=r"not described by|'x' is not one of"):
        architectures.from_json(fields)
