"""Parity with T5X and Flaxformer, on parameters and batches of theirs."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_batches import COLUMNS, assert_logits_match, read_batch
from model_fixtures import GOLDENS, golden_model, loss_gradients, t5x_names
from tolerances import GRADIENT_ATOL, LOGITS_ATOL, LOSS_RTOL

TIED = {"tied_embeddings": True, "decoder_final_norm_scale": False}
ENCODER_DECODERS = {
    "t5x_unscanned": {},
    "flaxformer_ul2": TIED,
    "t5x_scanned": {"relative_bias": "per_layer"},
}


def load_encoder_decoder(name, **changes):
    golden = np.load(GOLDENS / f"{name}.npz")
    return golden, golden_model(
        golden, "encoder_decoder", **ENCODER_DECODERS[name], **changes
    )


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("t5x_unscanned", "plain"),
        ("t5x_unscanned", "packed"),
        ("t5x_unscanned", "long"),
        ("flaxformer_ul2", "plain"),
        ("flaxformer_ul2", "packed"),
        ("flaxformer_ul2", "long"),
        ("t5x_scanned", "plain"),
        ("t5x_scanned", "packed"),
    ],
)
def test_encoder_decoder_logits_and_loss_match_golden(name, case):
    golden, model = load_encoder_decoder(name)
    assert_logits_match(golden, case, model, read_batch(golden, case))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_gathered_attention_matches_golden(name):
    golden, model = load_encoder_decoder(name)
    # A second, empty example in each row makes every attention gather.
    batch = read_batch(golden, "plain", num_examples=2)
    assert_logits_match(golden, "plain", model, batch)


@pytest.mark.parametrize("name", ["t5x_unscanned", "flaxformer_ul2"])
def test_encoder_output_matches_golden(name):
    golden, model = load_encoder_decoder(name)
    batch = read_batch(golden, "plain")
    encoded = np.asarray(model.encode(batch.encoder))
    valid = np.asarray(batch.encoder.segment_ids) > 0
    np.testing.assert_allclose(
        encoded[valid],
        golden["plain/out/encoded"][valid],
        rtol=0,
        atol=LOGITS_ATOL,
    )


@pytest.mark.parametrize("num_examples", [1, 2])
@pytest.mark.parametrize("name", ["t5x_unscanned", "flaxformer_ul2"])
def test_encoder_decoder_gradients_match_golden(name, num_examples):
    golden, model = load_encoder_decoder(name)
    batch = read_batch(golden, "plain", num_examples=num_examples)
    value, gradients = loss_gradients(model, batch)
    np.testing.assert_allclose(value, golden["plain/out/loss"], rtol=LOSS_RTOL)
    compared = set()
    for path, gradient in gradients.items():
        names = t5x_names(path, "encoder_decoder")
        stacked = gradient if "layers" in path else gradient[None]
        for name_in_t5x, layer_gradient in zip(names, stacked, strict=True):
            flat = np.asarray(layer_gradient).ravel()
            expected = golden[f"grad/{name_in_t5x}"]
            sampled = flat[:: max(1, flat.size // 128) | 1]
            greatest = golden[f"gradmax/{name_in_t5x}"]
            np.testing.assert_allclose(
                sampled,
                expected,
                rtol=0,
                atol=GRADIENT_ATOL * greatest,
                err_msg=name_in_t5x,
            )
            np.testing.assert_allclose(np.abs(flat).max(), greatest, rtol=1e-3)
            compared.add(f"grad/{name_in_t5x}")
    assert compared == {key for key in golden.files if key.startswith("grad/")}


@pytest.mark.parametrize("name", ["t5x_unscanned", "flaxformer_ul2"])
def test_bfloat16_logits_stay_near_golden(name):
    golden, model = load_encoder_decoder(name, dtype="bfloat16")
    batch = read_batch(golden, "plain")
    logits = model.logits(batch)
    assert logits.dtype == jnp.float32
    valid = np.asarray(batch.targets) > 0
    difference = logits[..., COLUMNS] - golden["bf16/out/logits"]
    assert np.abs(difference[valid]).mean() < 0.06


@pytest.mark.parametrize(
    ("case", "causal"),
    [
        ("causal_lm", True),
        ("causal_lm_packed", True),
        ("prefix_lm", False),
        ("prefix_lm_causal", True),
        ("prefix_lm_packed", False),
    ],
)
def test_decoder_only_logits_match_golden(case, causal):
    golden = np.load(GOLDENS / "t5x_decoder_only.npz")
    # The golden keeps the columns of the head that it keeps logits for.
    model = golden_model(golden, "decoder_only")
    batch = read_batch(golden, case, "decoder_only")
    if causal:
        batch = batch._replace(prefix_lengths=jnp.zeros_like(batch.prefix_lengths))
    else:
        assert int(batch.prefix_lengths.min()) >= 0 < int(batch.prefix_lengths.max())
    assert_logits_match(golden, case, model, batch)
