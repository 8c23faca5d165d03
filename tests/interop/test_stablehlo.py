"""The functions of an export are those of the model, for whoever has jax alone."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx, traverse_util

from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL
from ul2.batch import Batch, one_per_row
from ul2.decoding.greedy import greedy
from ul2.interop import stablehlo, stablehlo_loader
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import define
from ul2.interop.tensors import cast, from_array
from ul2.models.config import ModelConfig
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.training.state import init_params
from ul2.vocab import Vocab

ARCHITECTURES = ("encoder_decoder", "decoder_only")
CLASSES = {"encoder_decoder": EncoderDecoder, "decoder_only": DecoderOnly}
PAD, EOS, START = 0, 1, 0
LOGITS_ATOL = 1e-5
VOCAB = Vocab(
    size=60,
    padded_size=128,
    pad_id=PAD,
    eos_id=EOS,
    unk_id=2,
    start_id=START,
    sentinel_ids=(50, 51),
    mode_ids={"[R]": (52,), "[S]": (53,), "[X]": (54,)},
    mode_convention="paper",
    tokenizer_sha256="toy",
)


def make_checkpoint(architecture, **changes):
    layers = 2 if architecture == "encoder_decoder" else 0
    fields = {
        "vocab_size": 128,
        "embed_dim": 16,
        "num_heads": 4,
        "head_dim": 4,
        "mlp_dim": 32,
        "num_encoder_layers": layers,
        "num_decoder_layers": 2,
        "activation": "silu",
        "gated": True,
        "positions": "relative",
        "tied_embeddings": False,
        "dropout_rate": 0.1,
        "dtype": "float32",
        "remat": "full",
    }
    config = ModelConfig(**{**fields, **changes})
    model = CLASSES[architecture]
    params = init_params(lambda *, rngs: model(config, rngs=rngs), seed=3)
    flat = traverse_util.flatten_dict(params, sep=".")
    return Checkpoint(
        path=Path("toy"),
        format="ul2",
        layout="ul2",
        architecture=architecture,
        config=config,
        preset=None,
        vocab=VOCAB,
        tokenizer=b"pieces",
        step=7,
        params={path: from_array(path, np.asarray(v)) for path, v in flat.items()},
    )


def make_model(checkpoint):
    params = {path: jnp.asarray(t.read()) for path, t in checkpoint.params.items()}
    definition = define(checkpoint.architecture, checkpoint.config)
    return definition.merge(traverse_util.unflatten_dict(params, sep="."))


@pytest.fixture(scope="module")
def checkpoints():
    return {name: make_checkpoint(name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def exports(checkpoints, tmp_path_factory):
    made = {}
    for name, checkpoint in checkpoints.items():
        made[name] = tmp_path_factory.mktemp(name)
        stablehlo.write(checkpoint, made[name])
    return made


@pytest.fixture(scope="module")
def loaded(exports):
    return {name: stablehlo_loader.load(folder) for name, folder in exports.items()}


@pytest.fixture
def copied(exports, tmp_path):
    for file in exports["encoder_decoder"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def random_rows(num_rows, longest, first=()):
    """Draws rows of all lengths up to `longest`, which the last one has."""
    rng = np.random.default_rng(num_rows)
    lengths = [*rng.integers(1, longest + 1, num_rows - 1), longest]
    return [[*first, *rng.integers(3, 50, n).tolist()] for n in lengths]


def logits_of(checkpoint, encoder_rows, decoder_rows, prefix_lengths=None):
    """Runs the model itself on rows of one example each."""
    decoder = one_per_row(decoder_rows)
    if prefix_lengths is None:
        prefix_lengths = np.zeros(len(decoder_rows))
    batch = Batch(
        encoder=None if encoder_rows is None else one_per_row(encoder_rows),
        decoder=decoder,
        targets=decoder.tokens,
        loss_weights=decoder.segment_ids,
        denoiser_ids=decoder.segment_ids,
        prefix_lengths=np.asarray(prefix_lengths, np.int32)[:, None],
    )
    graphdef, state = nnx.split(make_model(checkpoint))
    logits = jax.jit(lambda state: nnx.merge(graphdef, state).logits(batch))(state)
    return np.asarray(logits), decoder.segment_ids > 0


def summed_log_probs(logits, targets):
    """Sums, row by row, log softmax at the ids of `targets`, column -> id."""
    log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    return [
        sum(row[column, token] for column, token in columns.items())
        for row, columns in zip(log_probs, targets, strict=True)
    ]


@pytest.mark.parametrize(("num_rows", "length"), [(1, 1), (2, 7), (5, 40)])
def test_encoder_decoder_logits_are_the_models(checkpoints, loaded, num_rows, length):
    inputs = random_rows(num_rows, length)
    read = random_rows(num_rows, length + 2, first=[START])
    expected, present = logits_of(checkpoints["encoder_decoder"], inputs, read)
    model = loaded["encoder_decoder"]
    input_tokens = one_per_row(inputs).tokens
    encoded = model.encode(input_tokens)
    logits = model.decode(encoded, input_tokens, one_per_row(read).tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(
        logits[present], expected[present], rtol=0, atol=LOGITS_ATOL
    )


@pytest.mark.parametrize(("num_rows", "length"), [(1, 1), (2, 7), (5, 40)])
def test_decoder_only_logits_are_the_models(checkpoints, loaded, num_rows, length):
    rows = random_rows(num_rows, length, first=[START])
    prefixes = np.array([(len(row) + 1) // 2 for row in rows])
    expected, present = logits_of(checkpoints["decoder_only"], None, rows, prefixes)
    logits = loaded["decoder_only"].decode(one_per_row(rows).tokens, prefixes)
    np.testing.assert_allclose(
        logits[present], expected[present], rtol=0, atol=LOGITS_ATOL
    )


# 32 and 33 columns fill one chunk of logits and one more.
@pytest.mark.parametrize(("num_rows", "length"), [(1, 1), (3, 32), (2, 33)])
def test_encoder_decoder_score_sums_the_models_log_softmax(
    checkpoints, loaded, num_rows, length
):
    inputs, targets = random_rows(num_rows, 9), random_rows(num_rows, length)
    read = [[START, *row[:-1]] for row in targets]
    expected, _ = logits_of(checkpoints["encoder_decoder"], inputs, read)
    log_probs, num_tokens = loaded["encoder_decoder"].score(
        one_per_row(inputs).tokens, one_per_row(targets).tokens
    )
    np.testing.assert_array_equal(num_tokens, [len(row) for row in targets])
    np.testing.assert_allclose(
        log_probs,
        summed_log_probs(expected, [dict(enumerate(row)) for row in targets]),
        rtol=REORDERED_SUM_RTOL,
        atol=REORDERED_SUM_ATOL,
    )


@pytest.mark.parametrize(("num_rows", "length"), [(1, 2), (3, 32), (2, 33)])
def test_decoder_only_score_sums_the_log_softmax_after_the_prefix(
    checkpoints, loaded, num_rows, length
):
    rows = random_rows(num_rows, length, first=[START])
    prefixes = np.array([(len(row) + 1) // 2 for row in rows])
    expected, _ = logits_of(checkpoints["decoder_only"], None, rows, prefixes)
    log_probs, num_tokens = loaded["decoder_only"].score(
        one_per_row(rows).tokens, prefixes
    )
    after = [
        {column - 1: row[column] for column in range(prefix, len(row))}
        for row, prefix in zip(rows, prefixes, strict=True)
    ]
    np.testing.assert_array_equal(num_tokens, [len(columns) for columns in after])
    np.testing.assert_allclose(
        log_probs,
        summed_log_probs(expected, after),
        rtol=REORDERED_SUM_RTOL,
        atol=REORDERED_SUM_ATOL,
    )


def test_only_pad_ids_at_the_end_are_padding(checkpoints, loaded):
    rows = [[7, PAD, PAD, 8], [PAD, 9, 10]]
    targets = [[5, PAD, 6], [PAD, EOS]]
    read = [[START, *row[:-1]] for row in targets]
    expected, _ = logits_of(checkpoints["encoder_decoder"], rows, read)
    model = loaded["encoder_decoder"]
    # Wider than any row: columns of padding alone change nothing.
    log_probs, num_tokens = model.score(
        one_per_row(rows, 11).tokens, one_per_row(targets, 6).tokens
    )
    np.testing.assert_array_equal(num_tokens, [3, 2])
    np.testing.assert_allclose(
        log_probs,
        summed_log_probs(expected, [dict(enumerate(row)) for row in targets]),
        rtol=REORDERED_SUM_RTOL,
        atol=REORDERED_SUM_ATOL,
    )


def test_prefix_is_read_in_both_directions_and_targets_in_one(loaded):
    tokens = np.array([[START, 11, 12, 13, 14, 15]])
    in_prefix, in_targets = tokens.copy(), tokens.copy()
    in_prefix[0, 3], in_targets[0, 4] = 33, 34
    logits, changed, later = (
        np.asarray(loaded["decoder_only"].decode(rows, [4]))
        for rows in (tokens, in_prefix, in_targets)
    )
    assert np.all(np.abs(changed - logits).max(axis=-1) > 1e-4)
    assert np.array_equal(np.abs(later - logits).max(axis=-1)[0, :4], np.zeros(4))
    assert np.all(np.abs(later - logits).max(axis=-1)[0, 4:] > 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_writes_what_greedy_decoding_writes(checkpoints, loaded, architecture):
    inputs = [[52, 10, 11, 12, EOS], [13, EOS], [53, *range(20, 40), EOS]]
    model = make_model(checkpoints[architecture])
    expected = greedy(model, inputs, VOCAB, max_tokens=9)
    assert any(expected)
    assert loaded[architecture].generate(inputs, max_tokens=9) == expected


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        (
            "encoder_decoder",
            {"relative_bias": "per_layer", "num_kv_heads": 2, "activation": "gelu"},
        ),
        ("encoder_decoder", {"tied_embeddings": True, "gated": False}),
        ("decoder_only", {"positions": "rope", "decoder_final_norm_scale": False}),
    ],
)
def test_exports_of_other_models_give_their_logits(tmp_path, architecture, changes):
    checkpoint = make_checkpoint(architecture, **changes)
    stablehlo.write(checkpoint, tmp_path)
    assert stablehlo.max_logit_difference(checkpoint, tmp_path) <= LOGITS_ATOL


def test_fixed_lengths_are_exported_and_padded_to(checkpoints, tmp_path):
    checkpoint = checkpoints["encoder_decoder"]
    stablehlo.write(checkpoint, tmp_path, inputs_length=12, targets_length=5)
    model = stablehlo_loader.load(tmp_path)
    arguments = model.manifest["functions"]["decode"]["arguments"]
    assert [one["shape"] for one in arguments] == [["b", 12, 16], ["b", 12], ["b", 5]]
    assert stablehlo.max_logit_difference(checkpoint, tmp_path) <= LOGITS_ATOL
    expected = greedy(make_model(checkpoint), [[7, EOS]], VOCAB, max_tokens=5)
    assert model.generate([[7, EOS]], max_tokens=5) == expected
    assert stablehlo_loader.check(model).startswith("ok")
    with pytest.raises(ValueError, match=r"13 ids in a row.*inputs_length=12"):
        model.generate([[7] * 13])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_computed_in_bfloat16(checkpoints, tmp_path, architecture):
    checkpoint = checkpoints[architecture]
    stablehlo.write(checkpoint, tmp_path, dtype="bfloat16")
    difference = stablehlo.max_logit_difference(checkpoint, tmp_path)
    # Of logits around one; a bfloat16 has eight bits.
    assert difference <= 2**-6
    in_bfloat16 = dataclasses.replace(checkpoint.config, dtype="bfloat16")
    model = stablehlo_loader.load(tmp_path)
    assert model.manifest["model_config"] == dataclasses.asdict(in_bfloat16)
    assert {value.dtype for value in model.params.values()} == {jnp.dtype("float32")}
    if architecture == "encoder_decoder":
        assert model.encode([[7, 8, EOS]]).dtype == jnp.bfloat16


def test_parameters_keep_their_stored_dtype_and_values(checkpoints, tmp_path):
    stored = {
        path: cast(tensor, ml_dtypes.bfloat16) if "mlp" in path else tensor
        for path, tensor in checkpoints["decoder_only"].params.items()
    }
    checkpoint = dataclasses.replace(checkpoints["decoder_only"], params=stored)
    stablehlo.write(checkpoint, tmp_path)
    params = stablehlo_loader.load(tmp_path).params
    assert params.keys() == stored.keys()
    for path, tensor in stored.items():
        assert params[path].dtype == tensor.dtype
        np.testing.assert_array_equal(params[path], tensor.read())
    assert stablehlo.max_logit_difference(checkpoint, tmp_path) <= LOGITS_ATOL


def test_parameters_are_dealt_to_files_of_limited_size(
    checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr(stablehlo, "MAX_FILE_BYTES", 10_000)
    checkpoint = checkpoints["decoder_only"]
    stablehlo.write(checkpoint, tmp_path)
    files = sorted(tmp_path.glob("params*"))
    largest = max(tensor.nbytes for tensor in checkpoint.params.values())
    assert len(files) > 2
    assert files[0].name == f"params-00001-of-{len(files):05}.safetensors"
    assert max(file.stat().st_size for file in files) < max(largest, 10_000) + 2000
    assert stablehlo.max_logit_difference(checkpoint, tmp_path) <= LOGITS_ATOL


def test_parameters_are_no_constants(exports, checkpoints):
    nbytes = sum(t.nbytes for t in checkpoints["encoder_decoder"].params.values())
    folder = exports["encoder_decoder"]
    small = [folder / name for name in ("encode.stablehlo", "decode.stablehlo")]
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["parameters"].keys() == checkpoints["encoder_decoder"].params.keys()
    assert all(path.stat().st_size < nbytes for path in small)
