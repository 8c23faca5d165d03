"""Commonsense and adversarial inference: data sets that are answered by an option.

All are scored by accuracy on the text of the option. Rows without a label, as in hidden
test sets, make no example, and splits that have none are not listed.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Final

from ul2.tasks.metrics import accuracy
from ul2.tasks.multiple_choice import chosen_option, multiple_choice, one_line
from ul2.tasks.published_files import read_json_lines
from ul2.tasks.text_task import Files, Row, TextExample, TextTask, Tfds

ANLI_LABELS: Final = ("entailment", "neutral", "contradiction")
_LABELLED: Final = {"train": "train", "validation": "validation"}
_ALL: Final = {**_LABELLED, "test": "test"}
# Tasks by how much of the training data they use; validation is the same for all.
_WINOGRANDE_SIZES: Final = {
    "winogrande": "xl",
    "winogrande_xs": "xs",
    "winogrande_s": "s",
    "winogrande_m": "m",
    "winogrande_l": "l",
}
_OPENBOOKQA_CHOICES: Final = ("choice_A", "choice_B", "choice_C", "choice_D")
_COMMONSENSEQA: Final = Files(
    folder="commonsenseqa",
    splits={
        "train": "train_rand_split.jsonl",
        "validation": "dev_rand_split.jsonl",
    },
    read=functools.partial(
        read_json_lines,
        shape={
            "answerKey": str,
            "id": str,
            "question": {"stem": str, "choices": [{"label": str, "text": str}]},
        },
    ),
    home="https://www.tau-nlp.org/commonsenseqa",
)


def anli_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of natural language inference, laid out as T5's MNLI.

    inputs   anli hypothesis: Cats sleep. premise: The cat naps.
    targets  entailment
    """
    if row["label"] < 0:
        return
    hypothesis, premise = one_line(row["hypothesis"]), one_line(row["context"])
    yield TextExample(
        inputs=f"anli hypothesis: {hypothesis} premise: {premise}",
        targets=ANLI_LABELS[row["label"]],
        choices=ANLI_LABELS,
        meta={"id": row["uid"]},
    )


def hellaswag_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of how a text goes on; the activity stands before the text.

    inputs   context: Cooking: She cracks an egg. Then she options: (A) flies (B) stirs
    targets  stirs
    """
    if row["label"] < 0:
        return
    context = f"{row['activity_label']}: {row['context']}"
    yield multiple_choice(
        {"context": context},
        row["endings"],
        row["label"],
        meta={"id": row["source_id"]},
    )


def piqa_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of two ways to reach a goal.

    inputs   goal: Dry a shirt. options: (A) Hang it up. (B) Rinse it.
    targets  Hang it up.
    """
    if row["label"] < 0:
        return
    options = (row["sol1"], row["sol2"])
    meta = {"id": row["id"]}
    yield multiple_choice({"goal": row["goal"]}, options, row["label"], meta=meta)


def winogrande_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of what fills a blank.

    inputs   sentence: The cup fits no bag: _ is too big. options: (A) cup (B) bag
    targets  cup
    """
    if row["label"] < 0:
        return
    options = (row["option1"], row["option2"])
    yield multiple_choice({"sentence": row["sentence"]}, options, row["label"])


def arc_examples(row: Row) -> Iterator[TextExample]:
    """Makes a question of three to five options; those carry their own letters.

    inputs   question: What is hot? options: (A) ice (B) fire
    targets  fire
    """
    labels = list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        return
    yield multiple_choice(
        {"question": row["question"]},
        list(row["choices"]["text"]),
        labels.index(row["answerKey"]),
        meta={"id": row["id"]},
    )


def openbookqa_examples(row: Row) -> Iterator[TextExample]:
    """Makes a question of four options, without the fact of the open book.

    inputs   question: Fire is options: (A) wet (B) hot (C) blue (D) old
    targets  hot
    """
    if row["answerKey"] < 0:
        return
    question = row["question"]
    yield multiple_choice(
        {"question": question["stem"]},
        [question[choice] for choice in _OPENBOOKQA_CHOICES],
        row["answerKey"],
        meta={"fact": row["fact1"]},
    )


def commonsenseqa_examples(row: Row) -> Iterator[TextExample]:
    """Makes a question of five options.

    inputs   question: Where is milk cold? options: (A) fridge (B) oven (C) sun ...
    targets  fridge
    """
    choices = row["question"]["choices"]
    labels = [choice["label"] for choice in choices]
    if row["answerKey"] not in labels:
        return
    yield multiple_choice(
        {"question": row["question"]["stem"]},
        [choice["text"] for choice in choices],
        labels.index(row["answerKey"]),
        meta={"id": row["id"]},
    )


def _task(
    name: str,
    source: Tfds | Files,
    to_examples: Callable[[Row], Iterator[TextExample]],
) -> TextTask:
    return TextTask(
        name=name,
        source=source,
        to_examples=to_examples,
        postprocess=chosen_option,
        metrics=(accuracy,),
        validation_metric="accuracy",
        inputs_length=256,
        targets_length=64,
    )


TASKS: Final[tuple[TextTask, ...]] = (
    *(
        _task(f"anli_{part}", Tfds(f"anli/{part}:0.1.0", _ALL), anli_examples)
        for part in ("r1", "r2", "r3")
    ),
    _task("hellaswag", Tfds("hellaswag:1.1.0", _LABELLED), hellaswag_examples),
    _task("piqa", Tfds("piqa:1.0.0", _LABELLED), piqa_examples),
    *(
        _task(
            name,
            Tfds("winogrande:1.2.0", {**_LABELLED, "train": f"train_{size}"}),
            winogrande_examples,
        )
        for name, size in _WINOGRANDE_SIZES.items()
    ),
    _task("arc_easy", Tfds("ai2_arc/ARC-Easy:1.0.0", _ALL), arc_examples),
    _task("arc_challenge", Tfds("ai2_arc/ARC-Challenge:1.0.0", _ALL), arc_examples),
    _task("openbookqa", Tfds("openbookqa:0.1.0", _ALL), openbookqa_examples),
    _task("commonsenseqa", _COMMONSENSEQA, commonsenseqa_examples),
)
