"""Greedy decoding and beam search write what T5X, Flaxformer and transformers write."""

import numpy as np
import pytest
from model_fixtures import GOLDENS, golden_model
from tolerances import DECODED_SCORE_ATOL
from vocab_toys import toy_vocab

from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings

EOS = 1
MAX_TOKENS = 12
VOCAB = toy_vocab(512, 512, eos_id=EOS)
CHANGES = {
    "t5x_unscanned": {},
    "flaxformer_ul2": {"tied_embeddings": True, "decoder_final_norm_scale": False},
    "t5x_scanned": {"relative_bias": "per_layer"},
    "t5x_decoder_only": {},
}


class Golden(dict):
    """The arrays of a golden file, and those of its vocabulary that it leaves out."""

    @property
    def files(self):
        return list(self)


def read_golden(name):
    """Returns the decodes of a model, and the arrays it is built from."""
    decodes = {}
    for key, array in np.load(GOLDENS / "decoding.npz").items():
        model, key = key.split("/")
        if model == name:
            decodes[key] = array
    golden = Golden(np.load(GOLDENS / f"{name}.npz"))
    if "rows" in decodes:
        stack = "decoder/" if name == "t5x_decoder_only" else ""
        table = f"param/{stack}token_embedder/embedding"
        golden["rows"] = np.concatenate([golden["rows"], decodes["rows"]])
        golden[table] = np.concatenate([golden[table], decodes["embedding"]])
    if "head" in decodes:
        # The golden has the head's columns 0, 16, 32, ...; here are the others.
        kept = golden["param/decoder/logits_dense/kernel"][:, :, None]
        others = decodes["head"].reshape(32, 32, 15)
        whole = np.concatenate([kept, others], axis=2).reshape(32, 512)
        golden["param/decoder/logits_dense/kernel"] = whole
    return decodes, golden


def make_generator(name):
    decodes, golden = read_golden(name)
    decoder_only = name == "t5x_decoder_only"
    architecture = "decoder_only" if decoder_only else "encoder_decoder"
    model = golden_model(golden, architecture, **CHANGES[name])
    return decodes, Generator(model, VOCAB)


def until_eos(tokens):
    """Returns the ids before EOS, and whether there is one."""
    ids = np.asarray(tokens).tolist()
    return (ids[: ids.index(EOS)], True) if EOS in ids else (ids, False)


def read_inputs(decodes):
    return [row[row > 0].tolist() for row in decodes["inputs"]]


def assert_decoded(outputs, tokens, scores):
    """Compares the outputs of one example, both the best first."""
    assert [(one.ids, one.finished) for one in outputs] == [
        until_eos(row) for row in tokens
    ]
    np.testing.assert_allclose(
        [one.score for one in outputs], scores, rtol=0, atol=DECODED_SCORE_ATOL
    )


@pytest.mark.parametrize("name", ["t5x_unscanned", "t5x_scanned", "flaxformer_ul2"])
def test_greedy_decoding_matches_t5x(name):
    decodes, generator = make_generator(name)
    outputs = generator.generate(
        read_inputs(decodes), DecodingSettings(max_tokens=MAX_TOKENS)
    )
    for output, tokens, log_prob in zip(
        outputs, decodes["greedy_tokens"], decodes["greedy_log_prob"], strict=True
    ):
        assert_decoded(output, [tokens], [log_prob])
        assert output[0].log_prob == output[0].score


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["t5x_unscanned", "t5x_scanned", "flaxformer_ul2"])
def test_beam_search_matches_t5x(name, beams):
    decodes, generator = make_generator(name)
    settings = DecodingSettings(
        max_tokens=MAX_TOKENS, num_beams=beams, num_decodes=beams, length_penalty=0.6
    )
    outputs = generator.generate(read_inputs(decodes), settings)
    for output, tokens, scores in zip(
        outputs,
        decodes[f"beam{beams}_tokens"],
        decodes[f"beam{beams}_scores"],
        strict=True,
    ):
        # T5X has the best last, and fills up with nothing, worth -1e7.
        places = [place for place in reversed(range(beams)) if scores[place] > -1e6]
        assert places
        assert_decoded(output, tokens[places], scores[places])


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [1.0, 0.6])
@pytest.mark.parametrize("name", ["t5x_unscanned", "flaxformer_ul2"])
def test_beam_search_matches_huggingface(name, length_penalty, early_stopping):
    decodes, generator = make_generator(name)
    settings = DecodingSettings(
        max_tokens=MAX_TOKENS,
        num_beams=4,
        num_decodes=4,
        length_rule="huggingface",
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    outputs = generator.generate(read_inputs(decodes), settings)
    case = f"huggingface_beam4_lp{length_penalty}_early{int(early_stopping)}"
    for output, tokens, scores in zip(
        outputs, decodes[case], decodes[f"{case}_scores"], strict=True
    ):
        assert_decoded(output, tokens, scores)


@pytest.mark.parametrize("name", ["t5x_unscanned", "flaxformer_ul2"])
def test_greedy_decoding_matches_huggingface(name):
    decodes, generator = make_generator(name)
    outputs = generator.generate(
        read_inputs(decodes), DecodingSettings(max_tokens=MAX_TOKENS)
    )
    for (output,), tokens in zip(outputs, decodes["huggingface_greedy"], strict=True):
        assert (output.ids, output.finished) == until_eos(tokens)


def test_decoder_only_greedy_decoding_matches_t5x():
    decodes, generator = make_generator("t5x_decoder_only")
    inputs = [row[1:n].tolist() for row, n in read_prefixes(decodes)]
    # T5X's rows have 20 columns: the longer the inputs, the less is written.
    lengths = [20 - len(row) for row in inputs]
    outputs = generator.generate(inputs, DecodingSettings(max_tokens=max(lengths)))
    for (output,), tokens, length in zip(
        outputs, decodes["prefix_greedy_tokens"], lengths, strict=True
    ):
        assert output.ids[:length] == tokens[:length].tolist()
        assert not output.finished
    longest = lengths.index(max(lengths))
    assert outputs[longest][0].log_prob == pytest.approx(
        decodes["prefix_greedy_log_prob"][longest], abs=DECODED_SCORE_ATOL
    )


def test_causal_greedy_decoding_matches_t5x():
    decodes, generator = make_generator("t5x_decoder_only")
    # Forced tokens see only what is before them, as a causal model's inputs do.
    forced = [row[1:n].tolist() for row, n in read_prefixes(decodes)]
    outputs = generator.generate(
        [[]] * len(forced), DecodingSettings(max_tokens=20), forced=forced
    )
    for (output,), start, tokens, log_prob in zip(
        outputs,
        forced,
        decodes["causal_greedy_tokens"],
        decodes["causal_greedy_log_prob"],
        strict=True,
    ):
        assert output.ids == start + tokens[: 20 - len(start)].tolist()
        assert not output.finished
        assert output.log_prob == pytest.approx(log_prob, abs=DECODED_SCORE_ATOL)


def read_prefixes(decodes):
    """Returns the columns of each prefix, and how many there are."""
    return list(zip(decodes["inputs"], decodes["input_lengths"], strict=True))
