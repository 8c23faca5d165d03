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

_TOTTO_TABLE = {
    "value": [
        ["Year", "Work", "Notes"],
        ["1999", "Dawn", "Eve ", "lead"],
        ["2004", "Dusk", "Ivy", ""],
    ],
    "is_header": [
        [True, True, True],
        [True, False, False, False],
        [True, False, False, False],
    ],
    "column_span": [[1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    "row_span": [[1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
}


def _totto(highlighted, sentences):
    return {
        "gem_id": "totto-validation-0",
        "gem_parent_id": "totto-validation-0",
        "totto_id": 0,
        "table_page_title": "Ann Lee",
        "table_webpage_url": "http://localhost/ann",
        "table_section_title": "Films",
        "table_section_text": "",
        "table": _TOTTO_TABLE,
        "highlighted_cells": highlighted,
        "example_id": "12",
        "overlap_subset": "False",
        "sentence_annotations": {
            "original_sentence": sentences,
            "sentence_after_deletion": sentences,
            "sentence_after_ambiguity": sentences,
            "final_sentence": sentences,
        },
        "target": sentences[0],
        "references": sentences,
    }


def _dialogue(acts, prompt, target):
    return {
        "gem_id": "schema_guided_dialog-train-0",
        "gem_parent_id": "schema_guided_dialog-train-0",
        "dialog_id": "1_00000",
        "turn_id": 3,
        "service": "Travel_1",
        "prompt": prompt,
        "context": ["Hello.", prompt],
        "dialog_acts": {
            "act": [act for act, _, _ in acts],
            "slot": [slot for _, slot, _ in acts],
            "values": [values for _, _, values in acts],
        },
        "target": target,
        "references": [],
    }


def _web_nlg(triples, references):
    return {
        "gem_id": "web_nlg_en-validation-0",
        "gem_parent_id": "web_nlg_en-validation-0",
        "input": triples,
        "category": "City",
        "webnlg_id": "Validation/City/1",
        "target": references[0],
        "references": references,
    }


def _race(level):
    return [
        {
            "article": "Ann ran  home.\nBo stayed at school with Cy.",
            "questions": ["Who ran?", "Bo stayed at _ ."],
            "answers": ["A", "C"],
            "options": [
                ["Ann", "Bo", "Cy", "Di"],
                ["home", "work", "school", "sea"],
            ],
            "example_id": f"{level}1.txt",
        }
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
    "squad": [
        {
            "id": "s1",
            "title": "Rome",
            "context": "Rome was  founded on the Tiber. It has seven hills.",
            "question": "What does Rome stand on?",
            "answers": {
                "text": ["the Tiber", "Tiber", "the Tiber"],
                "answer_start": [21, 25, 21],
            },
        },
        {
            "id": "s2",
            "title": "Rome",
            "context": "Rome was founded on the Tiber. It has seven hills.",
            "question": "How many hills has Rome?",
            "answers": {"text": ["seven"], "answer_start": [38]},
        },
    ],
    "race_middle": _race("middle"),
    "race_high": _race("high"),
    "xsum": [
        {
            "document": "The council met on Monday.\nIt talked about a park.",
            "summary": "A town is to get a park.",
        },
        {
            "document": "Snow fell in the night.\n\n Roads were closed at dawn.",
            "summary": "Snow has closed roads.",
        },
    ],
    "cnn_dailymail": [
        {
            "article": "A whale was seen off the pier. Crowds came. It left.",
            "highlights": "A whale was seen .\nIt drew crowds .",
            "publisher": "cnn",
            "id": "1",
        },
        {
            "article": "The match ended late. The home side won by a goal.",
            "highlights": "The home side won .",
            "publisher": "dm",
            "id": "2",
        },
    ],
    "samsum": [
        {
            "id": "1",
            "dialogue": "Ann: Tea at 5?\r\nBo: Yes! \r\nAnn: :)",
            "summary": "Ann and Bo will have tea at 5.",
        },
        {
            "id": "2",
            "dialogue": "Cy: Where are my keys?\nDi: Under the mat.",
            "summary": "Di tells Cy that his keys are under the mat.",
        },
    ],
    "schema_guided_dialogue": [
        _dialogue(
            [(11, "city", ["Rome", "Oslo"]), (13, "date", []), (15, "", [])],
            "Where could I go?",
            "How about Rome or Oslo? When? Anything else?",
        ),
        _dialogue([(3, "", [])], "Bye.", "Have a good day!"),
    ],
    "totto": [
        _totto(
            [[1, 1], [1, 2], [1, 3]],
            ["Ann Lee was Eve in Dawn (1999).", "In 1999, Ann Lee led Dawn as Eve."],
        ),
        _totto([[2, 1]], ["Ann Lee filmed Dusk in 2004."]),
    ],
    "web_nlg": [
        _web_nlg(
            ["Rome | country | Italy", "Italy | leader | Ann_Lee"],
            ["Rome is in Italy, led by Ann Lee.", "Ann Lee leads Italy with Rome."],
        ),
        _web_nlg(["Oslo | area | 480"], ["Oslo has an area of 480."]),
    ],
}
