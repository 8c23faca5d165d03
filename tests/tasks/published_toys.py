"""Two made-up rows of every data set, in the form in which it is published.

`TFDS_ROWS` are rows as TFDS hands them out, by task; `FILES` are the contents of files,
by folder and path. Every task's own targets must be its best predictions on them.
"""

import json

from published_rows import TFDS_ROWS

from ul2.tasks.mmlu import SUBJECTS

__all__ = ["FILES", "TFDS_ROWS", "examples_of", "write_files"]


def _json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _commonsenseqa(stem, options, answer):
    letters = "ABCDE"
    return {
        "answerKey": answer,
        "id": f"id-{stem[:5]}",
        "question": {
            "question_concept": "concept",
            "choices": [
                {"label": letter, "text": text}
                for letter, text in zip(letters, options, strict=True)
            ],
            "stem": stem,
        },
    }


_COMMONSENSEQA = _json_lines(
    _commonsenseqa(
        "Where does milk stay cold?", ["fridge", "oven", "sun", "bed", "lamp"], "A"
    ),
    _commonsenseqa(
        "What do you wear on  feet?", ["hat", "scarf", "shoes", "belt", "tie"], "C"
    ),
)

_SVAMP = json.dumps(
    [
        {
            "ID": "toy-1",
            "Body": "Ada had 12 pens and gave 4 to Bo. ",
            "Question": "How many pens are left?",
            "Equation": "( 12.0 - 4.0 )",
            "Answer": 8.0,
            "Type": "Subtraction",
        },
        {
            "ID": "toy-2",
            "Body": "A box holds 3 red and 4.5 blue pounds, and there are 2 boxes",
            "Question": "How much do they hold?",
            "Equation": "( ( 3.0 + 4.5 ) * 2.0 )",
            "Answer": 15.0,
            "Type": "Multiplication",
        },
    ]
)

_ASDIV = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File>
<ProblemSet>
	<Problem ID="toy-0001" Grade="1" Source="http://localhost">
		<Body>Cy has five kites &amp; finds 1,004 more.</Body>
		<Question>How many kites has Cy? </Question>
		<Solution-Type>Addition</Solution-Type>
		<Answer>1009 (kites)</Answer>
		<Formula>5+1004=1009</Formula>
	</Problem>
	<Problem ID="toy-0002" Grade="2" Source="http://localhost">
		<Body>Di and Ed have 2 and 3 cats.</Body>
		<Question>Who has more?</Question>
		<Solution-Type>Comparison</Solution-Type>
		<Answer>Ed</Answer>
		<Formula>3>2</Formula>
	</Problem>
	<Problem ID="toy-0003" Grade="5" Source="http://localhost">
		<Body>Twice a number and one third make nothing.</Body>
		<Question>What is twice the number?</Question>
		<Solution-Type>Algebra-1</Solution-Type>
		<Answer>-(1/3)</Answer>
		<Formula>x:The number; 2*x+1/3=0</Formula>
	</Problem>
</ProblemSet>
</Machine-Reading-Corpus-File>
"""

_AQUA = _json_lines(
    {
        "question": "A train goes 60 km in 2 hours. How far does it go in 3?",
        "options": ["A)60 km", "B)90 km", "C)120 km", "D)150 km", "E)None"],
        "rationale": "Speed = 60/2 = 30\nDistance = 30*3 = 90\nAnswer: Option B",
        "correct": "B",
    },
    {
        "question": "What is 20% of $50?",
        "options": ["A)$5", "B)$8", "C)$9", "D)$10", "E)$12"],
        "rationale": "50 * 0.2 = 10, which is option D here",
        "correct": "D",
    },
)


def _mawps(*problems):
    return json.dumps(
        [
            {
                "iIndex": index,
                "sQuestion": question,
                "lEquations": [equation],
                "lSolutions": [solution],
            }
            for index, (question, equation, solution) in enumerate(problems)
        ]
    )


_STRATEGYQA = json.dumps(
    [
        {
            "qid": "q1",
            "term": "Snail",
            "description": "animal",
            "question": "Could a snail win against a hare in a sprint?",
            "answer": False,
            "facts": ["Snails crawl a metre in  minutes.", "Hares run fast"],
            "decomposition": ["How fast is a snail?", "Is #1 faster than a hare?"],
            "evidence": [[[["Snail-1"]], ["operation"]]],
        },
        {
            "qid": "q2",
            "term": "Ice",
            "description": "frozen water",
            "question": "Does ice float?",
            "answer": True,
            "facts": ["Ice is lighter than water."],
            "decomposition": ["Is ice lighter than water?"],
            "evidence": [[["operation"]]],
        },
    ]
)


def _mmlu():
    """Every subject has a file for each split, as in the authors' archive."""
    content = (
        '"Which is ""hot"",\nof these?",ice,fire,snow,rain,B\r\n'
        "What do plants need?,sand,glass,coal,light,D\r\n"
    )
    return {
        f"{split}/{subject}_{split}.csv": content
        for split in ("dev", "val", "test")
        for subject in SUBJECTS
    }


FILES: dict[str, dict[str, str]] = {
    "commonsenseqa": {
        "train_rand_split.jsonl": _COMMONSENSEQA,
        "dev_rand_split.jsonl": _COMMONSENSEQA,
    },
    "mmlu": _mmlu(),
    "svamp": {"SVAMP.json": _SVAMP},
    "asdiv": {"ASDiv.xml": _ASDIV},
    "aqua": {"train.json": _AQUA, "dev.json": _AQUA, "test.json": _AQUA},
    # The four parts write numbers, equations and the unknown differently.
    "mawps": {
        "SingleOp.json": _mawps(
            ("Flo saw 5.0 owls and 6.0 bats . How many ?", "X=(5.0+6.0)", 11.0),
            ("Gus split 9.0 figs in 2.0 . How many each ?", "X=(9.0/2.0)", 4.5),
        ),
        "SingleEq.json": _mawps(
            ("Hal had 70 shells and kept 27. How many left?", "70-x=27", 43.0),
            ("How much are 5 pens at 2 dollars?", "5*2=x", 10.0),
        ),
        "AddSub.json": _mawps(
            ("Ida has 46 nuts . She eats 25 . How many now ? ", "X = 46 - 25", "21"),
            ("Jo adds 0.3 cups to 0.2 . How many ? ", "X = 0.3 + 0.2", "0.5"),
        ),
        "MultiArith.json": _mawps(
            (" Kim ate 3 of 8 and 2 figs. Left? ", "X=((8.0+2.0)-3.0)", 7.0),
            (" Lou has 2 bags of 4 and 3. All? ", "X=(2.0*(4.0+3.0))", 14.0),
        ),
    },
    "strategyqa": {
        "train.json": _STRATEGYQA,
        "dev.json": _STRATEGYQA,
        "strategyqa_train.json": _STRATEGYQA,
    },
}


def write_files(directory):
    """Lays all files below a directory, as a user would."""
    for folder, files in FILES.items():
        for name, content in files.items():
            path = directory / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def examples_of(task, directory, split=None):
    """Returns the examples of a task's toy rows; of its first split by default."""
    if task.name in TFDS_ROWS:
        rows = TFDS_ROWS[task.name]
    else:
        pattern = task.source.splits[split or next(iter(task.source.splits))]
        paths = sorted((directory / task.source.folder).glob(pattern))
        assert paths, (task.name, pattern)
        rows = [row for path in paths for row in task.source.read(path)]
    return [example for row in rows for example in task.to_examples(row)]
