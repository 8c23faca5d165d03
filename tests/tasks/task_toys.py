"""Toy data sets for every task: rows that TFDS seems to have, and files.

    with toy_data_sets(tmp_path) as data_dir:
        examples = read_examples("xsum", "train", data_dir=data_dir)

Every split of a data set has the same rows. What TFDS gives was encoded and decoded by
the data set's own builder, so a row with other fields is refused.
"""

import contextlib
import functools

import glue_toys
import published_rows
import published_toys

from ul2.tasks import registry
from ul2.tasks.text_task import Tfds


@functools.cache
def tfds_rows():
    """Returns rows by TFDS's name of their data set, without version."""
    rows = dict(glue_toys.ROWS)
    for name, own in published_rows.TFDS_ROWS.items():
        rows[_without_version(registry.find(name).source)] = own
    return rows


def _without_version(source):
    assert isinstance(source, Tfds)
    return source.name.rpartition(":")[0]


def _as_dataset(builder, *args, **kwargs):
    import tensorflow as tf

    del args, kwargs
    name = builder.info.full_name.rpartition("/")[0]
    features = builder.info.features
    rows = [
        features.serialize_example(features.encode_example(row))
        for row in tfds_rows()[name]
    ]
    dataset = tf.data.Dataset.from_tensor_slices(rows)
    return dataset.map(features.deserialize_example)


@contextlib.contextmanager
def toy_data_sets(directory):
    """Makes TFDS give the toy rows, and lays the files below a directory."""
    import tensorflow_datasets as tfds

    published_toys.write_files(directory)
    with tfds.testing.mock_data(as_dataset_fn=_as_dataset):
        yield directory
