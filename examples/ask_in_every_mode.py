"""One model, one text, every mode: what it writes, and how likely it finds an answer.

python examples/ask_in_every_mode.py --checkpoint runs/tutorial/run

A mode is chosen, not trained anew: the same parameters read `[R]`, `[S]`, `[X]` or
nothing in front of the text.
"""

import argparse
from collections.abc import Sequence

import ul2
from ul2.decoding.settings import DecodingSettings

MODES = ("R", "S", "X", None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--text", default="Return the first item of")
    parser.add_argument("--answer", default=" the list")
    parser.add_argument("--max_tokens", type=int, default=12)
    options = parser.parse_args(arguments)

    model = ul2.load(options.checkpoint)
    # A batch: one text in four modes.
    texts = [options.text] * len(MODES)
    settings = DecodingSettings(max_tokens=options.max_tokens)
    written = model.generate(texts, modes=MODES, settings=settings)
    scores = model.score(texts, [options.answer] * len(MODES), modes=MODES)
    for mode, outputs, score in zip(MODES, written, scores, strict=True):
        per_token = score.log_prob / score.num_tokens
        print(f"{mode or 'none':5} {per_token:8.3f} nats a token  {outputs[0].text!r}")


if __name__ == "__main__":
    main()
