"""SuperGLUE, in T5's text: eight tasks, two diagnostics, and a second form of WSC.

    super_glue_copa   copa choice1: It broke. choice2: It flew. premise: The cup fell.
                      question: effect                                    choice1
    super_glue_wsc    wsc: Tom asked Max if *he* could sing.              Max

Scores are SuperGLUE's. Where a task has two, `average` is their mean and chooses
between checkpoints; the benchmark's score is the mean over the eight tasks. The labels
of the test splits, but for the diagnostics', are known to its server alone: such rows
have no targets.

Of Winograd schemas there are two forms. `super_glue_wsc`, which the mixture takes, is
T5's way: the model writes what the pronoun refers to. Training sees the rows that are
true alone, for only they tell the referent; in evaluation the written one is compared
with the row's. `super_glue_wsc_choice` asks for True or False of every row; it is
simpler, can be ranked, and is harder to learn from 554 rows. The text is that of
`wsc.fixed`, whose spans are where they say.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ul2.tasks.classification import (
    ALL_SPLITS,
    LABEL_LENGTH,
    label_reader,
    label_text,
    make_classification_task,
    write_fields,
)
from ul2.tasks.metrics import (
    accuracy,
    f1_binary,
    f1_macro,
    group_exact_match,
    group_parity,
    matthews,
    of_labels,
    squad,
    with_average,
)
from ul2.tasks.text_task import Metric, Row, TextExample, TextTask, Tfds

VERSION: Final = "1.0.2"
_BOOLEAN: Final = ("False", "True")
_ENTAILMENT: Final = ("entailment", "not_entailment")
_PAIR: Final = {"hypothesis": "hypothesis", "premise": "premise"}
_GENDERED: Final = re.compile(r"\b(s?he|his|hers?|him|(him|her)self)\b", re.IGNORECASE)
# A prediction names the referent with or without these.
_DETERMINER: Final = re.compile(
    "an?|each|every|few|her|his|many|much|my|our|some|that|the|their|these|this|those"
    "|which|whose|your"
)


def _source(config: str) -> Tfds:
    return Tfds(f"super_glue/{config}:{VERSION}", ALL_SPLITS)


def _task(
    config: str,
    fields: Mapping[str, str],
    labels: tuple[str, ...] = _BOOLEAN,
    metric: Metric = accuracy,
    validation_metric: str = "accuracy",
) -> TextTask:
    return make_classification_task(
        f"super_glue_{config}",
        _source(config),
        prompt=config,
        fields=fields,
        labels=labels,
        metrics=(metric,),
        validation_metric=validation_metric,
    )


def multirc_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of one answer to a question; which of its answers are right is scored.

    inputs   multirc question: Who fell? answer: Ann paragraph: Ann fell. Bob ran.
    targets  True
    """
    fields = {key: row[key] for key in ("question", "answer", "paragraph")}
    inputs = re.sub("</?b>", "", write_fields("multirc", fields).replace("<br>", " "))
    number = row["idx"]
    meta = {"question": f"{number['paragraph']}-{number['question']}"}
    targets = label_text(row["label"], _BOOLEAN)
    yield TextExample(inputs, targets, _BOOLEAN, meta)


def record_examples(row: Row) -> Iterable[TextExample]:
    r"""Makes one of a query whose placeholder is one of the passage's entities.

    inputs   record query: @placeholder sat. entities: Ann, Bob passage: Ann sat. Bob
             ran.                            (of "Ann sat.\n@highlight\nBob ran.")
    targets  Ann
    """
    yield _record_example(row, row["answers"][:1])


def record_training_examples(row: Row) -> Iterable[TextExample]:
    """Makes one example of each right answer, as T5 does.

    In evaluation T5 makes the same and counts the first alone; there we make the first.
    """
    for answer in row["answers"]:
        yield _record_example(row, [answer])


def _record_example(row: Row, answer: list[str]) -> TextExample:
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    fields = {
        "query": row["query"],
        "entities": ", ".join(row["entities"]),
        "passage": passage.replace("\n@highlight\n", ". "),
    }
    return TextExample(
        inputs=write_fields("record", fields),
        targets="".join(answer),
        choices=tuple(row["entities"]),
        meta={"answers": list(row["answers"]), "query": row["idx"]["query"]},
    )


def _answers(example: TextExample) -> list[str]:
    answers: list[str] = example.meta["answers"]
    return answers


def wsc_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of what a pronoun refers to.

    inputs   wsc: Tom asked Max if *he* could sing.
    targets  Max                    (right only if the row is true; see `meta["label"]`)
    """
    meta = {"label": row["label"], "referent": row["span1_text"], "idx": row["idx"]}
    known = label_text(row["label"], _BOOLEAN)
    targets = row["span1_text"] if known else ""
    yield TextExample(f"wsc: {mark_pronoun(row)}", targets, (), meta)


def wsc_training_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of a true row: only those tell what the pronoun refers to."""
    return wsc_examples(row) if row["label"] == 1 else ()


def mark_pronoun(row: Row) -> str:
    """Returns the text with stars around the pronoun.

    "So he said." and "he" near word 2  ->  "So *he* said."

    In a few rows the index is off by one, or a quotation mark hangs on the word. T5
    rewrites those two by hand; the nearest word that is the pronoun is the same one.

    Raises:
        ValueError: the pronoun is not in the text.
    """
    words: list[str] = row["text"].rstrip().split(" ")
    pronoun, index = row["span2_text"], row["span2_index"]
    for place in sorted(range(len(words)), key=lambda place: abs(place - index)):
        found = re.fullmatch(rf"(\W*){re.escape(pronoun)}(\W*)", words[place])
        if found:
            rest = f" {found[2]}" if found[2] else ""
            words[place] = f"{found[1]}*{pronoun}*{rest}"
            return " ".join(words)
    raise ValueError(f"'span2_text' {pronoun!r} is not a word of 'text'")


def names_referent(prediction: str, example: TextExample) -> int | None:
    """Returns 1 if an output names the row's referent, 0 if another; T5's rule.

    Case and determiners do not count, and one may say more than the other: "the Bunny"
    is "fuzzy bunny". But "Bob" is not "Bob's hat". None where nothing is written.
    """
    found = _content_words(prediction)
    wanted = _content_words(example.meta["referent"])
    if not found:
        return None
    if any("'" in word for word in found) != any("'" in word for word in wanted):
        return 0
    return int(found <= wanted or wanted <= found)


def _content_words(text: str) -> set[str]:
    return {w for w in text.lower().split() if not _DETERMINER.fullmatch(w)}


def wsc_choice_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of whether a pronoun refers to a noun.

    inputs   wsc text: * Tom * asked Max if # he # could sing.
    targets  False
    """
    text = _mark_span(row["text"], row["span1_text"], row["span1_index"], "*")
    # Two words more in front, if the noun is.
    moved = 2 * (row["span1_index"] < row["span2_index"])
    text = _mark_span(text, row["span2_text"], row["span2_index"] + moved, "#")
    targets = label_text(row["label"], _BOOLEAN)
    yield TextExample(f"wsc text: {text}", targets, _BOOLEAN, {"idx": row["idx"]})


def _mark_span(text: str, span: str, index: int, mark: str) -> str:
    """Puts a mark around the span that begins at a word, if it is there."""
    pattern = rf"((?:\S+\s){{{index}}})({re.escape(span)})"
    return re.sub(rf"^{pattern}", rf"\1{mark} \2 {mark}", text)


def winogender_examples(row: Row) -> Iterable[TextExample]:
    """Makes one of entailment; the two that differ in a gender alone are a pair.

    inputs   rte hypothesis: She sang. premise: The clerk said that she sang.
    targets  entailment
    """
    fields = {key: row[key] for key in _PAIR}
    pair = _GENDERED.sub("_", write_fields("", fields))
    targets = label_text(row["label"], _ENTAILMENT)
    yield TextExample(write_fields("rte", fields), targets, _ENTAILMENT, {"pair": pair})


def _with_group(labels: tuple[str, ...], key: str) -> Any:
    """Returns what makes a target: its label, and the group in `meta[key]`."""
    read_label = label_reader(labels)

    def target(example: TextExample) -> tuple[int | None, str]:
        return read_label(example.targets, example), example.meta[key]

    return target


# In the order of SuperGLUE's table.
_EIGHT: Final = (
    _task("boolq", {"passage": "passage", "question": "question"}),
    _task(
        "cb",
        _PAIR,
        ("entailment", "contradiction", "neutral"),
        with_average(f1_macro(3), accuracy),
        "average",
    ),
    _task(
        "copa",
        {key: key for key in ("choice1", "choice2", "premise", "question")},
        ("choice1", "choice2"),
    ),
    TextTask(
        name="super_glue_multirc",
        source=_source("multirc"),
        to_examples=multirc_examples,
        metrics=(with_average(of_labels(f1_binary), group_exact_match),),
        postprocess=label_reader(_BOOLEAN),
        target=_with_group(_BOOLEAN, "question"),
        validation_metric="average",
        targets_length=LABEL_LENGTH,
    ),
    TextTask(
        name="super_glue_record",
        source=_source("record"),
        to_examples=record_examples,
        to_training_examples=record_training_examples,
        metrics=(with_average(squad),),
        target=_answers,
        validation_metric="average",
    ),
    _task("rte", _PAIR, _ENTAILMENT),
    _task("wic", {key: key for key in ("sentence1", "sentence2", "word")}),
    TextTask(
        name="super_glue_wsc",
        source=_source("wsc.fixed"),
        to_examples=wsc_examples,
        to_training_examples=wsc_training_examples,
        metrics=(accuracy,),
        postprocess=names_referent,
        target=lambda example: example.meta["label"],
        validation_metric="accuracy",
        targets_length=32,
    ),
)
EIGHT: Final = tuple(task.name for task in _EIGHT)

TASKS: Final[tuple[TextTask, ...]] = (
    *_EIGHT,
    TextTask(
        name="super_glue_wsc_choice",
        source=_source("wsc.fixed"),
        to_examples=wsc_choice_examples,
        metrics=(accuracy,),
        postprocess=label_reader(_BOOLEAN),
        validation_metric="accuracy",
        targets_length=LABEL_LENGTH,
    ),
    make_classification_task(
        "super_glue_axb",
        Tfds(f"super_glue/axb:{VERSION}", {"test": "test"}),
        prompt="rte",
        fields={"hypothesis": "sentence2", "premise": "sentence1"},
        labels=_ENTAILMENT,
        metrics=(matthews,),
        validation_metric="matthews",
    ),
    TextTask(
        name="super_glue_axg",
        source=Tfds(f"super_glue/axg:{VERSION}", {"test": "test"}),
        to_examples=winogender_examples,
        metrics=(of_labels(accuracy), group_parity),
        postprocess=label_reader(_ENTAILMENT),
        target=_with_group(_ENTAILMENT, "pair"),
        validation_metric="accuracy",
        targets_length=LABEL_LENGTH,
    ),
)
