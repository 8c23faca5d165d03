"""seqio's Evaluator and our own road: the same inputs, outputs and scores."""

import json

import pytest
from evaluation_toys import ToyOutput
from text_toys import train_foreign

from ul2.decoding.text import Prompt
from ul2.evaluation.evaluator import TaskEvaluator
from ul2.evaluation.settings import EvaluationSettings
from ul2.tasks import registry
from ul2.tasks.examples import read_examples
from ul2.tasks.metrics import accuracy
from ul2.tasks.multiple_choice import chosen_option
from ul2.tasks.text_task import Files, TextExample, TextTask

pytestmark = pytest.mark.tf

ROWS = [
    {"inputs": "the model reads", "targets": "every word"},
    {"inputs": "every word of the story " * 3, "targets": "the story"},
    {"inputs": "the story", "targets": "the model"},
    {"inputs": "of the", "targets": "word"},
]


def read(path):
    return map(json.loads, path.read_text().splitlines())


def to_examples(row):
    choices = ("every word", "the story", "the model", "word")
    yield TextExample(row["inputs"], row["targets"], choices, {"id": row["inputs"]})


TASK = TextTask(
    name="seqio_road_toy",
    source=Files("toy", {"train": "*.jsonl", "validation": "*.jsonl"}, read, "x"),
    to_examples=to_examples,
    metrics=(accuracy,),
    postprocess=chosen_option,
    validation_metric="accuracy",
    inputs_length=12,
    targets_length=6,
)


class Parrot:
    """Answers with the first words of its inputs; notes what it reads."""

    model = None
    trained_modes = None

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab = tokenizer, tokenizer.vocab
        self.read = []

    def generate_each(self, prompts, settings, *, keep_sentinels=False):
        self.read += [(number, *prompt) for number, prompt in enumerate(prompts)]
        for number, prompt in enumerate(prompts):
            yield {number: [self._answer(prompt)]}

    def _answer(self, prompt):
        words = "the model" if len(prompt.inputs) >= 6 else ""
        ids = [*prompt.forced, *self.tokenizer.encode(words)]
        return ToyOutput(self.tokenizer.decode(ids), ids, -1.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_foreign(tmp_path_factory.mktemp("vocab") / "t.model")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "toy").mkdir()
    lines = [json.dumps(row) for row in ROWS]
    (folder / "toy" / "a.jsonl").write_text("\n".join(lines) + "\n")
    registry.register(TASK)
    return str(folder)


def evaluate(road, tokenizer, data_dir, mode, **fields):
    settings = EvaluationSettings(
        method="generate", road=road, data_dir=data_dir, **fields
    )
    model = Parrot(tokenizer)
    evaluator = TaskEvaluator(settings, None, read_examples, [TASK])
    return evaluator(model, TASK, mode), sorted(model.read)


@pytest.mark.parametrize("mode", ["S", None])
@pytest.mark.parametrize(
    "fields", [{}, {"shots": 1}, {"infill": True}, {"limit": 3}, {"inputs_length": 9}]
)
def test_both_roads_read_write_and_score_the_same(tokenizer, data_dir, mode, fields):
    direct, read_directly = evaluate("direct", tokenizer, data_dir, mode, **fields)
    by_seqio, read_by_seqio = evaluate("seqio", tokenizer, data_dir, mode, **fields)
    assert by_seqio.road == "seqio"
    # num_cut is ours to know.
    assert [one[:4] for one in read_by_seqio] == [one[:4] for one in read_directly]
    assert by_seqio.scores == direct.scores
    assert by_seqio.counts == direct.counts
    assert by_seqio.rows == direct.rows
    examples = list(read_examples(TASK.name, "validation", data_dir=data_dir))
    texts = [row["prediction"] for row in by_seqio.rows]
    assert TASK.score(examples[: len(texts)], texts) == by_seqio.scores
    assert 0 < by_seqio.scores["accuracy"] < 100


def test_prompts_of_both_roads_have_mode_and_eos(tokenizer, data_dir):
    _, found = evaluate("seqio", tokenizer, data_dir, "S")
    vocab = tokenizer.vocab
    for _, inputs, *_ in found:
        assert tuple(inputs[: len(vocab.mode("S"))]) == vocab.mode("S")
        assert inputs[-1] == vocab.eos_id
        assert len(inputs) <= 12
    assert Prompt(found[0][1], []).num_blanks == 0
