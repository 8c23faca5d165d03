import pytest
from task_toys import toy_data_sets

from ul2.tasks import registry
from ul2.tasks.examples import read_examples
from ul2.tasks.text_task import Function, TextExample, TextTask

pytestmark = pytest.mark.tf

seqio = pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    with toy_data_sets(tmp_path_factory.mktemp("data")) as directory:
        yield str(directory)


@pytest.fixture
def seqio_tasks():
    from ul2.tasks import seqio_tasks

    return seqio_tasks


def read(name, lengths, split="validation"):
    dataset = seqio.get_mixture_or_task(name).get_dataset(lengths, split, shuffle=False)
    return list(dataset.as_numpy_iterator())


LONG = {"inputs": 512, "targets": 64}


def test_every_task_is_in_the_registry_as_text(seqio_tasks, data_dir):
    # Other tests may have registered tasks since the module was imported.
    seqio_tasks.register_text_tasks()
    assert set(registry.names()) <= set(seqio.TaskRegistry.names())
    task = seqio.TaskRegistry.get("super_glue_boolq")
    assert list(task.splits) == ["train", "validation", "test"]
    first, _ = read("super_glue_boolq", None)
    assert first["inputs"].decode().startswith("boolq passage: Roses are red — é.")
    assert (first["targets"], first["meta"]) == (b"True", b'{"idx": 0}')
    assert first["choices"].tolist() == [b"False", b"True"]


def test_mode_stands_in_front_and_eos_behind(seqio_tasks, data_dir, tokenizer):
    vocab = tokenizer.vocab
    name = seqio_tasks.bind("super_glue_boolq", tokenizer, "X")
    for row, example in zip(
        read(name, LONG), read_examples("super_glue_boolq", "validation"), strict=True
    ):
        text = tokenizer.encode(example.inputs)
        assert row["inputs"].tolist() == [*vocab.mode("X"), *text, vocab.eos_id]
        assert row["targets"].tolist() == [
            *tokenizer.encode(example.targets),
            vocab.eos_id,
        ]


@pytest.mark.parametrize("shots", [0, 1])
def test_long_inputs_lose_text_and_neither_mode_nor_eos(
    seqio_tasks, data_dir, tokenizer, shots
):
    vocab = tokenizer.vocab
    name = seqio_tasks.bind("super_glue_boolq", tokenizer, "R", shots=shots)
    examples = read_examples("super_glue_boolq", "validation", shots=shots)
    for row, example in zip(
        read(name, {"inputs": 12, "targets": 3}), examples, strict=True
    ):
        text = tokenizer.encode(example.inputs)
        # A prompt keeps its end, where the question is.
        kept = text[-10:] if shots else text[:10]
        assert row["inputs"].tolist() == [*vocab.mode("R"), *kept, vocab.eos_id]
        assert len(row["targets"]) == 3
        assert row["targets"][-1] == vocab.eos_id


def test_length_without_room_for_text_is_refused(seqio_tasks, data_dir, tokenizer):
    name = seqio_tasks.bind("super_glue_boolq", tokenizer, "R")
    with pytest.raises(ValueError, match=r"^sequence_length 2 of inputs has no room"):
        read(name, {"inputs": 2, "targets": 8})


def test_infill_puts_a_sentinel_between(seqio_tasks, data_dir, tokenizer):
    vocab = tokenizer.vocab
    name = seqio_tasks.bind("super_glue_boolq", tokenizer, "X", infill=True)
    row, *_ = read(name, LONG)
    sentinel = vocab.sentinel_ids[0]
    assert row["inputs"].tolist()[-2:] == [sentinel, vocab.eos_id]
    assert row["targets"].tolist() == [
        sentinel,
        *tokenizer.encode("True"),
        vocab.eos_id,
    ]


def test_binding_again_gives_the_same_name(seqio_tasks, data_dir, tokenizer):
    bind = seqio_tasks.bind
    name = bind("xsum", tokenizer, "S")
    before = set(seqio.TaskRegistry.names())
    assert bind("xsum", tokenizer, "S") == name
    assert set(seqio.TaskRegistry.names()) == before
    others = {
        bind("xsum", tokenizer),
        bind("xsum", tokenizer, "R"),
        bind("xsum", tokenizer, "S", shots=1),
        bind("xsum", tokenizer, "S", seed=1),
        bind("xsum", tokenizer, "S", infill=True),
        bind("xsum", tokenizer, "S", data_dir="elsewhere"),
    }
    assert len(others - {name}) == 6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(("xsun",), "did you mean xsum"), (("xsum", "Q"), "Q")],
)
def test_unknown_task_or_mode_is_refused(seqio_tasks, tokenizer, arguments, problem):
    name, *mode = arguments
    with pytest.raises(ValueError, match=problem):
        seqio_tasks.bind(name, tokenizer, *mode)


def test_missing_data_is_told_before_tensorflow_runs(seqio_tasks, tokenizer, tmp_path):
    name = seqio_tasks.bind("svamp", tokenizer, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"^task 'svamp': no file .*; get it from "):
        read(name, LONG, "test")


def evaluate(name, texts, tokenizer):
    """Returns the scores of given outputs by seqio's Evaluator."""
    evaluator = seqio.Evaluator(
        name,
        seqio.EncDecFeatureConverter(pack=False),
        sequence_length=LONG,
        async_compute_metrics=False,
    )

    def predict(dataset):
        rows = tokenizer.encode(list(texts))
        longest = max(map(len, rows)) + 1
        outputs = [[*row, 1, *[0] * (longest - 1 - len(row))] for row in rows]
        numbers = [int(number) for number, _ in dataset.as_numpy_iterator()]
        return list(zip(numbers, outputs, strict=True))

    scores, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    return scores.result()[name]


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("super_glue_boolq", ["True", "True"]),
        ("super_glue_multirc", ["True", "True", "True"]),
        ("super_glue_record", ["Ann", "the UN met"]),
        ("super_glue_wsc", ["Tom", "worm"]),
        ("glue_stsb", ["4.0", "1.0", "none"]),
        ("xsum", ["A cat sat.", "A dog ran."]),
        ("totto", ["A cat sat.", "A dog ran."]),
    ],
)
def test_seqios_evaluator_scores_as_the_task_does(
    seqio_tasks, data_dir, tokenizer, task, outputs
):
    name = seqio_tasks.bind(task, tokenizer, "S")
    examples = list(read_examples(task, "validation"))
    scores = evaluate(name, outputs, tokenizer)
    assert scores == pytest.approx(registry.find(task).score(examples, outputs))


def test_evaluator_scores_what_stands_behind_the_sentinel(
    seqio_tasks, data_dir, tokenizer
):
    from ul2.tasks import seqio_evaluation

    name = seqio_tasks.bind("super_glue_boolq", tokenizer, "X", infill=True)
    sentinel = tokenizer.vocab.sentinel_ids[0]
    outputs = [[sentinel, *tokenizer.encode(text)] for text in ("True", "True")]
    scores = seqio_evaluation.evaluate(
        name, "validation", lambda inputs: outputs, lengths=LONG
    )
    assert scores == {"accuracy": 50}


def make_task(name, count):
    rows = tuple({"number": number} for number in range(count))
    return TextTask(
        name=name,
        source=Function({"train": "train"}, lambda split: rows),
        to_examples=lambda row: [TextExample(f"{name} {row['number']}", "yes")],
        metrics=(),
        validation_metric="none",
    )


def test_mixture_draws_its_tasks_by_their_rates(seqio_tasks, tokenizer, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    for name in ("many", "few"):
        registry.register(make_task(name, 50))
    sizes = {"toy_mix": {"many": 300, "few": 100}}
    monkeypatch.setattr(registry, "MIXTURES", sizes)
    name = seqio_tasks.bind("toy_mix", tokenizer, "R")
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        {"inputs": 64, "targets": 8}, "train", shuffle=False, seed=0
    )
    rows = list(dataset.take(200).as_numpy_iterator())
    share = sum("many" in tokenizer.decode(row["inputs"]) for row in rows)
    assert 120 < share < 180
    assert seqio_tasks.bind("toy_mix", tokenizer, "R") == name


def test_mixtures_are_in_the_registry(seqio_tasks):
    for name in registry.MIXTURES:
        rates = registry.find_mixture(name)
        mixture = seqio.MixtureRegistry.get(name)
        assert {task.name for task in mixture.tasks} == {task for task, _ in rates}
