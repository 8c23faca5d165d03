"""A store, and the flags of the smallest recipe over it."""

import json

from ul2.tasks.sources import TextSource
from ul2.tasks.tokenization import tokenize_corpus
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

WORDS = (
    "the model reads every word of this long story before it writes a new line about "
    "rivers mountains birds and small towns where people talk of bread rain and music"
)
TINY = {
    "EMBED_DIM": 16,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "MLP_DIM": 32,
    "NUM_DECODER_LAYERS": 1,
    "INPUTS_LENGTH": 32,
    "TARGETS_LENGTH": 32,
    "BATCH_SIZE": 16,
    "EVAL_BATCHES": 1,
    "LOG_EVERY_STEPS": 1,
    "MESH": "data=8",
}


def write_corpus(path, num_documents=400, seed=0):
    """Writes documents of words in an order that never repeats itself."""
    words, state = WORDS.split(), seed + 1
    with path.open("w") as file:
        for _ in range(num_documents):
            text = []
            for _ in range(40):
                state = (state * 1103515245 + 12345) % 2**31
                text.append(words[state // 65536 % len(words)])
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    return path


def make_store(folder, *, vocab_size=500, num_sentinels=40, seed=0):
    corpus = write_corpus(folder / "corpus.jsonl", seed=seed)
    source = TextSource(files=str(corpus), held_out_share=0.2)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    model = train_tokenizer(texts, vocab_size, num_sentinels, folder / "t.model")
    tokenize_corpus(
        source,
        folder / "store",
        open_tokenizer(model),
        num_workers=1,
        progress=False,
    )
    return folder / "store"


def flags(
    store,
    *,
    model="enc_dec_tiny",
    objective="ul2",
    run="pretrain",
    **macros,
):
    """Returns the flags of a recipe; a macro of "-" is left out."""
    if model.startswith("enc_dec"):
        macros = {"NUM_ENCODER_LAYERS": 1, **macros}
    macros = {"DATA": str(store), "TOTAL_STEPS": 3, **TINY, **macros}
    files = (f"models/{model}", f"objectives/{objective}", f"runs/{run}")
    return [
        *(f"--gin_file=configs/{name}.gin" for name in files),
        *(f"--gin.{name}={value}" for name, value in macros.items() if value != "-"),
    ]
