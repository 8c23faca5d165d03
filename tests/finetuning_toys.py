"""Tasks so small that a run on them takes seconds; `--import_module` registers them."""

import json
from pathlib import Path

from ul2.tasks import registry
from ul2.tasks.text_task import Files, TextExample, TextTask

WORDS = (
    *("rivers", "mountains", "birds", "towns", "people"),
    *("bread", "rain", "music", "story", "line"),
)


def write_data(folder):
    """Writes the rows of both tasks, deterministic and learnable."""
    state = 7
    for task, splits in (
        ("first", {"train": 96, "validation": 20}),
        ("last", {"train": 40}),
    ):
        (folder / task).mkdir(parents=True)
        for split, count in splits.items():
            rows = []
            for _ in range(count):
                words = []
                for _ in range(2 + state % 4):
                    state = (state * 1103515245 + 12345) % 2**31
                    words.append(WORDS[state // 65536 % len(WORDS)])
                rows.append(json.dumps({"text": " ".join(words)}))
            (folder / task / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _read(path: Path):
    for line in path.read_text().splitlines():
        yield json.loads(line)


def _share_right(targets, predictions):
    right = sum(t == p for t, p in zip(targets, predictions, strict=True))
    return {"share_right": 100 * right / len(targets)}


def _task(name, place, splits):
    def to_examples(row):
        words = row["text"].split()
        yield TextExample(inputs=f"{name}: {row['text']}", targets=words[place])

    return TextTask(
        name=f"toy_{name}",
        source=Files(
            folder=name,
            splits={split: f"{split}.jsonl" for split in splits},
            read=_read,
            home="nowhere",
        ),
        to_examples=to_examples,
        metrics=(_share_right,),
        validation_metric="share_right",
    )


FIRST = _task("first", 0, ("train", "validation"))
LAST = _task("last", -1, ("train",))
for one in (FIRST, LAST):
    registry.register(one)
