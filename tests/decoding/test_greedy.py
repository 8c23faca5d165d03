import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ul2.batch import Batch, one_per_row
from ul2.decoding.greedy import greedy
from ul2.models.config import ModelConfig
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.vocab import Vocab

VOCAB = Vocab(
    size=60,
    padded_size=128,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=(50, 51),
    mode_ids={"[R]": (52,), "[S]": (53,), "[X]": (54,)},
    mode_convention="paper",
    tokenizer_sha256="toy",
)
PROMPTS = [[52, 10, 11, 12, 1], [13, 1], [53, 20, 21, 22, 23, 24, 25, 26, 1]]


def make_model(architecture):
    config = ModelConfig(
        vocab_size=128,
        embed_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=2 if architecture is EncoderDecoder else 0,
        num_decoder_layers=2,
        activation="silu",
        gated=True,
        positions="relative",
        tied_embeddings=False,
        dropout_rate=0.0,
        dtype="float32",
        remat="none",
    )
    return architecture(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module", params=[EncoderDecoder, DecoderOnly])
def model(request):
    return make_model(request.param)


def teacher_forced(model, prompt, output):
    """Returns the likeliest token at every place of an output, without the loop."""
    if model.architecture == "encoder_decoder":
        encoder, read, first = one_per_row([prompt]), [0, *output], 0
    else:
        encoder, read, first = None, [0, *prompt, *output], len(prompt)
    decoder = one_per_row([read])
    zeros = np.zeros(decoder.tokens.shape, np.int32)
    prefixes = np.array([[first + 1 if encoder is None else 0]], np.int32)
    batch = Batch(encoder, decoder, zeros, zeros, zeros, prefixes)
    return np.asarray(jnp.argmax(model.logits(batch), -1))[0, first:].tolist()


def test_every_token_is_the_likeliest_after_those_before_it(model):
    outputs = greedy(model, PROMPTS, VOCAB, max_tokens=12)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        likeliest = teacher_forced(model, prompt, output)
        assert likeliest[: len(output)] == output
        assert len(output) == 12 or likeliest[len(output)] == VOCAB.eos_id


def test_rows_of_a_batch_do_not_influence_each_other(model):
    together = greedy(model, PROMPTS, VOCAB, max_tokens=8)
    alone = [greedy(model, [one], VOCAB, max_tokens=8)[0] for one in PROMPTS]
    assert together == alone


def test_forced_ids_begin_the_output_and_count(model):
    forced = [[50], [], [50, 30]]
    outputs = greedy(model, PROMPTS, VOCAB, max_tokens=5, forced=forced)
    for start, prompt, output in zip(forced, PROMPTS, outputs, strict=True):
        assert output[: len(start)] == start
        assert len(output) <= 5
        rest = teacher_forced(model, prompt, output)[len(start) : len(output)]
        assert rest == output[len(start) :]


def test_eos_ends_a_row_and_is_left_out(model):
    free = greedy(model, PROMPTS, VOCAB, max_tokens=6)
    # Whatever the first row writes first is now what ends a text.
    ending = dataclasses.replace(VOCAB, eos_id=free[0][0], unk_id=1)
    outputs = greedy(model, PROMPTS, ending, max_tokens=6)
    assert outputs[0] == []
    for before, after in zip(free, outputs, strict=True):
        cut = before.index(free[0][0]) if free[0][0] in before else len(before)
        assert after == before[:cut]
