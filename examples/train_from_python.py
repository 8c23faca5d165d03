"""Text to a model that fills a blank, in one Python program.

python examples/train_from_python.py --out runs/tutorial [--text 'corpus/*.txt']

What `ul2 tokenize`, `check`, `train` and `infer` do, as calls: a token store, a recipe
out of gin files, the pre-flight table, a run, and the trained model as an object. Two
minutes on two cores; run it again with more `--steps` and it goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import ul2
from ul2 import launch
from ul2.decoding.settings import DecodingSettings
from ul2.tasks.sources import TextSource
from ul2.tasks.tokenization import read_source, tokenize_corpus
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer


def make_store(text: str, out: Path, vocab_size: int, num_sentinels: int) -> Path:
    """Tokenizes text with a vocabulary of its own, unless that is done."""
    store = out / "store"
    if not store.exists():
        out.mkdir(parents=True, exist_ok=True)
        source = TextSource(files=text, held_out_share=0.05)
        documents = (one.text for split, one in read_source(source) if split == "train")
        model = out / "tokenizer.model"
        model.unlink(missing_ok=True)
        train_tokenizer(documents, vocab_size, num_sentinels, model)
        tokenize_corpus(source, store, open_tokenizer(model), num_workers=1)
    return store


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and fills a blank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="embedded", help="as for `ul2 tokenize`")
    parser.add_argument("--out", default="runs/tutorial")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--gin_file", action="append", default=[], help="read last")
    options = parser.parse_args(arguments)
    out = Path(options.out)

    store = make_store(options.text, out, options.vocab_size, num_sentinels=64)
    files = [
        "configs/models/enc_dec_tiny.gin",
        "configs/objectives/ul2.gin",
        "configs/runs/quickstart.gin",
        *options.gin_file,
    ]
    bindings = [
        ("DATA", str(store)),
        ("MODEL_DIR", str(out / "run")),
        ("TOTAL_STEPS", str(options.steps)),
    ]
    for row in launch.check(files, bindings)["denoisers"]:
        print(f"{row['name']:8} {row['measured_noise_density']:.3f} of the text")
    summary = launch.train(launch.read(files, bindings))
    print(f"step {summary.step}, held-out loss {summary.evaluation.get('loss')}")

    model = ul2.load(out / "run")
    settings = DecodingSettings(max_tokens=8)
    print(model.infill("Return a new ___ from the arguments.", settings=settings))


if __name__ == "__main__":
    main()
