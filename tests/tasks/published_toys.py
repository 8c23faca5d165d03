"""Two made-up rows of every data set, in the form in which it is published.

`TFDS_ROWS` are rows as TFDS hands them out, by task; `FILES` are the contents of files,
by folder and path. Every task's own targets must be its best predictions on them.
"""

import json

from published_rows import TFDS_ROWS

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

FILES: dict[str, dict[str, str]] = {
    "commonsenseqa": {
        "train_rand_split.jsonl": _COMMONSENSEQA,
        "dev_rand_split.jsonl": _COMMONSENSEQA,
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
