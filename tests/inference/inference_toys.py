"""A tiny model that reads and writes text, made once."""

import dataclasses
import functools
import pathlib
import tempfile

from model_fixtures import tiny_model

from ul2.decoding.text_model import TextModel
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

SENTENCE = "the model reads every word of the story"


@functools.cache
def make_text_model():
    """Returns a random encoder-decoder with a vocabulary of our own, four sentinels."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.model"
        tokenizer = open_tokenizer(train_tokenizer([SENTENCE] * 9, 300, 4, path))
    vocab = dataclasses.replace(tokenizer.vocab, padded_size=384)
    network = tiny_model("encoder_decoder", vocab_size=384)
    identity = {"checkpoint": "toy", "step": 3, "parameters": "00"}
    return TextModel(network, tokenizer, vocab, identity=identity)
