"""The toy rows are rows of TFDS: its own builders encode them and give them back."""

import numpy as np
import pytest
from published_rows import TFDS_ROWS

from ul2.tasks import (
    commonsense,
    data_to_text,
    question_answering,
    reasoning,
    summarization,
)
from ul2.tasks.data_to_text import DIALOG_ACTS
from ul2.tasks.text_task import Tfds

pytestmark = pytest.mark.tf

TASKS = {
    task.name: task
    for module in (
        commonsense,
        data_to_text,
        question_answering,
        reasoning,
        summarization,
    )
    for task in module.TASKS
    if isinstance(task.source, Tfds)
}


def features_of(task, directory):
    tfds = pytest.importorskip("tensorflow_datasets")
    return tfds.builder(task.source.name, data_dir=directory).info.features


def plain(value):
    """Turns what TFDS hands out into dicts, lists, strings and numbers."""
    import tensorflow as tf

    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tf.RaggedTensor):
        return plain(value.to_list())
    if isinstance(value, tf.Tensor):
        return plain(np.asarray(value.numpy()).tolist())
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def test_every_tfds_task_has_rows():
    assert TASKS.keys() == TFDS_ROWS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_builder_gives_the_rows_back(name, tmp_path):
    features = features_of(TASKS[name], tmp_path)
    for row in TFDS_ROWS[name]:
        encoded = features.serialize_example(row)
        assert plain(features.deserialize_example(encoded)) == row


def test_dialog_acts_are_numbered_as_tfds_does(tmp_path):
    features = features_of(TASKS["schema_guided_dialogue"], tmp_path)
    assert tuple(features["dialog_acts"]["act"].names) == DIALOG_ACTS


def test_labels_of_anli_are_ordered_as_tfds_does(tmp_path):
    features = features_of(TASKS["anli_r1"], tmp_path)
    assert features["label"].names == ["e", "n", "c"]
