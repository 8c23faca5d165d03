"""Models of transformers: the originals' numbers, nothing lost, nothing false read."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
from checkpoint_toys import KINDS, build, make_checkpoint, save
from golden_batches import GOLDENS, assert_logits_match, read_batch

from ul2.interop import huggingface, safetensors
from ul2.interop.staging import Staging
from ul2.interop.tensors import dtype_of, from_array

GOLDEN_CONFIG = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_heads": 4,
    "num_layers": 2,
    "feed_forward_proj": "gated-silu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# What transformers 4 and 5 write of a tied and an untied model.
HEADS = {
    "tied_v4": {"tie_word_embeddings": True},
    "tied_v5": {"tie_word_embeddings": True, "scale_decoder_outputs": True},
    "tied_unsaid": {},
    "untied_v4": {"tie_word_embeddings": False},
    "untied_v5": {"tie_word_embeddings": True, "scale_decoder_outputs": False},
}


def write_model(directory, arrays, fields):
    directory.mkdir(exist_ok=True)
    tensors = {name: from_array(name, np.asarray(a)) for name, a in arrays.items()}
    safetensors.write(directory / "model.safetensors", tensors, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def theirs_from_t5x(golden):
    """Returns T5X's parameters under the names of transformers."""
    arrays = {}
    for key in golden.files:
        if not key.startswith("param/"):
            continue
        name, value = key.removeprefix("param/"), golden[key]
        if name == "token_embedder/embedding":
            table = np.zeros((512, 32), np.float32)
            table[golden["rows"] if "rows" in golden.files else slice(None)] = value
            arrays["shared.weight"] = table
        else:
            arrays[theirs_name(name)] = value.T
    arrays.setdefault("decoder.final_layer_norm.weight", np.ones(32, np.float32))
    return arrays


def theirs_name(name):
    name = name.removesuffix("/kernel").removesuffix("/scale")
    stack, _, rest = name.partition("/")
    if name == "decoder/logits_dense":
        return "lm_head.weight"
    if rest == f"{stack}_norm":
        return f"{stack}.final_layer_norm.weight"
    if rest == "relpos_bias/rel_embedding":
        bias = "layer.0.SelfAttention.relative_attention_bias"
        return f"{stack}.block.0.{bias}.weight"
    index, module, *leaf = re.fullmatch(r"layers_(\d)/(\w+)/?(\w*)", rest).groups()
    last = 1 if stack == "encoder" else 2
    part = {
        "attention": f"0.SelfAttention.{leaf[0][:1]}",
        "self_attention": f"0.SelfAttention.{leaf[0][:1]}",
        "encoder_decoder_attention": f"1.EncDecAttention.{leaf[0][:1]}",
        "mlp": f"{last}.DenseReluDense.{leaf[0]}",
        "pre_attention_layer_norm": "0.layer_norm",
        "pre_self_attention_layer_norm": "0.layer_norm",
        "pre_cross_attention_layer_norm": "1.layer_norm",
        "pre_mlp_layer_norm": f"{last}.layer_norm",
    }[module]
    return f"{stack}.block.{index}.layer.{part}.weight"


def assert_same_params(one, other):
    assert one.params.keys() == other.params.keys()
    for path, tensor in one.params.items():
        assert other.params[path].shape == tensor.shape, path
        assert other.params[path].dtype == tensor.dtype, path
        assert other.params[path].read().tobytes() == tensor.read().tobytes(), path


export = functools.partial(save, huggingface.write)


def export_arrays(kind, out, **changes):
    """Returns the arrays and the config of an export, to be changed and written."""
    export(make_checkpoint(kind, **changes), out)
    found = safetensors.read_index(out)
    fields = json.loads((out / "config.json").read_text())
    return {name: tensor.read() for name, tensor in found.items()}, fields


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("t5x_unscanned", "untied_v4"),
        ("t5x_unscanned", "untied_v5"),
        ("flaxformer_ul2", "tied_v4"),
        ("flaxformer_ul2", "tied_v5"),
        ("flaxformer_ul2", "tied_unsaid"),
    ],
)
@pytest.mark.parametrize("case", ["plain", "long"])
def test_logits_of_original_software_are_reached(tmp_path, name, head, case):
    golden = np.load(GOLDENS / f"{name}.npz")
    fields = {**GOLDEN_CONFIG, **HEADS[head]}
    path = write_model(tmp_path / "model", theirs_from_t5x(golden), fields)
    checkpoint = huggingface.read(path)
    assert checkpoint.config.tied_embeddings == head.startswith("tied")
    assert_logits_match(golden, case, build(checkpoint), read_batch(golden, case))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(tmp_path, kind, dtype):
    checkpoint = make_checkpoint(kind, dtype=dtype)
    found = huggingface.read(export(checkpoint, tmp_path / "hf"))
    assert_same_params(checkpoint, found)
    assert found.config == dataclasses.replace(checkpoint.config, dtype=dtype)
    assert found.vocab == checkpoint.vocab
    assert (found.format, found.preset, found.moments) == ("huggingface", None, None)


@pytest.mark.parametrize("kind", ["ul2", "umt5_untied"])
def test_export_in_bfloat16_rounds_to_nearest(tmp_path, kind):
    checkpoint = make_checkpoint(kind)
    found = huggingface.read(export(checkpoint, tmp_path / "hf", "bfloat16"))
    assert found.config.dtype == "bfloat16"
    for path, tensor in found.params.items():
        wanted = checkpoint.params[path].read().astype(dtype_of("bfloat16"))
        assert tensor.read().tobytes() == wanted.tobytes(), path


def test_shards_hold_the_same_and_are_not_written_twice(tmp_path):
    checkpoint = make_checkpoint("t5_1_1")
    staging = Staging(tmp_path / "hf", {})
    out = staging.directory
    huggingface.write(checkpoint, staging, None, max_shard_bytes=20_000)
    files = sorted(out.glob("model-*.safetensors"))
    assert files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 25_000 for file in files[:-1])
    assert not (out / "model.safetensors").exists()
    assert_same_params(checkpoint, huggingface.read(out))
    before = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    huggingface.write(checkpoint, staging, None, max_shard_bytes=20_000)
    after = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(before, after, strict=True)][:4] == [
        True,
        False,
        False,
        True,
    ]
    assert_same_params(checkpoint, huggingface.read(out))


def test_config_says_the_same_to_old_and_new_versions(tmp_path):
    _, fields = export_arrays("t5_1_1", tmp_path / "hf")
    assert fields == {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": 128,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 40,
        "num_heads": 3,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-06,
        "initializer_factor": 1.0,
        "tie_word_embeddings": False,
        "scale_decoder_outputs": False,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert generation == {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


@pytest.mark.parametrize("copy", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_copies_of_the_table_are_read_as_the_table(tmp_path, copy):
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    arrays[copy] = arrays["shared.weight"]
    found = huggingface.read(write_model(tmp_path / "copy", arrays, fields))
    assert found.config.tied_embeddings
    assert_same_params(make_checkpoint("ul2"), found)


def test_table_is_found_under_the_name_of_a_copy(tmp_path):
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    arrays["decoder.embed_tokens.weight"] = arrays.pop("shared.weight")
    found = huggingface.read(write_model(tmp_path / "copy", arrays, fields))
    assert_same_params(make_checkpoint("ul2"), found)


def test_copy_that_differs_is_refused_by_name(tmp_path):
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    other = arrays["shared.weight"].copy()
    other[-1, -1] += 1
    arrays["encoder.embed_tokens.weight"] = other
    path = write_model(tmp_path / "copy", arrays, fields)
    with pytest.raises(
        ValueError, match=r"encoder.embed_tokens.weight differs from sh"
    ):
        huggingface.read(path)


def test_unused_bias_of_old_files_is_passed_over(tmp_path):
    arrays, fields = export_arrays("t5_1_0", tmp_path / "hf")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    arrays[name] = np.ones((32, 3), np.float32)
    found = huggingface.read(write_model(tmp_path / "old", arrays, fields))
    assert_same_params(make_checkpoint("t5_1_0"), found)


@pytest.mark.parametrize("width", [32, 64])
def test_scale_before_an_untied_head_goes_into_its_kernel(tmp_path, width):
    arrays, fields = export_arrays("t5_1_1", tmp_path / "hf", embed_dim=width)
    fields |= {"scale_decoder_outputs": True}
    found = huggingface.read(write_model(tmp_path / "scaled", arrays, fields))
    kernel = found.params["embedder.logits_kernel"]
    assert kernel.dtype == np.float32
    wanted = arrays["lm_head.weight"].T.astype(np.float64) * width**-0.5
    np.testing.assert_array_equal(kernel.read(), wanted.astype(np.float32))
    assert f"scaled by {width}**-0.5" in found.assumed[0]


def test_table_that_makes_unscaled_logits_is_taken_twice(tmp_path):
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    fields |= {"scale_decoder_outputs": False}
    found = huggingface.read(write_model(tmp_path / "unscaled", arrays, fields))
    assert not found.config.tied_embeddings
    assert "unscaled: it is taken twice" in found.assumed[0]
    kernel = found.params["embedder.logits_kernel"].read()
    np.testing.assert_array_equal(kernel, arrays["shared.weight"].T)


@pytest.mark.parametrize(
    ("fields", "scaled"),
    [
        ({"transformers_version": "4.57.1", "tie_word_embeddings": True}, True),
        ({"transformers_version": "4.57.1", "tie_word_embeddings": False}, False),
        ({"transformers_version": "5.23.0", "tie_word_embeddings": True}, False),
        ({}, False),
    ],
)
def test_mt5_scales_logits_as_its_version_did(tmp_path, fields, scaled):
    arrays, exported = export_arrays("ul2", tmp_path / "hf")
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        exported.pop(key)
    exported |= {"model_type": "mt5", **fields}
    found = huggingface.read(write_model(tmp_path / "mt5", arrays, exported))
    assert found.config.tied_embeddings == scaled


def test_old_config_has_the_defaults_of_its_time(tmp_path):
    arrays, fields = export_arrays("t5_1_0", tmp_path / "hf", num_decoder_layers=2)
    old = ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_heads")
    fields = {key: fields[key] for key in (*old, "num_layers")}
    found = huggingface.read(write_model(tmp_path / "old", arrays, fields))
    wanted = make_checkpoint("t5_1_0", num_decoder_layers=2)
    assert_same_params(wanted, found)
    assert found.config == dataclasses.replace(wanted.config, dropout_rate=0.1)


@pytest.mark.parametrize(
    ("proj", "activation", "gated"),
    [
        ("relu", "relu", False),
        ("gated-gelu", "gelu", True),
        ("gated-silu", "silu", True),
        ("gated-swish", "silu", True),
        ("silu", "silu", False),
        ("gelu_new", "gelu", False),
    ],
)
def test_activations_are_told_by_name(tmp_path, proj, activation, gated):
    kind = "ul2" if gated else "t5_1_0"
    arrays, fields = export_arrays(kind, tmp_path / "hf")
    for key in ("dense_act_fn", "is_gated_act"):
        fields.pop(key)
    fields["feed_forward_proj"] = proj
    found = huggingface.read(write_model(tmp_path / "x", arrays, fields))
    assert (found.config.activation, found.config.gated) == (activation, gated)


BAD_CONFIGS = {
    "other_model": (
        {"model_type": "longt5"},
        "model type 'longt5'; only t5, mt5, umt5",
    ),
    "erf": ({"dense_act_fn": "gelu"}, r"'gelu' \(the erf form; ours is its tanh form"),
    "no_size": ({"d_model": None}, "d_model is None, which is no size"),
    "text_size": ({"num_heads": "8"}, "num_heads is '8', which is no size"),
    "many_layers": ({"num_layers": 10**9}, "1000000003 layers, but there are only"),
    "huge": ({"d_ff": 2**40}, "d_ff is 1099511627776, which is no size"),
    "rate": ({"dropout_rate": "0.1"}, "dropout_rate is '0.1', which is no number"),
    "buckets": ({"relative_attention_num_buckets": 3}, "config.json: relative_buckets"),
    "pad": ({"pad_token_id": 128}, "pad_token_id 128 is not one of 128 ids"),
    "same": ({"eos_token_id": 0}, "config.json: pad, eos, unk and the sentinels must"),
    "depth": ({"num_layers": 3}, r"missing: encoder.block.2.layer.0.*and 4 more"),
    "width": ({"d_ff": 48}, r"of another shape: .*\[40, 32\] instead of \[48, 32\]"),
    "bias": ({"model_type": "umt5"}, r"missing: .*block.1.*relative_attention_bias"),
    "gate": ({"is_gated_act": False}, r"missing: .*wi.weight.*extra: .*wi_0.weight"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_config_that_does_not_fit_is_refused(tmp_path, case):
    changes, message = BAD_CONFIGS[case]
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    path = write_model(tmp_path / "bad", arrays, {**fields, **changes})
    with pytest.raises(ValueError, match=message) as error:
        huggingface.read(path)
    assert "\n" not in str(error.value)


def test_quantized_model_is_refused(tmp_path):
    arrays, fields = export_arrays("ul2", tmp_path / "hf")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    arrays[name] = arrays[name].astype(np.int8)
    path = write_model(tmp_path / "int8", arrays, fields)
    with pytest.raises(ValueError, match=f"{name} is int8; parameters are one of"):
        huggingface.read(path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ul2", {"positions": "rope"}, "no T5 of transformers has positions='rope'"),
        ("ul2", {"num_kv_heads": 1}, "has num_kv_heads=1 for num_heads=3"),
        (
            "ul2",
            {"architecture": "decoder_only", "num_encoder_layers": 0},
            "has a decoder-only model; use --to stablehlo",
        ),
    ],
)
def test_export_refuses_what_no_t5_can_hold(tmp_path, kind, changes, message):
    staging = Staging(tmp_path / "hf", {})
    before = sorted(staging.directory.iterdir())
    with pytest.raises(ValueError, match=message):
        huggingface.write(make_checkpoint(kind, **changes), staging, None)
    assert sorted(staging.directory.iterdir()) == before
