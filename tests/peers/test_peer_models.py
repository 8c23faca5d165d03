"""Models of transformers give our logits, and ours theirs, whoever wrote the files."""

import functools

import jax
import numpy as np
import pytest
from checkpoint_toys import KINDS, build, make_checkpoint, save
from tolerances import LOGITS_ATOL, LOSS_RTOL

from ul2.batch import Batch, one_per_row
from ul2.interop import huggingface

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

IGNORED = -100  # what transformers calls a label without a loss


def random_config(seed):
    """Draws sizes that nobody would choose, so that no two of them agree by chance."""
    rng = np.random.default_rng(seed)
    heads, width = (int(n) for n in rng.integers(1, 6, 2))
    kind = sorted(KINDS)[seed % len(KINDS)]
    return kind, {
        "embed_dim": int(rng.choice([24, 36, 64, 100])),
        "num_heads": heads,
        "head_dim": 4 * width,
        "mlp_dim": int(rng.integers(20, 90)),
        "num_encoder_layers": int(rng.integers(1, 4)),
        "num_decoder_layers": int(rng.integers(1, 4)),
        "vocab_size": int(rng.integers(121, 200)),
        "relative_buckets": int(rng.choice([8, 16, 32])),
        "relative_max_distance": int(rng.choice([20, 64, 128])),
        "activation": str(rng.choice(["relu", "gelu", "silu"])),
        "gated": bool(rng.integers(2)),
        "norm_epsilon": float(rng.choice([1e-6, 1e-3])),
    }


def random_batch(seed=0):
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(3, 120, n) for n in (40, 7, 1)]
    targets = [rng.integers(3, 120, n) for n in (5, 30, 12)]
    decoder = one_per_row([np.r_[0, row[:-1]] for row in targets])
    labels = one_per_row(targets).tokens
    return Batch(
        encoder=one_per_row(inputs),
        decoder=decoder,
        targets=labels,
        loss_weights=(labels > 0).astype(np.float32),
        denoiser_ids=np.zeros_like(labels),
        prefix_lengths=np.zeros((3, 1), np.int32),
    )


def assert_same_model(checkpoint, theirs):
    """Compares logits and loss on the rows that have a target."""
    batch = random_batch()
    valid = np.asarray(batch.targets) > 0
    labels = np.where(valid, batch.targets, IGNORED)
    with torch.no_grad():
        out = theirs.float().eval()(
            input_ids=torch.tensor(batch.encoder.tokens).long(),
            attention_mask=torch.tensor(batch.encoder.segment_ids).long(),
            decoder_input_ids=torch.tensor(batch.decoder.tokens).long(),
            labels=torch.tensor(labels).long(),
        )
    logits = np.asarray(jax.jit(lambda m, b: m.logits(b))(build(checkpoint), batch))
    np.testing.assert_allclose(
        logits[valid], out.logits.numpy()[valid], rtol=0, atol=LOGITS_ATOL
    )
    log_probs = jax.nn.log_softmax(logits)[valid]
    losses = -np.take_along_axis(log_probs, batch.targets[valid][:, None], -1)
    np.testing.assert_allclose(np.mean(losses), out.loss.item(), rtol=LOSS_RTOL)


export = functools.partial(save, huggingface.write)


def load(path):
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        path, output_loading_info=True
    )
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_our_model_is_the_same_in_transformers(tmp_path, kind):
    checkpoint = make_checkpoint(kind)
    theirs = load(export(checkpoint, tmp_path / "hf"))
    is_umt5 = checkpoint.config.relative_bias == "per_layer"
    assert type(theirs).__name__.startswith("UMT5" if is_umt5 else "T5")
    assert_same_model(checkpoint, theirs)


@pytest.mark.parametrize("seed", range(14))
def test_our_random_config_is_the_same_in_transformers(tmp_path, seed):
    kind, changes = random_config(seed)
    checkpoint = make_checkpoint(kind, **changes)
    assert_same_model(checkpoint, load(export(checkpoint, tmp_path / "hf")))


@pytest.mark.parametrize("kind", ["ul2", "t5_1_1", "umt5_untied"])
def test_our_bfloat16_shards_are_the_same_in_transformers(tmp_path, kind):
    path = export(
        make_checkpoint(kind), tmp_path / "hf", "bfloat16", max_shard_bytes=20_000
    )
    assert len(list(path.glob("*.safetensors"))) > 2
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        path, dtype=torch.float32
    )
    assert_same_model(huggingface.read(path), theirs)


def their_model(seed, name=None):
    """Returns a model with random parameters, of the class `name`, tied or not."""
    kind, sizes = random_config(seed)
    if name is None:
        name = "UMT5" if KINDS[kind].get("relative_bias") == "per_layer" else "T5"
    # Without a gate, `gelu` is the erf form, which is not ours.
    act = sizes["activation"]
    gated = sizes["gated"] or act == "gelu"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["embed_dim"],
        d_kv=sizes["head_dim"],
        d_ff=sizes["mlp_dim"],
        num_heads=sizes["num_heads"],
        num_layers=sizes["num_encoder_layers"],
        num_decoder_layers=sizes["num_decoder_layers"],
        relative_attention_num_buckets=sizes["relative_buckets"],
        relative_attention_max_distance=sizes["relative_max_distance"],
        feed_forward_proj=f"gated-{act}" if gated else act,
        layer_norm_epsilon=sizes["norm_epsilon"],
        tie_word_embeddings=KINDS[kind]["tied_embeddings"],
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    if not KINDS[kind]["tied_embeddings"] and seed % 2:
        # Version 5 ties whatever its config says, unless the head is made anew.
        head = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        model.lm_head.weight = head
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "layer_norm" in path:
                parameter.uniform_(0.5, 1.5)
            else:
                scale = 1 if parameter is model.shared.weight else 0.5
                parameter.normal_(std=scale * parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("seed", range(21))
def test_their_model_is_the_same_here(tmp_path, seed):
    dtype = "bfloat16" if seed >= 14 else "float32"
    theirs = their_model(seed).to(getattr(torch, dtype))
    shard = "20KB" if seed % 3 else "5GB"
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    checkpoint = huggingface.read(tmp_path)
    assert checkpoint.config.dtype == dtype
    table = checkpoint.params["embedder.embedding"]
    assert table.dtype.name == dtype
    assert_same_model(checkpoint, theirs)


@pytest.mark.parametrize("seed", [0, 1])
def test_their_mt5_is_the_same_here(tmp_path, seed):
    theirs = their_model(seed, "MT5")
    theirs.save_pretrained(tmp_path)
    checkpoint = huggingface.read(tmp_path)
    assert checkpoint.layout == "mt5"
    assert_same_model(checkpoint, theirs)


@pytest.mark.parametrize("seed", range(7))
def test_their_model_goes_out_again_as_it_came(tmp_path, seed):
    theirs = their_model(seed)
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = huggingface.read(tmp_path / "theirs")
    again = huggingface.read(export(checkpoint, tmp_path / "ours"))
    assert again.config == checkpoint.config
    for path, tensor in checkpoint.params.items():
        assert again.params[path].read().tobytes() == tensor.read().tobytes(), path
    assert_same_model(checkpoint, load(tmp_path / "ours"))
