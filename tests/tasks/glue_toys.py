"""Made-up rows of GLUE and SuperGLUE, as TFDS hands them out, by its name of them."""


def _numbered(*rows):
    return [{**row, "idx": index} for index, row in enumerate(rows)]


def _pairs(first, second, labels=(0, 1, 0)):
    return _numbered(
        {first: "It rains  hard.", second: "It is wet.", "label": labels[0]},
        {first: "The cat naps.", second: "A dog barks.", "label": labels[1]},
        {first: "Ann ran.", second: "Ann moved.", "label": labels[2]},
    )


ROWS = {
    "super_glue/boolq": _numbered(
        {"question": "is it red", "passage": "Roses are red — é.", "label": 1},
        {"question": "is it blue", "passage": "Roses are red.", "label": 0},
    ),
    "super_glue/cb": _pairs("premise", "hypothesis", (2, 1, 0)),
    "super_glue/copa": _numbered(
        {
            "premise": "The cup fell.",
            "choice1": "It broke.",
            "choice2": "It flew.",
            "question": "effect",
            "label": 0,
        },
        {
            "premise": "He slept.",
            "choice1": "He ran.",
            "choice2": "He was tired.",
            "question": "cause",
            "label": 1,
        },
    ),
    "super_glue/multirc": [
        {
            "paragraph": "<b>Sent 1: </b>Ann fell.<br><b>Sent 2: </b>Bob ran.<br>",
            "question": question,
            "answer": answer,
            "label": label,
            "idx": {"paragraph": 4, "question": number, "answer": index},
        }
        for index, (number, question, answer, label) in enumerate(
            [
                (7, "Who fell?", "Ann", 1),
                (7, "Who fell?", "Bob", 0),
                (8, "Who ran?", "Bob", 1),
            ]
        )
    ],
    "super_glue/record": [
        {
            "passage": 'Ann sat.\n@highlight\nBob ran\n@highlight\n"Go," said Ann.',
            "query": "@placeholder sat down.",
            "entities": ["Ann", "Bob"],
            "answers": ["Ann"],
            "idx": {"passage": 0, "query": 0},
        },
        {
            "passage": "The UN, or United Nations, met Cy.",
            "query": "The @placeholder met.",
            "entities": ["Cy", "UN", "United Nations"],
            "answers": ["UN", "United Nations"],
            "idx": {"passage": 1, "query": 1},
        },
    ],
    "super_glue/rte": _pairs("premise", "hypothesis"),
    "super_glue/wic": _numbered(
        {
            "word": "bank",
            "sentence1": "A river bank.",
            "sentence2": "A bank lends.",
            "start1": 8,
            "end1": 12,
            "start2": 2,
            "end2": 6,
            "label": 0,
        },
        {
            "word": "run",
            "sentence1": "They run.",
            "sentence2": "Dogs run.",
            "start1": 5,
            "end1": 8,
            "start2": 5,
            "end2": 8,
            "label": 1,
        },
    ),
    "super_glue/wsc.fixed": _numbered(
        {
            "text": "Tom asked Max if he could sing.",
            "span1_text": "Max",
            "span1_index": 2,
            "span2_text": "he",
            "span2_index": 4,
            "label": 1,
        },
        {
            "text": "The fish ate the worm. It was so tasty.",
            "span1_text": "the worm",
            "span1_index": 3,
            "span2_text": "It",
            "span2_index": 5,
            "label": 1,
        },
    ),
    "super_glue/axb": _pairs("sentence1", "sentence2"),
    "super_glue/axg": _numbered(
        *(
            {
                "premise": f"The clerk said to the man that {pronoun} sang.",
                "hypothesis": hypothesis,
                "label": label,
            }
            for hypothesis, label in (("The clerk sang.", 0), ("The man sang.", 1))
            for pronoun in ("he", "she")
        )
    ),
    "glue/cola": _numbered(
        {"sentence": "The cat sat.", "label": 1},
        {"sentence": "Sat cat the.", "label": 0},
        {"sentence": "She sings.", "label": 1},
    ),
    "glue/sst2": _numbered(
        {"sentence": "a joy ", "label": 1}, {"sentence": "a bore ", "label": 0}
    ),
    "glue/mrpc": _pairs("sentence1", "sentence2", (1, 0, 1)),
    "glue/qqp": _pairs("question1", "question2", (1, 0, 1)),
    "glue/stsb": _numbered(
        {"sentence1": "A plane lands.", "sentence2": "Planes land.", "label": 4.75},
        {"sentence1": "A cat.", "sentence2": "A dog.", "label": 1.0},
        {"sentence1": "A man eats.", "sentence2": "He eats.", "label": 3.1},
    ),
    "glue/mnli": _pairs("premise", "hypothesis", (1, 2, 0)),
    "glue/qnli": _pairs("question", "sentence"),
    "glue/rte": _pairs("sentence1", "sentence2"),
    "glue/wnli": _pairs("sentence1", "sentence2"),
    "glue/ax": _pairs("premise", "hypothesis", (0, 2, 1)),
}
