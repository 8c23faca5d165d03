"""Arithmetic and multi-step reasoning, each with and without a chain of thought.

    task        inputs                       targets
    svamp       Q: Ann has 3 ... left? A:    1
    svamp_cot   Q: Ann has 3 ... left? A:    3 - 2 = 1. The answer is 1.

Inputs are laid out as in the chain-of-thought paper (arXiv 2201.11903), with spaces for
its line breaks, so that exemplars and question read alike in every vocabulary. The
rationale is the data set's own: GSM8K's without calculator annotations, AQuA's without
its closing "Answer: B", StrategyQA's facts, and the equation where a data set has no
more. An output is scored by the answer that `answers.py` finds in it, so both tasks of
a data set take an answer in either form; numbers are compared by value.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final, NamedTuple

from ul2.tasks.answers import (
    extract_choice,
    extract_number,
    extract_yes_no,
    number_alone,
    spell_number,
)
from ul2.tasks.metrics import accuracy
from ul2.tasks.multiple_choice import lettered, one_line
from ul2.tasks.published_files import (
    NUMBER,
    read_json_lines,
    read_json_list,
    read_xml_problems,
)
from ul2.tasks.text_task import Files, Row, TextExample, TextTask, Tfds

MAWPS_PARTS: Final = ("SingleOp", "SingleEq", "AddSub", "MultiArith")
_ANNOTATION: Final = re.compile(r"<<([^<>]*)>>")
_OPTION_LETTER: Final = re.compile(r"\s*\(?[A-E]\s*\)\s*")
_UNIT: Final = re.compile(r"\s*\([^()]*\)$")
# What the last line of AQuA's rationales consists of where it names the answer alone.
_VERDICT_WORDS: Final = frozenset(
    {"ans", "answer", "be", "choice", "correct", "hence", "is", "option"}
    | {"our", "so", "the", "therefore", "thus", "will"}
)


class Problem(NamedTuple):
    """A question, its answer, and how one gets there.

    Attributes:
        question: what stands between "Q:" and "A:".
        answer: a number in its one spelling, a letter, yes or no.
        rationale: sentences; empty where there are none.
        meta: of the example.
    """

    question: str
    answer: str
    rationale: str
    meta: Mapping[str, Any]


class _Answers(NamedTuple):
    """What kind of answers a data set has."""

    find: Callable[[str], str | None]
    choices: tuple[str, ...] = ()
    written: str = "{}"


_NUMBERS: Final = _Answers(extract_number)
_LETTERS: Final = _Answers(extract_choice, tuple("ABCDE"), "({})")
_YES_NO: Final = _Answers(extract_yes_no, ("yes", "no"))


def gsm8k_problem(row: Row) -> Problem | None:
    """Reads a row of TFDS's: `annotation` is the solution, `short_answer` its end.

    She sells 9 * 2 = $<<9*2=18>>18.  ->  She sells 9 * 2 = $18.
    """
    answer = number_alone(row["short_answer"])
    if answer is None:
        return None
    solution = row["annotation"]
    return Problem(
        question=row["question"],
        answer=answer,
        rationale=_sentences(_ANNOTATION.sub("", solution).splitlines()),
        meta={"equations": _ANNOTATION.findall(solution)},
    )


def svamp_problem(row: Row) -> Problem | None:
    """Reads a row of SVAMP.json: the equation is an expression, without its result.

    ( ( 8.0 - 2.0 ) * 3.0 )  ->  (8 - 2) * 3 = 18.
    """
    answer = spell_number(row["Answer"])
    if answer is None:
        return None
    return Problem(
        question=f"{row['Body']} {row['Question']}",
        answer=answer,
        rationale=f"{_expression(row['Equation'])} = {answer}.",
        meta={"id": row["ID"], "equations": [row["Equation"]]},
    )


def asdiv_problem(row: Row) -> Problem | None:
    """Reads a problem of ASDiv.xml whose answer is one number: "9 (apples)".

    About a tenth ask for names, times, ratios or several numbers; they are left out.
    """
    text = row["Answer"]
    answer = number_alone(text) or number_alone(_UNIT.sub("", text))
    if answer is None:
        return None
    return Problem(
        question=f"{row['Body']} {row['Question']}",
        answer=answer,
        rationale=_sentences([row["Formula"]]),
        meta={"id": row["ID"], "equations": [row["Formula"]]},
    )


def mawps_problem(row: Row) -> Problem | None:
    """Reads a problem with one solution; equations name the unknown X or x.

    X=((5.0+4.0)-2.0)  ->  (5+4)-2 = 7.
    7-x=3              ->  7-x=3, so x = 4.
    """
    if len(row["lSolutions"]) != 1 or not row["lEquations"]:
        return None
    [solution] = row["lSolutions"]
    answer = (
        number_alone(solution) if isinstance(solution, str) else spell_number(solution)
    )
    if answer is None:
        return None
    return Problem(
        question=row["sQuestion"],
        answer=answer,
        rationale=_solved(row["lEquations"][0], answer),
        meta={"id": str(row["iIndex"]), "equations": list(row["lEquations"])},
    )


def aqua_problem(row: Row) -> Problem | None:
    """Reads a row of AQuA, whose options begin with their letters: "A)125"."""
    letter = row["correct"].strip()
    options = [_OPTION_LETTER.sub("", option, count=1) for option in row["options"]]
    if letter not in tuple(ascii_uppercase[: len(options)]):
        return None
    return Problem(
        question=f"{row['question']} Answer Choices: {lettered(options)}",
        answer=letter,
        rationale=_sentences(_without_verdict(row["rationale"], letter)),
        meta={},
    )


def strategyqa_problem(row: Row) -> Problem:
    """Reads a row of StrategyQA; its facts are the rationale."""
    return Problem(
        question=f"Yes or no: {row['question']}",
        answer="yes" if row["answer"] else "no",
        rationale=_sentences(row["facts"]),
        meta={"id": row["qid"], "decomposition": list(row["decomposition"])},
    )


def _sentences(lines: Sequence[str]) -> str:
    """Joins lines into one, each ended by a full stop if nothing else ends it."""
    texts = [one_line(line) for line in lines if line.strip()]
    return " ".join(text if text[-1] in ".!?:;," else f"{text}." for text in texts)


def _expression(text: str) -> str:
    """Writes an expression without needless `.0`, spaces and outer parentheses."""
    text = one_line(re.sub(r"(?<=[0-9])\.0+(?![0-9])", "", text))
    text = text.replace("( ", "(").replace(" )", ")")
    return text[1:-1] if _is_wrapped(text) else text


def _is_wrapped(text: str) -> bool:
    """Whether the first parenthesis of a text is closed by the last character."""
    if not (text.startswith("(") and text.endswith(")")):
        return False
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index == len(text) - 1
    return False


def _solved(equation: str, answer: str) -> str:
    """Writes an equation of one unknown with its solution."""
    sides = [_expression(side.strip()) for side in equation.split("=")]
    others = [side for side in sides if side not in ("x", "X")]
    if len(sides) == 2 and len(others) == 1 and "x" not in others[0].lower():
        return f"{others[0]} = {answer}."
    return f"{_expression(equation)}, so x = {answer}."


def _without_verdict(rationale: str, letter: str) -> list[str]:
    """Returns the lines of a rationale, the last left out if it only names a letter."""
    lines = [line for line in rationale.splitlines() if line.strip()]
    words = re.findall(r"[A-Za-z0-9]+", lines[-1]) if lines else []
    if letter in words and all(
        w == letter or w.lower() in _VERDICT_WORDS for w in words
    ):
        return lines[:-1]
    return lines


def _examples(
    row: Row,
    to_problem: Callable[[Row], Problem | None],
    answers: _Answers,
    chain_of_thought: bool,
) -> Iterator[TextExample]:
    problem = to_problem(row)
    if problem is None:
        return
    targets = problem.answer
    if chain_of_thought:
        answer = answers.written.format(problem.answer)
        targets = f"{problem.rationale} The answer is {answer}.".lstrip()
    yield TextExample(
        inputs=f"Q: {one_line(problem.question)} A:",
        targets=targets,
        choices=() if chain_of_thought else answers.choices,
        meta={"answer": problem.answer, **problem.meta},
    )


def _answer(
    prediction: str, example: TextExample, find: Callable[[str], str | None]
) -> str | None:
    del example
    return find(prediction)


def _right_answer(example: TextExample) -> str:
    answer: str = example.meta["answer"]
    return answer


def _tasks(
    name: str,
    source: Tfds | Files,
    to_problem: Callable[[Row], Problem | None],
    answers: _Answers,
) -> Iterator[TextTask]:
    """Yields the two tasks of a data set: the answer alone, and `_cot`."""
    for chain_of_thought in (False, True):
        yield TextTask(
            name=f"{name}_cot" if chain_of_thought else name,
            source=source,
            to_examples=functools.partial(
                _examples,
                to_problem=to_problem,
                answers=answers,
                chain_of_thought=chain_of_thought,
            ),
            postprocess=functools.partial(_answer, find=answers.find),
            target=_right_answer,
            metrics=(accuracy,),
            validation_metric="accuracy",
            inputs_length=512,
            targets_length=256 if chain_of_thought else 16,
        )


_GSM8K: Final = Tfds("gsm8k:1.0.0", {"train": "train", "test": "test"})
_SVAMP: Final = Files(
    folder="svamp",
    splits={"test": "SVAMP.json"},
    read=functools.partial(
        read_json_list,
        shape={
            "ID": str,
            "Body": str,
            "Question": str,
            "Equation": str,
            "Answer": NUMBER,
        },
    ),
    home="https://github.com/arkilpatel/SVAMP",
)
_ASDIV: Final = Files(
    folder="asdiv",
    splits={"test": "ASDiv.xml"},
    read=functools.partial(
        read_xml_problems, fields=("ID", "Body", "Question", "Answer", "Formula")
    ),
    home="https://github.com/chaochun/nlu-asdiv-dataset (dataset/ASDiv.xml)",
)
_AQUA: Final = Files(
    folder="aqua",
    splits={"train": "train.json", "validation": "dev.json", "test": "test.json"},
    read=functools.partial(
        read_json_lines,
        shape={"question": str, "options": [str], "rationale": str, "correct": str},
    ),
    home="https://github.com/google-deepmind/AQuA",
)
# The official test set has no labels. Its authors split the labelled questions 9 to 1
# for their own models; chain-of-thought papers report on all of them.
_STRATEGYQA: Final = Files(
    folder="strategyqa",
    splits={
        "train": "train.json",
        "validation": "dev.json",
        "all": "strategyqa_train.json",
    },
    read=functools.partial(
        read_json_list,
        shape={
            "qid": str,
            "question": str,
            "answer": bool,
            "facts": [str],
            "decomposition": [str],
        },
    ),
    home=(
        "https://allenai.org/data/strategyqa (strategyqa_train.json), "
        "https://github.com/eladsegal/strategyqa (data/strategyqa)"
    ),
)


def _mawps(part: str) -> Files:
    return Files(
        folder="mawps",
        splits={"test": f"{part}.json"},
        read=functools.partial(
            read_json_list,
            shape={
                "iIndex": int,
                "sQuestion": str,
                "lEquations": [str],
                "lSolutions": [(*NUMBER, str)],
            },
        ),
        home="http://lang.ee.washington.edu/MAWPS",
    )


TASKS: Final[tuple[TextTask, ...]] = (
    *_tasks("gsm8k", _GSM8K, gsm8k_problem, _NUMBERS),
    *_tasks("svamp", _SVAMP, svamp_problem, _NUMBERS),
    *_tasks("asdiv", _ASDIV, asdiv_problem, _NUMBERS),
    *_tasks("aqua", _AQUA, aqua_problem, _LETTERS),
    *(
        task
        for part in MAWPS_PARTS
        for task in _tasks(
            f"mawps_{part.lower()}", _mawps(part), mawps_problem, _NUMBERS
        )
    ),
    *_tasks("strategyqa", _STRATEGYQA, strategyqa_problem, _YES_NO),
)
