"""Every registered task: from its rows to its best score, without a network."""

import pytest
from task_toys import toy_data_sets

from ul2.tasks import registry
from ul2.tasks.examples import read_examples
from ul2.tasks.text_task import Files, TextExample, TextTask, Tfds

pytestmark = pytest.mark.tf

# Other tests register tasks of their own, which have no toy rows.
NAMES = [
    name
    for name in registry.names()
    if isinstance(registry.find(name).source, Tfds | Files)
]
# The subjects of MMLU differ in their files alone.
KINDS = [name for name in NAMES if not name.startswith("mmlu_")]


def is_from_tfds(name):
    return isinstance(registry.find(name).source, Tfds)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    with toy_data_sets(tmp_path_factory.mktemp("data")) as directory:
        yield directory


def read(name, data_dir):
    """Returns the examples of the split that a task is evaluated on."""
    splits = registry.find(name).source.splits
    split = next(s for s in ("validation", "test", "train") if s in splits)
    return list(read_examples(name, split, data_dir=data_dir))


@pytest.mark.parametrize("name", NAMES)
def test_own_targets_score_best_and_others_less(name, data_dir):
    task, examples = registry.find(name), read(name, data_dir)
    best = task.score(examples, [example.targets for example in examples])
    wrong = task.score(examples, ["zzz"] * len(examples))
    assert best[task.validation_metric] == pytest.approx(100)
    assert wrong[task.validation_metric] < 60


@pytest.mark.parametrize("name", KINDS)
def test_every_split_gives_whole_examples(name, data_dir):
    for split in registry.find(name).source.splits:
        examples = list(read_examples(name, split, data_dir=data_dir))
        assert examples
        for example in examples:
            assert example.inputs.strip()
            assert example.targets.strip() == example.targets
            assert not example.choices or example.targets in example.choices


@pytest.mark.parametrize("name", KINDS)
def test_bound_task_gives_the_tokenizers_ids(name, data_dir, tokenizer):
    seqio = pytest.importorskip("seqio")
    from ul2.tasks import seqio_tasks

    vocab = tokenizer.vocab
    bound = seqio_tasks.bind(name, tokenizer, "S", data_dir=str(data_dir))
    task = seqio.get_mixture_or_task(bound)
    split = next(s for s in ("validation", "test", "train") if s in task.splits)
    rows = task.get_dataset({"inputs": 4096, "targets": 1024}, split, shuffle=False)
    found = [(row["inputs"], row["targets"]) for row in rows.as_numpy_iterator()]
    examples = read(name, data_dir)
    for example, (inputs, targets) in zip(examples, found, strict=True):
        framed = [*vocab.mode("S"), *tokenizer.encode(example.inputs), vocab.eos_id]
        assert inputs.tolist() == framed
        assert tokenizer.decode(targets) == example.targets


@pytest.mark.parametrize("name", [n for n in KINDS if is_from_tfds(n)])
def test_tfds_has_the_version(name, data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = registry.find(name).source
    builder = tfds.builder(source.name, data_dir=data_dir)
    # An unpinned name would take whatever version comes next.
    assert source.name.endswith(f":{builder.version}")


def make_task(**changes):
    fields = {
        "name": "toy",
        "source": Tfds("toy:1.0.0", {"train": "train", "test": "test"}),
        "to_examples": lambda row: [TextExample(row["q"], row["a"])],
        "metrics": (
            lambda targets, predictions: {"hits": sum(targets == predictions)},
        ),
        "validation_metric": "hits",
    }
    return TextTask(**{**fields, **changes})


def test_training_rows_may_become_other_examples():
    task = make_task(to_training_examples=lambda row: [])
    row = {"q": "1 + 1", "a": "2"}
    assert [e.targets for e in task.examples_of(row, "test")] == ["2"]
    assert list(task.examples_of(row, "train")) == []


def test_hidden_targets_are_not_scored():
    with pytest.raises(ValueError, match=r"^task 'toy': the right outputs .* public"):
        make_task().score([TextExample("1 + 1", "")], ["2"])


def test_no_example_is_not_scored():
    with pytest.raises(ValueError, match=r"^task 'toy': no example to score\.$"):
        make_task().score([], [])
