"""The functions of an export are those of the model it was made of."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_toys import build, with_param
from flax import nnx
from stablehlo_toys import (
    ARCHITECTURES,
    EOS,
    PAD,
    START,
    VOCAB,
    make_checkpoint,
)
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL

from ul2.batch import Batch, one_per_row
from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings
from ul2.interop import presets, stablehlo, stablehlo_loader
from ul2.interop.model import param_shapes
from ul2.interop.tensors import cast, filled
from ul2.models.config import ModelConfig
from ul2.vocab import Vocab

LOGITS_ATOL = 1e-5


def greedy(model, inputs, max_tokens):
    settings = DecodingSettings(max_tokens=max_tokens)
    return [row[0].ids for row in Generator(model, VOCAB).generate(inputs, settings)]


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
    graphdef, state = nnx.split(build(checkpoint))
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
    model = build(checkpoints[architecture])
    expected = greedy(model, inputs, 9)
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
    expected = greedy(build(checkpoint), [[7, EOS]], 5)
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


def test_a_model_of_20b_is_exported_without_its_values(tmp_path, monkeypatch):
    sizes = presets.get("ul2_20b").fields()
    sizes |= {"tied_embeddings": True, "decoder_final_norm_scale": False}
    toy = make_checkpoint("encoder_decoder")
    config = dataclasses.replace(toy.config, **sizes)
    shapes = param_shapes("encoder_decoder", config)
    params = {
        path: filled(path, shape, 0, ml_dtypes.bfloat16)
        for path, shape in shapes.items()
    }
    written = {}

    def count(path, tensors, metadata):
        path.touch()
        written[path.name] = sum(tensor.nbytes for tensor in tensors.values())

    monkeypatch.setattr(stablehlo.safetensors, "write", count)
    checkpoint = dataclasses.replace(toy, config=config, params=params)
    stablehlo.write(checkpoint, tmp_path, dtype="bfloat16")
    assert sum(written.values()) == 2 * 19_459_609_600
    assert max(written.values()) <= 5e9
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 200_000
    manifest = json.loads((tmp_path / "export.json").read_text())
    (encoded,) = manifest["functions"]["encode"]["results"]
    assert encoded == {
        "name": "encoded",
        "shape": ["b", "s", 4096],
        "dtype": "bfloat16",
    }


def test_parameters_are_read_from_their_files_alone(exports, loaded):
    def zeros(path, values):
        return jnp.zeros_like(values) if path == "embedder.logits_kernel" else values

    folder = exports["decoder_only"]
    changed = stablehlo_loader.load(folder, place=zeros)
    tokens, prefixes = [[START, 7, 8, 9]], [2]
    assert np.any(loaded["decoder_only"].decode(tokens, prefixes))
    assert not np.any(changed.decode(tokens, prefixes))


def test_parameters_may_lie_on_many_devices(exports, loaded):
    mesh = jax.make_mesh((8,), ("parts",))

    def split_columns(path, values):
        spec = jax.P(*[None] * (values.ndim - 1), "parts")
        return jax.device_put(values, jax.NamedSharding(mesh, spec))

    folder = exports["decoder_only"]
    spread = stablehlo_loader.load(folder, place=split_columns)
    tokens, prefixes = [[START, 7, 8, 9], [START, 8, EOS, PAD]], [2, 1]
    np.testing.assert_allclose(
        spread.decode(tokens, prefixes),
        loaded["decoder_only"].decode(tokens, prefixes),
        rtol=0,
        atol=LOGITS_ATOL,
    )


def test_certificate_sees_one_changed_number(checkpoints, exports):
    path = "decoder.layers.mlp.wo"
    checkpoint = checkpoints["decoder_only"]
    values = checkpoint.params[path].read().copy()
    values[1, 3, 5] += 1
    other = with_param(checkpoint, path, values)
    folder = exports["decoder_only"]
    assert stablehlo.max_logit_difference(checkpoint, folder) <= LOGITS_ATOL
    assert stablehlo.max_logit_difference(other, folder) > 100 * LOGITS_ATOL


def test_an_export_is_the_same_every_time_and_names_no_source_files(
    checkpoints, exports, tmp_path
):
    stablehlo.write(checkpoints["decoder_only"], tmp_path)
    for file in sorted(tmp_path.iterdir()):
        again = (exports["decoder_only"] / file.name).read_bytes()
        assert file.read_bytes() == again, file.name
        if file.suffix == ".stablehlo":
            assert b".py" not in again


def test_manifest_describes_every_file(exports, checkpoints):
    folder = exports["encoder_decoder"]
    manifest = json.loads((folder / "export.json").read_text())
    files = {file.name for file in folder.iterdir()} - {"export.json"}
    assert manifest["files"].keys() == files
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    for name, identity in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert identity["sha256"] == hashlib.sha256(content).hexdigest()
        assert identity["bytes"] == len(content)
    checkpoint = checkpoints["encoder_decoder"]
    assert Vocab.from_json(manifest["vocab"]) == checkpoint.vocab
    assert ModelConfig(**manifest["model_config"]) == checkpoint.config
    assert manifest["platforms"] == ["cpu", "cuda", "rocm", "tpu"]
    score = manifest["functions"]["score"]
    assert [one["name"] for one in score["arguments"]] == [
        "input_tokens",
        "target_tokens",
    ]
    assert [one["shape"] for one in score["results"]] == [["b"], ["b"]]


@pytest.mark.parametrize(
    ("architecture", "knobs", "message"),
    [
        ("encoder_decoder", {"dtype": "float64"}, "dtype='float64'"),
        ("encoder_decoder", {"inputs_length": 0}, "inputs_length=0"),
        ("decoder_only", {"inputs_length": 8}, "set targets_length"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    checkpoints, tmp_path, architecture, knobs, message
):
    with pytest.raises(ValueError, match=message):
        stablehlo.write(checkpoints[architecture], tmp_path, **knobs)
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_not_the_models_are_refused(checkpoints, tmp_path):
    checkpoint = checkpoints["decoder_only"]
    name = "embedder.embedding"
    for params, message in (
        ({p: t for p, t in checkpoint.params.items() if p != name}, f"missing: {name}"),
        (
            {**checkpoint.params, name: cast(checkpoint.params[name], np.float64)},
            f"{name} is float64",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            stablehlo.write(dataclasses.replace(checkpoint, params=params), tmp_path)
    assert not list(tmp_path.iterdir())
