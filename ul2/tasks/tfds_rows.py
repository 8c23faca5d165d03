"""Rows of a data set that TFDS has prepared, as plain Python values."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ul2.tasks.text_task import Tfds

# The tasks of a seqio mixture are opened by threads of TensorFlow's.
_opening: Final = threading.Lock()


def read_tfds(
    source: Tfds, split: str, data_dir: str | Path | None = None
) -> Iterator[dict[str, Any]]:
    """Returns the rows of a split in the order in which they were prepared.

    Args:
        source: of the rows.
        split: our name of it.
        data_dir: where prepared data sets lie; None for TFDS's own place.

    Raises:
        ValueError: the data set is not prepared, or TensorFlow is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ValueError(
            f"reading {source.name!r} needs {error.name}; pip install 'ul2[tasks]'."
        ) from None
    try:
        # One file after another: the order is that on disk.
        order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        with _opening:
            builder = tfds.builder(source.name, data_dir=data_dir)
            dataset = builder.as_dataset(
                split=source.splits[split], shuffle_files=False, read_config=order
            )
    # What TFDS raises depends on what it meets: a missing folder, another version, a
    # library that the code of the data set wants.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        place = "" if data_dir is None else f" --data_dir {data_dir}"
        raise ValueError(
            f"data set {source.name!r} is not prepared (`tfds build {source.name}"
            f"{place}`, or set TFDS_DATA_DIR to where it lies): {reason}"
        ) from None
    return map(make_plain, tfds.as_numpy(dataset))


def make_plain(value: Any) -> Any:
    """Returns dicts, lists, strings and numbers for what TFDS hands out.

    {"a": array([b"x", b"y"]), "b": int64(3)}  ->  {"a": ["x", "y"], "b": 3}
    """
    if isinstance(value, dict):
        return {key: make_plain(inner) for key, inner in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        return make_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [make_plain(inner) for inner in value]
    # Lists of lists of different lengths.
    return make_plain(value.to_list()) if hasattr(value, "to_list") else value
