import pytest
from published_toys import examples_of, write_files

from ul2.tasks import reasoning
from ul2.tasks.reasoning import (
    MAWPS_PARTS,
    aqua_problem,
    asdiv_problem,
    gsm8k_problem,
    mawps_problem,
    svamp_problem,
)

TASKS = {task.name: task for task in reasoning.TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_all_and_wrong_ones_none(name, tmp_path):
    write_files(tmp_path)
    task = TASKS[name]
    examples = examples_of(task, tmp_path)
    assert len(examples) == 2
    right = [example.targets for example in examples]
    assert task.score(examples, right) == {"accuracy": 100.0}
    # Each answers the other's question.
    assert task.score(examples, right[::-1]) == {"accuracy": 0.0}
    assert task.score(examples, [right[0], ""]) == {"accuracy": 50.0}


@pytest.mark.parametrize("name", [name for name in TASKS if not name.endswith("_cot")])
def test_both_forms_ask_alike_and_take_answers_of_either(name, tmp_path):
    write_files(tmp_path)
    plain, thought = TASKS[name], TASKS[f"{name}_cot"]
    short, long = examples_of(plain, tmp_path), examples_of(thought, tmp_path)
    assert [e.inputs for e in short] == [e.inputs for e in long]
    assert plain.score(short, [e.targets for e in long]) == {"accuracy": 100.0}
    assert thought.score(long, [e.targets for e in short]) == {"accuracy": 100.0}
    assert plain.targets_length < thought.targets_length
    assert not any(example.choices for example in long)


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        (
            "gsm8k_cot",
            "Q: A hen lays 2 eggs a day. How many in 600 days, and 3 more? A:",
            "In 600 days, 2*600=1200 eggs. With 3 more: 1200+3=1,203. "
            "The answer is 1203.",
        ),
        (
            "svamp_cot",
            "Q: Ada had 12 pens and gave 4 to Bo. How many pens are left? A:",
            "12 - 4 = 8. The answer is 8.",
        ),
        (
            "asdiv_cot",
            "Q: Cy has five kites & finds 1,004 more. How many kites has Cy? A:",
            "5+1004=1009. The answer is 1009.",
        ),
        (
            "aqua_cot",
            "Q: A train goes 60 km in 2 hours. How far does it go in 3? Answer "
            "Choices: (A) 60 km (B) 90 km (C) 120 km (D) 150 km (E) None A:",
            "Speed = 60/2 = 30. Distance = 30*3 = 90. The answer is (B).",
        ),
        (
            "mawps_singleop_cot",
            "Q: Flo saw 5.0 owls and 6.0 bats . How many ? A:",
            "5+6 = 11. The answer is 11.",
        ),
        (
            "mawps_singleeq_cot",
            "Q: Hal had 70 shells and kept 27. How many left? A:",
            "70-x=27, so x = 43. The answer is 43.",
        ),
        (
            "mawps_multiarith_cot",
            "Q: Kim ate 3 of 8 and 2 figs. Left? A:",
            "(8+2)-3 = 7. The answer is 7.",
        ),
        (
            "strategyqa_cot",
            "Q: Yes or no: Could a snail win against a hare in a sprint? A:",
            "Snails crawl a metre in minutes. Hares run fast. The answer is no.",
        ),
    ],
)
def test_text_of_the_first_row(name, inputs, targets, tmp_path):
    write_files(tmp_path)
    example = examples_of(TASKS[name], tmp_path)[0]
    assert (example.inputs, example.targets) == (inputs, targets)


def test_answers_alone_are_numbers_letters_or_words(tmp_path):
    write_files(tmp_path)

    def of(name):
        examples = examples_of(TASKS[name], tmp_path)
        return [example.targets for example in examples], examples[0].choices

    assert of("gsm8k") == (["1203", "-8"], ())
    assert of("asdiv") == (["1009", "-1/3"], ())
    assert of("mawps_addsub") == (["21", "0.5"], ())
    assert of("aqua") == (["B", "D"], ("A", "B", "C", "D", "E"))
    assert of("strategyqa") == (["no", "yes"], ("yes", "no"))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("gsm8k", "2*600 is 1,200. The answer is $1,203.00 in all."),
        ("asdiv", "1009.0"),
        ("aqua", "b) 90 km"),
        ("strategyqa", "Hares are faster. So the answer is No"),
    ],
)
def test_answers_are_compared_by_value(name, prediction, tmp_path):
    write_files(tmp_path)
    example = examples_of(TASKS[name], tmp_path)[0]
    assert TASKS[name].score([example], [prediction]) == {"accuracy": 100.0}


def test_equations_stay_in_meta(tmp_path):
    write_files(tmp_path)
    example = examples_of(TASKS["gsm8k"], tmp_path)[0]
    assert example.meta["equations"] == ["2*600=1200", "1200+3=1203"]


def test_verdict_is_cut_from_a_rationale_only_where_it_is_all_of_a_line(tmp_path):
    write_files(tmp_path)
    targets = examples_of(TASKS["aqua_cot"], tmp_path)[1].targets
    assert targets == "50 * 0.2 = 10, which is option D here. The answer is (D)."


def test_rows_without_one_answer_make_no_example():
    question = {"ID": "1", "Body": "", "Question": "", "Equation": "", "Formula": ""}
    assert gsm8k_problem({"short_answer": "none", "annotation": ""}) is None
    assert svamp_problem(question | {"Answer": float("inf")}) is None
    assert asdiv_problem(question | {"Answer": "5 (years old); 15 (years old)"}) is None
    assert asdiv_problem(question | {"Answer": "3:30 p.m."}) is None
    assert aqua_problem({"correct": "F", "options": ["A)1"] * 5}) is None
    assert aqua_problem({"correct": "", "options": ["A)1"] * 5}) is None
    for solutions, equations in (([], ["x=1"]), ([1, 2], ["x=1"]), ([1], [])):
        row = {"lSolutions": solutions, "lEquations": equations}
        assert mawps_problem(row) is None


def test_parts_of_mawps_read_different_files():
    sources = [TASKS[f"mawps_{part.lower()}"].source for part in MAWPS_PARTS]
    assert len({source.splits["test"] for source in sources}) == len(MAWPS_PARTS)
