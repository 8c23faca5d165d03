"""A model that knows its answers, over one token per word, and tasks to ask it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from ul2.tasks.text_task import Files, TextExample, TextTask
from ul2.vocab import Vocab

_TEXT = (
    "<pad> <eos> <unk> <extra_id_0> <extra_id_1> [R] [S] [X] is it red blue big small "
    "yes no 1 2 3 4 5 6 7 + = so the answer q: a:"
)
WORDS = _TEXT.split()
VOCAB = Vocab(
    size=len(WORDS),
    padded_size=128,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    start_id=0,
    sentinel_ids=(3, 4),
    mode_ids={"[R]": (5,), "[S]": (6,), "[X]": (7,)},
    mode_convention="paper",
    tokenizer_sha256="0" * 64,
)


class WordTokenizer:
    """red blue   <->   10 11"""

    vocab = VOCAB

    def encode(self, text):
        return [
            WORDS.index(word) if word in WORDS[8:] else 2
            for word in text.replace(".", " .").split()
        ]

    def decode(self, ids):
        return " ".join(WORDS[token] for token in ids if token > 1)


class ToyOutput(NamedTuple):
    text: str
    ids: list[int]
    log_prob: float
    score: float = 0.0
    finished: bool = True


class ToyScore(NamedTuple):
    log_prob: float
    num_tokens: int
    token_log_probs: tuple[float, ...] = ()


class ToyModel:
    """Writes `answers[inputs]` (or one per sample), and notes what it was asked."""

    model: Any = None
    tokenizer = WordTokenizer()
    vocab = VOCAB
    trained_modes = ("R", "S")

    def __init__(self, answers, log_probs=None):
        self.answers = answers
        self.log_probs = log_probs or {}
        self.asked = []

    def generate_each(self, prompts, settings, *, keep_sentinels=False):
        # The later ones end first.
        for number, prompt in reversed(list(enumerate(prompts))):
            mode, text = read(prompt)
            self.asked.append((text, mode, number, settings))
            answers = self.answers[text]
            answers = [answers] if isinstance(answers, str) else answers
            if not keep_sentinels:
                answers = [one.replace("<extra_id_0> ", "") for one in answers]
            yield {
                number: [
                    ToyOutput(one, ids_of(one), self.log_probs.get(one, -1.0))
                    for one in answers[: settings.num_decodes]
                ]
            }

    def score_from(self, prompts, targets):
        scores = []
        for prompt, target in zip(prompts, targets, strict=True):
            mode, text = read(prompt)
            assert target[-1] == VOCAB.eos_id
            assert target[: len(prompt.forced)] == prompt.forced
            choice = WordTokenizer().decode(target[len(prompt.forced) :])
            self.asked.append((text, choice, mode))
            log_prob = self.log_probs.get((text, choice), -math.inf)
            scores.append(ToyScore(log_prob, len(target)))
        return scores


def read(prompt):
    """Returns the mode and the text of a prompt, which must end with EOS."""
    assert prompt.inputs[-1] == VOCAB.eos_id
    assert prompt.num_blanks == len(prompt.forced)
    first, modes = prompt.inputs[0], {5: "R", 6: "S", 7: "X"}
    start, end = first in modes, -1 - prompt.num_blanks
    assert prompt.inputs[end:-1] == prompt.forced
    return modes.get(first), WordTokenizer().decode(prompt.inputs[start:end])


def ids_of(text):
    names = {"<extra_id_0>": 3}
    return [names.get(word) or WordTokenizer().encode(word)[0] for word in text.split()]


def accuracy(targets, predictions):
    right = sum(t == p for t, p in zip(targets, predictions, strict=True))
    return {"accuracy": 100 * right / len(targets)}


def read_nothing(path: Path):
    del path
    return []


def make_task(name="toy", **fields):
    fields = {
        "source": Files("toy", {"validation": "*.jsonl"}, read_nothing, "nowhere"),
        "to_examples": lambda row: [TextExample(**row)],
        "metrics": (accuracy,),
        "validation_metric": "accuracy",
        "inputs_length": 16,
        "targets_length": 8,
        **fields,
    }
    return TextTask(name=name, **fields)
