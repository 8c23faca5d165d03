import dataclasses
import json

import pytest

from ul2.tasks import registry
from ul2.tasks.examples import read_examples
from ul2.tasks.text_task import Files, TextExample, TextTask


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def to_examples(row):
    return [TextExample(f"q: {row['q']}", row["a"], (), {"part": row["q"] % 2})]


SUMS = TextTask(
    name="sums",
    source=Files(
        "sums",
        {"train": "train-*.jsonl", "test": "test.jsonl"},
        read_json_lines,
        "sums.org",
    ),
    to_examples=to_examples,
    metrics=(lambda targets, predictions: {"hits": 0.0},),
    validation_metric="hits",
)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.delenv("UL2_DATA_DIR", raising=False)
    folder = tmp_path / "sums"
    folder.mkdir()
    for name, numbers in (
        ("train-1", (0, 1, 2)),
        ("train-0", (3, 4)),
        ("test", (4, 5)),
    ):
        rows = [json.dumps({"q": number, "a": str(number)}) for number in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def targets(examples):
    return [example.targets for example in examples]


def test_files_are_read_in_the_order_of_their_names(data_dir):
    examples = read_examples(SUMS, "train", data_dir=data_dir)
    assert targets(examples) == ["3", "4", "0", "1", "2"]


def test_folder_may_be_named_by_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("UL2_DATA_DIR", str(data_dir))
    assert targets(read_examples(SUMS, "test")) == ["4", "5"]


def test_limit_takes_the_first(data_dir):
    assert targets(read_examples(SUMS, "train", data_dir=data_dir, limit=2)) == [
        "3",
        "4",
    ]
    with pytest.raises(ValueError, match=r"^limit=0 must be at least 1 \(--limit\)"):
        read_examples(SUMS, "train", data_dir=data_dir, limit=0)


def test_exemplars_come_from_the_training_split(data_dir):
    prompts = [
        example.inputs
        for example in read_examples(SUMS, "test", shots=4, data_dir=data_dir)
    ]
    for number, prompt in zip((4, 5), prompts, strict=True):
        *exemplars, last = prompt.split("\n\n")
        assert last == f"q: {number}"
        assert len(exemplars) == 4
        assert set(exemplars) <= {f"q: {n}\n{n}" for n in range(5) if n != number}


def test_exemplars_share_what_the_task_says(data_dir):
    task = dataclasses.replace(SUMS, exemplars_share="part")
    (even, odd) = read_examples(task, "test", shots=2, data_dir=data_dir)
    assert sorted(even.inputs.split("\n\n")[:-1]) == ["q: 0\n0", "q: 2\n2"]
    assert sorted(odd.inputs.split("\n\n")[:-1]) == ["q: 1\n1", "q: 3\n3"]


def test_prompt_may_end_with_a_blank(data_dir):
    first, _ = read_examples(SUMS, "test", data_dir=data_dir, infill=True)
    assert first.inputs == "q: 4 ___"


@pytest.mark.parametrize(
    ("task", "split", "options", "problem"),
    [
        (
            SUMS,
            "validation",
            {},
            "task 'sums' has no split 'validation', only train, test (--split).",
        ),
        (
            dataclasses.replace(
                SUMS, source=dataclasses.replace(SUMS.source, splits={"test": "x"})
            ),
            "test",
            {"shots": 2},
            "task 'sums' has no split 'train', only test (exemplars: --shots=2).",
        ),
        (
            "sum",
            "test",
            {},
            "'sum' is no task; did you mean xsum or samsum (TASK, --task).",
        ),
    ],
)
def test_wrong_request_gets_one_line(task, split, options, problem, data_dir):
    with pytest.raises(ValueError) as error:
        read_examples(task, split, data_dir=data_dir, **options)
    assert str(error.value) == problem


def test_missing_files_are_told_with_their_home(tmp_path, monkeypatch):
    monkeypatch.delenv("UL2_DATA_DIR", raising=False)
    with pytest.raises(
        ValueError, match=r"sums/test\.jsonl .* sums\.org .*UL2_DATA_DIR"
    ):
        read_examples(SUMS, "test")
    with pytest.raises(ValueError) as error:
        read_examples(SUMS, "test", data_dir=tmp_path)
    wanted = tmp_path / "sums" / "test.jsonl"
    assert str(error.value) == f"task 'sums': no file {wanted}; get it from sums.org."


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"a": "1"}, "no field 'q', only ['a']."),
        ({"q": "x", "a": "1"}, "not all arguments converted"),
        ([1], "list indices must be integers"),
    ],
)
def test_row_that_does_not_fit_is_told_with_its_number(row, problem, data_dir):
    good = {"q": 1, "a": "1"}
    (data_dir / "sums" / "test.jsonl").write_text(
        f"{json.dumps(good)}\n{json.dumps(row)}\n"
    )
    examples = read_examples(SUMS, "test", data_dir=data_dir)
    assert next(examples).targets == "1"
    with pytest.raises(ValueError) as error:
        next(examples)
    start = "task 'sums', split 'test', row 2 does not fit the task: "
    assert str(error.value).startswith(start + problem)


def test_file_that_is_no_text_is_told_with_its_name(data_dir):
    (data_dir / "sums" / "test.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(
        ValueError, match=r"test\.jsonl: cannot be read \('utf-8' codec"
    ):
        list(read_examples(SUMS, "test", data_dir=data_dir))


@pytest.mark.tf
def test_missing_tfds_data_is_told_with_how_to_get_it(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError) as error:
        read_examples("super_glue_boolq", "train", data_dir=tmp_path)
    start = (
        "data set 'super_glue/boolq:1.0.2' is not prepared (`tfds build "
        f"super_glue/boolq:1.0.2 --data_dir {tmp_path}`, or set TFDS_DATA_DIR"
    )
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


@pytest.mark.tf
def test_rows_of_tfds_are_plain_values(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from task_toys import tfds_rows, toy_data_sets

    from ul2.tasks.tfds_rows import read_tfds

    with toy_data_sets(tmp_path):
        for name in ("super_glue_record", "totto"):
            source = registry.find(name).source
            rows = list(read_tfds(source, "train"))
            assert rows == tfds_rows()[source.name.rpartition(":")[0]]


@pytest.fixture
def seqio():
    """Leaves seqio's registry as it was."""
    seqio = pytest.importorskip("seqio")
    before = set(seqio.TaskRegistry.names())
    yield seqio
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def add_seqio_task(seqio, tokenizer, preprocessors, rows=({"q": "1 + 1", "a": "2"},)):
    import tensorflow as tf

    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    def dataset_fn(split, shuffle_files, seed=None):
        fields = {key: [row[key] for row in rows] for key in rows[0]}
        return tf.data.Dataset.from_tensor_slices(fields)

    feature = seqio.Feature(TokenizerVocabulary(tokenizer), add_eos=True)
    seqio.TaskRegistry.add(
        "own_sums",
        source=seqio.FunctionDataSource(dataset_fn, splits=["train", "test"]),
        preprocessors=preprocessors,
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=lambda text, **unused: int(text),
        metric_fns=[lambda targets, predictions: {"hits": targets == predictions}],
    )


def rekey(dataset):
    return dataset.map(lambda x: {"inputs": x["q"], "targets": x["a"], "id": x["q"]})


@pytest.mark.tf
def test_users_seqio_task_is_read_before_it_tokenizes(seqio, tokenizer):
    steps = [rekey, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    add_seqio_task(seqio, tokenizer, steps)
    (example,) = read_examples("own_sums", "test")
    assert example == TextExample("1 + 1", "2", (), {"id": "1 + 1"})
    task = registry.find("own_sums")
    assert task.score([example], ["2"]) == {"score": 1, "hits": 1}
    assert task.score([example], ["3"])[task.validation_metric] == 0


@pytest.mark.tf
def test_users_seqio_task_without_text_is_decoded(seqio, tokenizer):
    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    def encode(dataset):
        vocabulary = TokenizerVocabulary(tokenizer)
        return dataset.map(
            lambda x: {
                "inputs": vocabulary.encode_tf(x["q"]),
                "targets": vocabulary.encode_tf(x["a"]),
            }
        )

    add_seqio_task(seqio, tokenizer, [encode, seqio.preprocessors.append_eos])
    (example,) = read_examples("own_sums", "test")
    assert (example.inputs, example.targets) == ("1 + 1", "2")


@pytest.mark.tf
def test_users_seqio_task_must_give_inputs_and_targets(seqio, tokenizer):
    add_seqio_task(seqio, tokenizer, [])
    problem = r"'own_sums' has no field 'inputs' before .* \['q', 'a'\]"
    with pytest.raises(ValueError, match=problem):
        list(read_examples("own_sums", "test"))
