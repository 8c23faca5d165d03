"""T5X checkpoints: what T5X wrote is read exactly, and what we write is the same."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoint_toys import KINDS, build, make_checkpoint, save
from flax import serialization, traverse_util
from golden_batches import GOLDENS, assert_logits_match, read_batch, read_batch_at
from model_fixtures import cross_entropy
from tolerances import LOGITS_ATOL, LOSS_RTOL

from ul2.interop import presets, t5x, t5x_writing
from ul2.interop.checkpoint import Moments
from ul2.interop.model import param_shapes
from ul2.interop.t5x_moments import keeps_rows
from ul2.interop.t5x_names import Layout, place
from ul2.interop.tensors import from_array
from ul2.models.config import ModelConfig

VARIANTS = (
    "gzip_f32",
    "gzip_bf16",
    "gzip_chunked",
    "two_devices",
    "orbax_ocdbt",
    "msgpack_inline",
)


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
    """One state of a micro model, written by T5X in six ways, and what is in it."""
    folder = tmp_path_factory.mktemp("t5x_formats")
    with tarfile.open(GOLDENS / "t5x_formats.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def checkpoint_of(formats: Path, variant: str) -> Path:
    return formats / variant / "checkpoint_2"


def theirs(checkpoint, layout=None) -> dict[str, np.ndarray]:
    """Returns a checkpoint by T5X's names, by default as its writer lays it out."""
    layout = layout or t5x_writing.layout_of(checkpoint)
    return {
        name: tensor.read()
        for name, tensor in t5x_writing.to_theirs(checkpoint, layout).items()
    }


def their_params(checkpoint) -> dict[str, np.ndarray]:
    """Returns the parameters of a checkpoint without moments, by T5X's names."""
    return {
        name.removeprefix("target/"): array
        for name, array in theirs(checkpoint).items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_t5x_wrote_is_read_to_the_bit(formats, variant):
    expected = np.load(formats / "expected.npz")
    found = t5x.read(checkpoint_of(formats, variant))
    assert found.step == 2
    assert found.layout == "t5"
    arrays = theirs(found)
    names = {n for n in expected.files if n.startswith(("target/", "state/param"))}
    assert names == set(arrays)
    for name in names:
        wanted = expected[name]
        if variant == "gzip_bf16" and name.startswith("target/"):
            wanted = wanted.astype(ml_dtypes.bfloat16)
        assert arrays[name].dtype == wanted.dtype
        np.testing.assert_array_equal(arrays[name], wanted, err_msg=name)


def test_logits_and_loss_of_what_t5x_wrote(formats):
    expected = np.load(formats / "expected.npz")
    found = t5x.read(checkpoint_of(formats, "gzip_f32"))
    batch = read_batch_at(expected, "in/")
    logits = np.asarray(build(found).logits(batch))
    valid = np.asarray(batch.targets) > 0
    np.testing.assert_allclose(
        logits[valid], expected["out/logits"][valid], rtol=0, atol=LOGITS_ATOL
    )
    loss = cross_entropy(logits, batch)
    np.testing.assert_allclose(loss, expected["out/loss"], rtol=LOSS_RTOL)


# T5X's layouts, and the golden with parameters and outputs of each.
LAYOUTS = {
    "t5x_unscanned": ("t5", "encoder_decoder", "plain"),
    "flaxformer_ul2": ("t5", "encoder_decoder", "plain"),
    "t5x_scanned": ("scalable_t5", "encoder_decoder", "plain"),
    "t5x_decoder_only": ("decoder_only", "decoder_only", "prefix_lm"),
}


def write_inline(path: Path, target: dict[str, np.ndarray], **state) -> Path:
    """Writes parameters by T5X's names, the way its oldest checkpoints were."""
    tree = {
        "target": traverse_util.unflatten_dict(target, sep="/"),
        "state": {"step": np.asarray(7, np.int32), **state},
    }
    content = serialization.msgpack_serialize({"version": 3, "optimizer": tree})
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_golden_logits(name, tmp_path):
    layout, architecture, case = LAYOUTS[name]
    golden = np.load(GOLDENS / f"{name}.npz")
    target = {
        key.removeprefix("param/"): golden[key]
        for key in golden.files
        if key.startswith("param/")
    }
    prefix = "decoder/" if architecture == "decoder_only" else ""
    table = np.zeros((512, 32), np.float32)
    rows = golden["rows"] if "rows" in golden.files else slice(None)
    table[rows] = target[f"{prefix}token_embedder/embedding"]
    target[f"{prefix}token_embedder/embedding"] = table
    head = target.get("decoder/logits_dense/kernel")
    if head is not None and head.shape[1] < 512:
        # The golden keeps every 16th column, with the logits of those.
        whole = np.zeros((32, 512), np.float32)
        whole[:, :: 512 // head.shape[1]] = head
        target["decoder/logits_dense/kernel"] = whole
    path = write_inline(tmp_path / "checkpoint_7", target)
    found = t5x.read(path, activation="silu")
    assert (found.layout, found.architecture) == (layout, architecture)
    model = build(found)
    batch = read_batch(golden, case, architecture)
    assert_logits_match(golden, case, model, batch)


def make(kind, **changes):
    """Makes a checkpoint of an encoder-decoder, or of the decoder-only toy."""
    if kind == "decoder_only":
        changes |= {"architecture": kind, "num_encoder_layers": 0}
        return make_checkpoint("t5_1_1", **changes)
    return make_checkpoint(kind, **changes)


def random_moments(checkpoint) -> Moments:
    """Draws second moments, factored where T5X would."""
    rng = np.random.default_rng(5)
    shapes = param_shapes(checkpoint.architecture, checkpoint.config)
    v_row, v_col, v = {}, {}, {}

    def draw(path, shape):
        return from_array(path, rng.random(shape).astype(np.float32))

    for path, shape in shapes.items():
        if path.endswith(("scale", "rel_embedding")):
            v[path] = draw(path, shape)
        else:
            kept = keeps_rows(shape[-2:])
            v_row[path] = draw(path, (*shape[:-2], shape[-2:][kept]))
            v_col[path] = draw(path, (*shape[:-2], shape[-2:][1 - kept]))
    return Moments(step=41, v_row=v_row, v_col=v_col, v=v)


def assert_same_checkpoint(found, expected):
    assert found.config == expected.config
    assert found.architecture == expected.architecture
    assert found.params.keys() == expected.params.keys()
    pairs = [(found.params, expected.params)]
    if expected.moments is None:
        assert found.moments is None
    else:
        assert found.moments.step == expected.moments.step
        for slot in ("v_row", "v_col", "v"):
            pairs.append(
                (getattr(found.moments, slot), getattr(expected.moments, slot))
            )
    for ours, wanted in pairs:
        assert ours.keys() == wanted.keys()
        for path in wanted:
            assert ours[path].dtype == wanted[path].dtype
            np.testing.assert_array_equal(
                ours[path].read(), wanted[path].read(), err_msg=path
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [*KINDS, "decoder_only"])
def test_round_trip_is_exact(kind, dtype, tmp_path):
    source = make(kind, dtype=dtype)
    source = dataclasses.replace(source, step=41, moments=random_moments(source))
    found = t5x.read(save(t5x_writing.write, source, tmp_path / "out"))
    assert found.step == 41
    assert_same_checkpoint(found, source)


def test_checkpoint_is_written_as_t5x_writes_it(formats, tmp_path):
    original = checkpoint_of(formats, "gzip_f32")
    save(t5x_writing.write, t5x.read(original), tmp_path / "out")
    ours, wanted = (
        serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        for folder in (tmp_path / "out", original)
    )
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)
    for array in original.glob("*/"):
        copy = tmp_path / "out" / array.name
        heads = [json.loads((one / ".zarray").read_text()) for one in (copy, array)]
        assert heads[0] == heads[1]
        assert {p.name for p in copy.iterdir()} == {p.name for p in array.iterdir()}


@pytest.mark.parametrize("scan_axis", [0, 1])
def test_scanned_layers_are_found_on_either_dim(scan_axis, tmp_path):
    source = make("umt5", num_encoder_layers=3)
    layout = Layout("scalable_t5", scan_axis=scan_axis, split_heads=True)
    check_layout(source, layout, tmp_path)


def test_heads_apart_in_layers_apart(tmp_path):
    layout = Layout("scalable_t5, not scanned", split_heads=True)
    check_layout(make("t5_1_1"), layout, tmp_path)


def test_relative_bias_in_every_layer_that_is_not_scanned(tmp_path):
    check_layout(make("umt5_untied"), Layout("t5"), tmp_path)


def check_layout(source, layout, tmp_path):
    """Lays a checkpoint out, opens it, and compares parameters and moments."""
    source = dataclasses.replace(source, moments=random_moments(source))
    tree = traverse_util.unflatten_dict(theirs(source, layout), sep="/")
    target = traverse_util.flatten_dict(tree["target"], sep="/")
    path = write_inline(
        tmp_path / "checkpoint_7",
        target,
        step=np.asarray(41, np.int32),
        param_states=tree["state"]["param_states"],
    )
    found = t5x.read(path, activation=source.config.activation)
    assert found.layout == layout.name
    assert_same_checkpoint(found, source)


def test_bfloat16_of_version_2_is_read(tmp_path):
    source = make("t5_1_0", dtype="bfloat16")
    arrays = {n: a.view(np.uint16) for n, a in their_params(source).items()}
    content = serialization.msgpack_serialize(
        {
            "version": 2,
            "optimizer": {"target": traverse_util.unflatten_dict(arrays, sep="/")},
        }
    )
    (tmp_path / "checkpoint_9").write_bytes(content)
    assert_same_checkpoint(t5x.read(tmp_path / "checkpoint_9"), source)


def copied(formats, tmp_path, variant="gzip_f32"):
    """Returns a copy of a checkpoint that T5X wrote, to be damaged."""
    return shutil.copytree(checkpoint_of(formats, variant), tmp_path / "checkpoint_2")


def rewritten(path, change):
    """Lets `change` edit the tree in the msgpack file of a checkpoint."""
    file = path / "checkpoint"
    tree = serialization.msgpack_restore(file.read_bytes())
    change(tree["optimizer"])
    file.write_bytes(serialization.msgpack_serialize(tree))
    return path


NORM = "target.encoder.encoder_norm.scale"


@pytest.mark.parametrize(
    "leads_to",
    ["../secret/", "/etc/", f"../../{NORM}/", f"/other/{NORM}/", "target.other/"],
)
def test_spec_that_leads_elsewhere_is_not_followed(formats, tmp_path, leads_to):
    def change(tree):
        spec = tree["target"]["encoder"]["encoder_norm"]["scale"]
        spec["kvstore"]["path"] = leads_to

    path = rewritten(copied(formats, tmp_path), change)
    with pytest.raises(ValueError, match="target/encoder/encoder_norm/scale: its spec"):
        t5x.read(path)


@pytest.mark.parametrize("driver", ["gcs", "gfile", "file"])
def test_spec_of_a_bucket_is_read_from_the_directory(formats, tmp_path, driver):
    def change(tree):
        store = tree["target"]["encoder"]["encoder_norm"]["scale"]["kvstore"]
        store |= {"driver": driver, "bucket": "elsewhere"}

    path = rewritten(copied(formats, tmp_path), change)
    expected = np.load(formats / "expected.npz")["target/encoder/encoder_norm/scale"]
    found = t5x.read(path).params["encoder.final_norm.scale"]
    np.testing.assert_array_equal(found.read(), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "bfloat16"}, r"is float32\[16\] on disk, but its spec says"),
        ({"metadata": {"shape": [17]}}, r"is float32\[16\] on disk, but its spec says"),
        ({"metadata": None}, "its TensorStore spec is damaged"),
        ({"dtype": "float99"}, "its TensorStore spec is damaged"),
    ],
)
def test_spec_that_its_array_does_not_fit_is_refused(
    formats, tmp_path, changes, reason
):
    def change(tree):
        tree["target"]["encoder"]["encoder_norm"]["scale"] |= changes

    path = rewritten(copied(formats, tmp_path), change)
    with pytest.raises(
        ValueError, match=f"target/encoder/encoder_norm/scale.*{reason}"
    ):
        t5x.read(path)


def test_parameter_of_integers_is_refused(tmp_path):
    arrays = their_params(make("ul2"))
    arrays["encoder/encoder_norm/scale"] = np.ones(32, np.int32)
    path = write_inline(tmp_path / "checkpoint_7", arrays)
    with pytest.raises(ValueError, match="target/encoder/encoder_norm/scale is int32"):
        t5x.read(path)


def test_missing_extra_and_misshaped_arrays_are_named_together(tmp_path):
    arrays = their_params(make("ul2"))
    del arrays["encoder/layers_1/mlp/wi_1/kernel"]
    arrays["encoder/layers_1/mlp/extra/kernel"] = np.ones((2, 2), np.float32)
    arrays["decoder/layers_0/mlp/wo/kernel"] = np.ones((40, 31), np.float32)
    path = write_inline(tmp_path / "checkpoint_7", arrays)
    with pytest.raises(ValueError, match="missing") as refused:
        t5x.read(path)
    assert "missing: encoder/layers_1/mlp/wi_1/kernel" in str(refused.value)
    assert "extra: encoder/layers_1/mlp/extra/kernel" in str(refused.value)
    assert "decoder/layers_0/mlp/wo/kernel [40, 31] instead of" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["target.decoder.decoder_norm.scale", NORM])
def test_missing_array_is_refused_by_name(formats, tmp_path, name):
    path = copied(formats, tmp_path)
    shutil.rmtree(path / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        t5x.read(path)


def test_truncated_head_is_refused(formats, tmp_path):
    file = copied(formats, tmp_path) / "checkpoint"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged: it is cut off"):
        t5x.read(file.parent)


def test_wrong_preset_says_which_one_fits(tmp_path):
    small = presets.get("t5_small").fields()
    config = dataclasses.replace(make("t5_1_0").config, **small)
    with pytest.raises(ValueError, match="t5_small fits") as refused:
        presets.check("t5_base", "encoder_decoder", config)
    assert "embed_dim 512 (the preset has 768)" in str(refused.value)
    with pytest.raises(ValueError, match="did you mean 't5_base'"):
        presets.get("t5_bose")


ACTIVATIONS = {
    "from t5x.examples.t5 import network\n"
    "network.T5Config.mlp_activations = ('gelu', 'linear')\n": "gelu",
    "layers_mlp/mlp.MlpBlock.activations = ('swish', 'linear')\n": "silu",
    '{"t5x_config": {\n "mlp_activations": [\n  "relu",\n  "linear"\n]}}': "relu",
}


@pytest.mark.parametrize("text", ACTIVATIONS)
@pytest.mark.parametrize("above", [0, 1, 2])
def test_activation_is_found_beside_the_checkpoint(tmp_path, text, above):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    arrays = their_params(make("ul2"))
    path = write_inline(folder / "checkpoint_7", arrays)
    name = "config.json" if text.startswith("{") else "config.gin"
    # A file has no inside: its own folder is the nearest.
    (path.parents[max(above - 1, 0)] / name).write_text(text)
    found = t5x.read(path)
    assert found.config.activation == ACTIVATIONS[text]
    assert any(name in line for line in found.assumed)


def test_activation_that_nothing_says_is_assumed_aloud(tmp_path):
    arrays = their_params(make("ul2"))
    path = write_inline(tmp_path / "checkpoint_7", arrays)
    found = t5x.read(path)
    assert found.config.activation == "silu"
    assert any("activation silu" in line for line in found.assumed)
    assert t5x.read(path, activation="gelu").config.activation == "gelu"
    with pytest.raises(ValueError, match="--activation tanh is not one of"):
        t5x.read(path, activation="tanh")


def test_newest_of_several_checkpoints_is_taken(tmp_path):
    arrays = their_params(make("ul2"))
    for step in (5, 100, 20):
        write_inline(
            tmp_path / f"checkpoint_{step}", arrays, step=np.asarray(step, np.int32)
        )
    (tmp_path / "checkpoint_999.tmp").mkdir()
    assert t5x.read(tmp_path).step == 100
    assert t5x.read(tmp_path, step=20).step == 20
    with pytest.raises(ValueError, match="no T5X checkpoint of step 7"):
        t5x.read(tmp_path, step=7)


def test_property_that_t5x_lacks_is_named(tmp_path):
    for changes, named in (
        ({"positions": "rope"}, "rope"),
        ({"num_kv_heads": 1}, "num_kv_heads=1"),
    ):
        source = make("ul2", **changes)
        with pytest.raises(ValueError, match=f"T5X has no model with .*{named}"):
            t5x_writing.layout_of(source)


@pytest.mark.parametrize("tied", [True, False])
def test_ul2_20b_has_the_published_names_and_shapes(tied):
    config = ModelConfig(
        vocab_size=32128,
        embed_dim=4096,
        num_heads=16,
        head_dim=256,
        mlp_dim=16384,
        num_encoder_layers=32,
        num_decoder_layers=32,
        activation="silu",
        gated=True,
        positions="relative",
        tied_embeddings=tied,
        decoder_final_norm_scale=False,
        dropout_rate=0.0,
        dtype="float32",
        remat="none",
    )
    assert presets.name_of("encoder_decoder", config) == "ul2_20b"
    shapes = param_shapes("encoder_decoder", config)
    names = t5x.expected([place(path, config, Layout("t5")) for path in shapes], shapes)
    # flaxformer's own names and shapes, by `jax.eval_shape` of its public gin.
    assert len(names) == (740 if tied else 741)
    count = sum(int(np.prod(shape)) for shape in names.values())
    assert count == (19_459_609_600 if tied else 19_591_205_888)


def test_layer_of_any_number_makes_no_model_of_so_many(tmp_path):
    """The number of layers is read off the names; a name may hold any number."""
    checkpoint = make_checkpoint("ul2")
    params = their_params(checkpoint)
    name = "decoder/layers_0/mlp/wo/kernel"
    params[name.replace("_0", "_99999999")] = params[name]
    path = write_inline(tmp_path / "checkpoint_7", params)
    with pytest.raises(ValueError, match="is no model of layout t5"):
        t5x.read(path)
