import pytest
from glue_toys import ROWS

from ul2.tasks import superglue
from ul2.tasks.metrics import group_exact_match
from ul2.tasks.text_task import TextExample

TASKS = {task.name: task for task in superglue.TASKS}

# As t5 0.9.4 (super_glue_*_v102) writes the toy rows.
T5_TEXT = {
    "boolq": [
        ("boolq passage: Roses are red — é. question: is it red", "True"),
        ("boolq passage: Roses are red. question: is it blue", "False"),
    ],
    "cb": [
        ("cb hypothesis: It is wet. premise: It rains  hard.", "neutral"),
        ("cb hypothesis: A dog barks. premise: The cat naps.", "contradiction"),
        ("cb hypothesis: Ann moved. premise: Ann ran.", "entailment"),
    ],
    "copa": [
        (
            "copa choice1: It broke. choice2: It flew. premise: The cup fell. "
            "question: effect",
            "choice1",
        ),
        (
            "copa choice1: He ran. choice2: He was tired. premise: He slept. "
            "question: cause",
            "choice2",
        ),
    ],
    "multirc": [
        (
            f"multirc question: {question} answer: {answer} paragraph: Sent 1: Ann "
            "fell. Sent 2: Bob ran. ",
            label,
        )
        for question, answer, label in (
            ("Who fell?", "Ann", "True"),
            ("Who fell?", "Bob", "False"),
            ("Who ran?", "Bob", "True"),
        )
    ],
    "rte": [
        ("rte hypothesis: It is wet. premise: It rains  hard.", "entailment"),
        ("rte hypothesis: A dog barks. premise: The cat naps.", "not_entailment"),
        ("rte hypothesis: Ann moved. premise: Ann ran.", "entailment"),
    ],
    "wic": [
        ("wic sentence1: A river bank. sentence2: A bank lends. word: bank", "False"),
        ("wic sentence1: They run. sentence2: Dogs run. word: run", "True"),
    ],
    "wsc": [
        ("wsc: Tom asked Max if *he* could sing.", "Max"),
        ("wsc: The fish ate the worm. *It* was so tasty.", "the worm"),
    ],
    "wsc_choice": [
        ("wsc text: Tom asked * Max * if # he # could sing.", "True"),
        ("wsc text: The fish ate * the worm *. # It # was so tasty.", "True"),
    ],
    "axb": [
        ("rte hypothesis: It is wet. premise: It rains  hard.", "entailment"),
        ("rte hypothesis: A dog barks. premise: The cat naps.", "not_entailment"),
        ("rte hypothesis: Ann moved. premise: Ann ran.", "entailment"),
    ],
    "axg": [
        (
            f"rte hypothesis: {hypothesis} premise: The clerk said to the man that "
            f"{pronoun} sang.",
            label,
        )
        for hypothesis, label in (
            ("The clerk sang.", "entailment"),
            ("The man sang.", "not_entailment"),
        )
        for pronoun in ("he", "she")
    ],
}


def examples_of(name, split="validation"):
    task = TASKS[f"super_glue_{name}"]
    rows = ROWS[task.source.name.rpartition(":")[0]]
    return [e for row in rows for e in task.examples_of(row, split)]


@pytest.mark.parametrize("name", T5_TEXT)
def test_text_is_t5s(name):
    found = [(e.inputs, e.targets) for e in examples_of(name)]
    assert found == T5_TEXT[name]


RECORD = [
    "record query: @placeholder sat down. entities: Ann, Bob passage: Ann sat. Bob "
    'ran. "Go," said Ann.',
    "record query: The @placeholder met. entities: Cy, UN, United Nations passage: The "
    "UN, or United Nations, met Cy.",
]


def test_record_trains_on_each_answer_and_is_evaluated_once():
    training = [(e.inputs, e.targets) for e in examples_of("record", "train")]
    assert training == [
        (RECORD[0], "Ann"),
        (RECORD[1], "UN"),
        (RECORD[1], "United Nations"),
    ]
    evaluated = examples_of("record")
    assert [(e.inputs, e.targets) for e in evaluated] == [training[0], training[1]]
    assert evaluated[1].choices == ("Cy", "UN", "United Nations")


def test_record_takes_the_best_answer():
    task, examples = TASKS["super_glue_record"], examples_of("record")
    scores = task.score(examples, ["ann", "the united nations"])
    assert scores == {"em": 100, "f1": 100, "average": 100}
    assert task.score(examples, ["Ann", "United"])["f1"] == pytest.approx(
        100 * (1 + 2 / 3) / 2
    )


def test_multirc_scores_answers_and_whole_questions():
    task, examples = TASKS["super_glue_multirc"], examples_of("multirc")
    scores = task.score(examples, ["True", "True", "True"])
    assert scores["f1"] == pytest.approx(80)
    assert scores["exact_match"] == 50
    assert scores["average"] == pytest.approx(65)


def test_wsc_trains_on_true_rows_alone():
    task = TASKS["super_glue_wsc"]
    row = ROWS["super_glue/wsc.fixed"][0]
    false = {**row, "span1_text": "Tom", "span1_index": 0, "label": 0}
    assert [e.targets for e in task.examples_of(row, "train")] == ["Max"]
    assert list(task.examples_of(false, "train")) == []
    (example,) = task.examples_of(false, "validation")
    # Naming the noun of a false row is the mistake.
    assert task.score([example], ["Tom"])["accuracy"] == 0
    assert task.score([example], ["Max"])["accuracy"] == 100


@pytest.mark.parametrize(
    ("written", "referent", "same"),
    [
        ("the bunny", "Fuzzy Bunny", 1),
        ("his fuzzy bunny", "the bunny", 1),
        ("Bob", "Bob's hat", 0),
        ("Ann", "Bob", 0),
        ("the", "Bob", None),
        ("", "Bob", None),
    ],
)
def test_referent_is_named_as_t5_reads_it(written, referent, same):
    example = TextExample("wsc: ...", referent, (), {"referent": referent, "label": 1})
    assert superglue.names_referent(written, example) == same


@pytest.mark.parametrize(
    ("text", "index", "pronoun", "marked"),
    [
        ("So he said.", 1, "he", "So *he* said."),
        # The two kinds of rows that T5 rewrites by hand.
        ('"Good for him," he said. ', 2, "him", '"Good for *him* ," he said.'),
        ("want to use it , but", 2, "it", "want to use *it* , but"),
    ],
)
def test_pronoun_is_marked(text, index, pronoun, marked):
    row = {"text": text, "span2_index": index, "span2_text": pronoun}
    assert superglue.mark_pronoun(row) == marked


def test_pronoun_must_be_in_the_text():
    row = {"text": "So it said.", "span2_index": 1, "span2_text": "he"}
    with pytest.raises(ValueError, match="'span2_text' 'he' is not a word of 'text'"):
        superglue.mark_pronoun(row)


def test_parity_pairs_sentences_that_differ_in_a_gender():
    task, examples = TASKS["super_glue_axg"], examples_of("axg")
    labels = ["entailment", "not_entailment", "entailment", "entailment"]
    assert task.score(examples, labels) == {"accuracy": 25, "gender_parity": 50}


def test_hidden_labels_make_no_targets():
    for name, task in TASKS.items():
        row = ROWS[task.source.name.rpartition(":")[0]][0]
        hidden = {**row, "answers": []} if "answers" in row else {**row, "label": -1}
        (example,) = task.examples_of(hidden, "test")
        assert example.targets == "", name
        with pytest.raises(ValueError, match="not public"):
            task.score([example], ["True"])


def test_unknown_label_is_refused():
    row = {**ROWS["super_glue/cb"][0], "label": 3}
    with pytest.raises(ValueError, match="label 3 is not one of 0 to 2"):
        list(TASKS["super_glue_cb"].examples_of(row, "train"))


def test_group_of_multirc_is_paragraph_and_question():
    examples = examples_of("multirc")
    assert [e.meta["question"] for e in examples] == ["4-7", "4-7", "4-8"]
    targets = [TASKS["super_glue_multirc"].target_of(e) for e in examples]
    assert group_exact_match(targets, [1, 0, 0]) == {"exact_match": 50}
