"""A vocabulary as others make them."""

import io

import sentencepiece

from ul2.tasks.tokenizer import open_tokenizer

SENTENCE = "the model reads every word of the story"


def train_foreign(path):
    """A vocabulary as T5's: words start with a space that is dropped at the front."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SENTENCE] * 9),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return open_tokenizer(path, extra_sentinels=4)
