"""Every task and mixture in seqio's registry: as text, and bound to a tokenizer.

Importing this module registers all of them as text, under their own names:

    seqio.get_mixture_or_task("super_glue_boolq")    inputs, targets, choices, meta

A model needs ids, a mode in front and EOS behind; `bind` registers that, too:

    name = bind("super_glue_boolq", tokenizer, "S")
    inputs   [S] 11 12 13 <eos>     targets   21 <eos>

What a row becomes is decided by `TextTask.to_examples`: plain Python, row by row, which
a generator hands to tf.data. TensorFlow's string operations would run in parallel, but
the same code would not run without TensorFlow, nor be as easy to read and to test; and
these sets are small. `meta` goes through as JSON, so that seqio's Evaluator can
postprocess and score.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import seqio
import tensorflow as tf

from ul2.tasks import registry
from ul2.tasks.examples import read_examples
from ul2.tasks.seqio_vocabulary import TokenizerVocabulary
from ul2.tasks.text_task import TextExample, TextTask
from ul2.tasks.tokenizer import Tokenizer

_SIDES: Final = ("inputs", "targets")
_SIGNATURE: Final = {
    "inputs": tf.TensorSpec([], tf.string),
    "targets": tf.TensorSpec([], tf.string),
    "choices": tf.TensorSpec([None], tf.string),
    "meta": tf.TensorSpec([], tf.string),
}


def register_text_tasks() -> None:
    """Registers all tasks and mixtures as text; those that are, stay as they are.

    To be called again after `registry.register`.
    """
    text = seqio.Feature(
        seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0
    )
    known = seqio.TaskRegistry.names()
    for name in registry.names():
        if name not in known:
            task = registry.find(name)
            _add_task(name, task, {}, [], dict.fromkeys(_SIDES, text), drop="")
    for name in registry.MIXTURES:
        if name not in seqio.MixtureRegistry.names():
            rates = registry.find_mixture(name)
            seqio.MixtureRegistry.add(name, list(rates))


def bind(
    name: str,
    tokenizer: Tokenizer,
    mode: str | None = None,
    *,
    shots: int = 0,
    seed: int = 0,
    shots_per: str = "task",
    infill: bool = False,
    data_dir: str | None = None,
) -> str:
    """Registers a task or mixture with a tokenizer; returns the name to get it by.

    Inputs begin with the mode, and both sides end with EOS. What is longer than seqio's
    `sequence_length` loses text, never the mode or EOS: an example its end, a few-shot
    prompt its beginning. The same arguments give the same name, registered once.

        inputs    [X] 11 12 13 <0> <eos>          with `infill`
        targets   <0> 21 <eos>

    Args:
        name: of the task or mixture.
        tokenizer: makes the ids.
        mode: R, S, X or None.
        shots: exemplars in front of each example.
        seed: of the exemplars.
        shots_per: see `read_examples`.
        infill: end inputs and begin targets with the first sentinel.
        data_dir: where data sets lie.

    Raises:
        ValueError: there is no such task or mode.
    """
    options: dict[str, Any] = {"shots": shots, "seed": seed, "shots_per": shots_per}
    options["data_dir"] = data_dir
    what = json.dumps([options, infill, repr(tokenizer.vocab)])
    digest = hashlib.sha256(what.encode()).hexdigest()[:12]
    bound = f"{name}.{mode or 'none'}.{digest}"
    if name in registry.MIXTURES:
        if bound not in seqio.MixtureRegistry.names():
            rates = [
                (bind(part, tokenizer, mode, infill=infill, **options), rate)
                for part, rate in registry.find_mixture(name)
            ]
            seqio.MixtureRegistry.add(bound, rates)
        return bound
    if bound not in seqio.TaskRegistry.names():
        task, vocab = registry.find(name), tokenizer.vocab
        sentinel = list(vocab.sentinel_ids[:1]) if infill else []
        steps = [
            seqio.preprocessors.tokenize,
            functools.partial(
                frame,
                before={"inputs": vocab.mode(mode), "targets": sentinel},
                after={"inputs": [*sentinel, vocab.eos_id], "targets": [vocab.eos_id]},
                keep_end=shots > 0,
            ),
        ]
        feature = seqio.Feature(TokenizerVocabulary(tokenizer), add_eos=True)
        features = dict.fromkeys(_SIDES, feature)
        _add_task(
            bound, task, options, steps, features, drop=tokenizer.decode(sentinel)
        )
    return bound


def frame(
    dataset: Any,
    sequence_length: Mapping[str, int | None] | None = None,
    *,
    before: Mapping[str, Sequence[int]],
    after: Mapping[str, Sequence[int]],
    keep_end: bool,
) -> Any:
    """Puts ids in front of and behind inputs and targets, and makes them fit.

    inputs 11 12 13 14, before [S], after <eos>, length 5   ->   [S] 11 12 13 <eos>

    Args:
        dataset: of ids.
        sequence_length: of each side; None for any.
        before: ids in front of each side.
        after: ids behind it.
        keep_end: cut inputs at their beginning.

    Raises:
        ValueError: a length has no room for text.
    """
    room: dict[str, int | None] = {}
    for side in _SIDES:
        length = (sequence_length or {}).get(side)
        extra = len(before[side]) + len(after[side])
        room[side] = None if length is None else length - extra
        if length is not None and length <= extra:
            raise ValueError(
                f"sequence_length {length} of {side} has no room for text beside "
                f"{extra} ids of mode, sentinel and EOS; use more."
            )

    def frame_example(example: dict[str, Any]) -> dict[str, Any]:
        framed = dict(example)
        for side in _SIDES:
            ids = tf.cast(example[side], tf.int32)
            most = room[side]
            if most is not None:
                at_end = keep_end and side == "inputs"
                ids = ids[-most:] if at_end else ids[:most]
            parts = [tf.constant(list(p[side]), tf.int32) for p in (before, after)]
            framed[side] = tf.concat([parts[0], ids, parts[1]], 0)
        return framed

    return dataset.map(frame_example, tf.data.AUTOTUNE)


def _add_task(
    name: str,
    task: TextTask,
    options: Mapping[str, Any],
    steps: list[Any],
    features: dict[str, Any],
    *,
    drop: str,
) -> None:
    """Puts a task in seqio's registry.

    Args:
        name: under which.
        task: what.
        options: of `read_examples`.
        steps: from text on.
        features: of inputs and targets.
        drop: a text that predictions begin with and postprocessing does not know.
    """
    source = seqio.FunctionDataSource(
        functools.partial(_make_dataset, task=task, options=options),
        splits=tuple(task.source.splits),
    )

    def score(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        scores: dict[str, float] = {}
        for metric in task.metrics:
            scores |= metric(targets, predictions)
        return scores

    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=steps,
        output_features=features,
        postprocess_fn=functools.partial(_postprocess, task=task, drop=drop),
        metric_fns=[score],
    )


def _make_dataset(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    task: TextTask,
    options: Mapping[str, Any],
) -> Any:
    """Returns the examples of a split as strings.

    `shuffle_files` and `seed` are seqio's; one process that reads in order has nothing
    to shuffle.

    Raises:
        ValueError: the data is not there.
    """
    del shuffle_files, seed
    # Opened here, missing data is our one line; inside TensorFlow, fifty.
    opened = [read_examples(task, split, **options)]

    def read() -> Iterator[dict[str, Any]]:
        examples = opened.pop() if opened else read_examples(task, split, **options)
        for example in examples:
            yield {
                "inputs": example.inputs,
                "targets": example.targets,
                "choices": np.array([c.encode() for c in example.choices], object),
                "meta": json.dumps(dict(example.meta)),
            }

    return tf.data.Dataset.from_generator(read, output_signature=_SIGNATURE)


def _postprocess(
    text: str,
    example: Mapping[str, Any],
    is_target: bool = False,
    *,
    task: TextTask,
    drop: str,
) -> Any:
    """Returns what the metrics compare, as seqio's Evaluator asks for it."""
    texts = {
        side: _as_text(example.get(f"{side}_pretokenized", example[side]))
        for side in _SIDES
    }
    found = TextExample(
        **texts,
        choices=tuple(_as_text(choice) for choice in example["choices"]),
        meta=json.loads(_as_text(example["meta"])),
    )
    if is_target:
        return task.target_of(found)
    return task.postprocess(text.removeprefix(drop) if drop else text, found)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


register_text_tasks()
