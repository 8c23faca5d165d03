"""What each of UL2's seven denoisers makes of one paragraph. numpy alone: no JAX.

python examples/see_the_denoisers.py [--length 64] [--objective ul2]

Trains a vocabulary on its own text, cuts the paragraph so that inputs and targets fit
`--length` tokens, and prints both sides, the share that was taken, and the text again.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ul2.denoising.denoisers import denoise, merge
from ul2.denoising.mixture import OBJECTIVES, named
from ul2.tasks.tokenizer import Tokenizer, open_tokenizer, train_tokenizer

TEXT = """The model reads a stretch of text that has holes in it, and writes what stood
in the holes. Where the holes are short, it has to know what words mean; where they are
long, it has to make up its mind; and where the hole is the rest of the text, it has to
go on in the same voice. One mixture of the three trains one model for all of them, and
a mode in front of the text says which of the three is asked for this time. """


def make_tokenizer(num_sentinels: int) -> Tokenizer:
    """Trains a vocabulary on the text above."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        return open_tokenizer(train_tokenizer([TEXT] * 3, 512, num_sentinels, path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints an example of every denoiser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=64, help="of either side")
    parser.add_argument("--objective", default="ul2", choices=sorted(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    tokenizer = make_tokenizer(num_sentinels=options.length)
    mixture = named(options.objective)
    fits = mixture.fit(options.length, options.length, tokenizer.vocab)
    ids = tokenizer.encode(" ".join(TEXT.split()) * 3)
    rng = np.random.default_rng(options.seed)
    for denoiser, fit in zip(mixture.denoisers, fits, strict=True):
        tokens = np.array([ids[: fit.text]])
        made = denoise(denoiser, tokens, vocab=tokenizer.vocab, rng=rng)
        inputs = made.inputs[0, : made.input_lengths[0]]
        targets = made.targets[0, : made.target_lengths[0]]
        assert (merge(denoiser, inputs, targets, tokenizer.vocab) == tokens[0]).all()
        print(f"{denoiser.name}  mode {denoiser.mode}  {fit.text} tokens of text")
        print("  inputs ", tokenizer.decode(inputs))
        print("  targets", tokenizer.decode(targets), "\n")


if __name__ == "__main__":
    main()
