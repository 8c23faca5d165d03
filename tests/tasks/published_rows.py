"""Made-up rows of the data sets that TFDS prepares, as it hands them out."""

from typing import Any

_ANLI = [
    {
        "uid": "a-1",
        "context": "The cat naps on the  mat.",
        "hypothesis": "An animal sleeps.",
        "label": 0,
    },
    {
        "uid": "a-2",
        "context": "Ada has two red bikes.",
        "hypothesis": "Ada has no bike.",
        "label": 2,
    },
]

_WINOGRANDE = [
    {
        "sentence": "The cup did not fit the bag because the _ was too big.",
        "option1": "cup",
        "option2": "bag",
        "label": 0,
    },
    {
        "sentence": "The rope held the boat since the _ was strong.",
        "option1": "boat",
        "option2": "rope",
        "label": 1,
    },
]

_ARC = [
    {
        "id": "arc-1",
        "question": "Which of these is hot?",
        "choices": {"text": ["ice", "fire", "snow"], "label": [0, 1, 2]},
        "answerKey": 1,
    },
    {
        "id": "arc-2",
        "question": "What do plants need?",
        "choices": {
            "text": ["sand", "glass", "paper", "coal", "light"],
            "label": [0, 1, 2, 3, 4],
        },
        "answerKey": 4,
    },
]


def _openbookqa(stem, options, answer):
    names = ("choice_A", "choice_B", "choice_C", "choice_D")
    return {
        "question": {"stem": stem, **dict(zip(names, options, strict=True))},
        "fact1": "a fact",
        "humanScore": 1.0,
        "clarity": 2.0,
        "turkIdAnonymized": "t",
        "answerKey": answer,
    }


def _gsm8k(question, solution, answer):
    return {
        "question": question,
        "answer": f"{solution}\n#### {answer}",
        "annotation": f"{solution}\n",
        "short_answer": answer,
    }


def _hellaswag(context, endings, label):
    return {
        "context": context,
        "endings": endings,
        "activity_label": "Cooking",
        "label": label,
        "split_type": "indomain",
        "source_id": "wikihow~1",
    }


_GSM8K = [
    _gsm8k(
        "A hen lays 2 eggs a day. How many in 600 days, and 3 more?",
        "In 600 days, 2*600=<<2*600=1200>>1200 eggs\n"
        "With 3 more: 1200+3=<<1200+3=1203>>1,203.",
        "1,203",
    ),
    _gsm8k("Pens cost $2. Max buys 4 and owes what?", "$<<2*4=8>>8 are owed.", "-8"),
]


TFDS_ROWS: dict[str, list[dict[str, Any]]] = {
    **{f"anli_{part}": _ANLI for part in ("r1", "r2", "r3")},
    "hellaswag": [
        _hellaswag(
            "She cracks an egg. Then she",
            ["flies away.", "stirs it.", "sells the pan.", "paints a door."],
            1,
        ),
        _hellaswag(
            "He boils water. Then he",
            ["adds rice.", "swims in it.", "reads it.", "sings to a car."],
            0,
        ),
    ],
    "piqa": [
        {
            "id": "p-1",
            "goal": "Dry a shirt.",
            "sol1": "Hang it up.",
            "sol2": "Rinse it.",
            "label": 0,
        },
        {
            "id": "p-2",
            "goal": "Open a jar.",
            "sol1": "Push the lid.",
            "sol2": "Turn the lid.",
            "label": 1,
        },
    ],
    **{
        name: _WINOGRANDE
        for name in (
            "winogrande",
            "winogrande_xs",
            "winogrande_s",
            "winogrande_m",
            "winogrande_l",
        )
    },
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "openbookqa": [
        _openbookqa("Fire is", ["wet", "hot", "blue", "old"], 1),
        _openbookqa("Fish live in", ["sand", "air", "fire", "water"], 3),
    ],
    "gsm8k": _GSM8K,
    "gsm8k_cot": _GSM8K,
}
