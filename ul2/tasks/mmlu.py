"""MMLU: 57 subjects, each a task, and all of them as one.

    inputs   What is hot? A. ice B. fire C. snow D. rain Answer:
    targets  B

Laid out as by its authors, whose line breaks are spaces here. Answers and choices are
letters. The five questions a subject has for exemplars are the `train` split, and
exemplars are of the subject of their question; the authors open a prompt with a line
that names it, which `meta` has. Of `mmlu`, all questions count the same.
"""

from typing import Final

from ul2.tasks.answers import extract_choice
from ul2.tasks.metrics import accuracy
from ul2.tasks.multiple_choice import one_line
from ul2.tasks.published_files import read_mmlu
from ul2.tasks.text_task import Files, Row, TextExample, TextTask

LETTERS: Final = ("A", "B", "C", "D")
SUBJECTS: Final = tuple(
    [
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "business_ethics",
        "clinical_knowledge",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_medicine",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "econometrics",
        "electrical_engineering",
        "elementary_mathematics",
        "formal_logic",
        "global_facts",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_european_history",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_mathematics",
        "high_school_microeconomics",
        "high_school_physics",
        "high_school_psychology",
        "high_school_statistics",
        "high_school_us_history",
        "high_school_world_history",
        "human_aging",
        "human_sexuality",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "machine_learning",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "moral_disputes",
        "moral_scenarios",
        "nutrition",
        "philosophy",
        "prehistory",
        "professional_accounting",
        "professional_law",
        "professional_medicine",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
        "virology",
        "world_religions",
    ]
)


def mmlu_examples(row: Row) -> tuple[TextExample, ...]:
    """Makes the one of a row."""
    options = " ".join(
        f"{letter}. {one_line(choice)}"
        for letter, choice in zip(LETTERS, row["choices"], strict=True)
    )
    example = TextExample(
        inputs=f"{one_line(row['question'])} {options} Answer:",
        targets=row["answer"],
        choices=LETTERS,
        meta={"subject": row["subject"].replace("_", " ")},
    )
    return (example,)


def _letter(prediction: str, example: TextExample) -> str | None:
    del example
    return extract_choice(prediction, "ABCD")


def _task(name: str, files: str) -> TextTask:
    return TextTask(
        name=name,
        source=Files(
            folder="mmlu",
            splits={
                "train": f"dev/{files}_dev.csv",
                "validation": f"val/{files}_val.csv",
                "test": f"test/{files}_test.csv",
            },
            read=read_mmlu,
            home=(
                "https://people.eecs.berkeley.edu/~hendrycks/data.tar "
                "(its folder `data`, named mmlu)"
            ),
        ),
        to_examples=mmlu_examples,
        postprocess=_letter,
        metrics=(accuracy,),
        validation_metric="accuracy",
        inputs_length=1024,
        targets_length=8,
        exemplars_share="subject",
    )


TASKS: Final[tuple[TextTask, ...]] = (
    _task("mmlu", "*"),
    *(_task(f"mmlu_{subject}", subject) for subject in SUBJECTS),
)
