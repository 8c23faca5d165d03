"""Pre-training tasks for seqio: C4, the corpus inside Python, and a user's own files.

Two tasks hold text alone and are registered by importing this module: `c4_v310` and
`embedded`. `ul2 tokenize --task` reads them; the others turn text into examples:

    names = register_pretraining_tasks(tokenizer, mixture)    c4_v310_ul2, embedded_ul2
    register_text_task("ours_ul2", TextSource(files="ours/*.jsonl"), tokenizer, mixture)
    seqio.TaskRegistry.get("ours_ul2").get_dataset({"inputs": 512, "targets": 512})

Such a task needs its tokenizer and its mixture when it is registered. seqio's registry
is one per process, so a name is registered once; EOS is placed by the denoisers, so no
`append_eos` follows them.
"""

import functools
from collections.abc import Iterator
from typing import Any, Final

import seqio
import tensorflow as tf
from absl import logging

from ul2.denoising.mixture import Mixture
from ul2.tasks.preprocessors import mixture_of_denoisers
from ul2.tasks.seqio_vocabulary import TokenizerVocabulary
from ul2.tasks.sources import EMBEDDED, TextSource, find_files, read_documents
from ul2.tasks.splits import split_documents
from ul2.tasks.tokenizer import Tokenizer

C4: Final = "c4/en:3.1.0"
# What seqio's tools expect the splits to be called, and what the token store does.
_SPLITS: Final = {"train": "train", "validation": "held_out"}


def register_pretraining_tasks(
    tokenizer: Tokenizer, mixture: Mixture, objective: str = "ul2"
) -> tuple[str, ...]:
    """Registers C4 from TFDS and the embedded corpus; returns the tasks' names.

    Args:
        tokenizer: what encodes the text.
        mixture: the denoisers.
        objective: what the names call the mixture.

    Raises:
        ValueError: one of the names is taken.
    """
    names = []
    for corpus, source in CORPORA.items():
        names.append(f"{corpus}_{objective}")
        _register(names[-1], source, tokenizer, mixture)
    return tuple(names)


def register_text_task(
    name: str, source: TextSource, tokenizer: Tokenizer, mixture: Mixture
) -> None:
    """Registers a task over files, with the splits `train` and `validation`.

    The files are read again for every epoch, by one process: to train on them, make a
    token store.

    Raises:
        ValueError: the name is taken, or the files cannot be found.
    """
    find_files(source.files)
    _register(name, _make_source(source), tokenizer, mixture)


def _make_source(source: TextSource) -> Any:
    """Returns files as a source of seqio's."""
    return seqio.FunctionDataSource(
        functools.partial(_make_text_dataset, source=source), splits=tuple(_SPLITS)
    )


def _register(name: str, source: Any, tokenizer: Tokenizer, mixture: Mixture) -> None:
    """Registers text -> tokens -> examples under a name that is free."""
    if name in seqio.TaskRegistry.names():
        raise ValueError(
            f"a seqio task {name!r} is registered already; choose another name, or "
            "call seqio.TaskRegistry.remove first."
        )
    vocabulary = TokenizerVocabulary(tokenizer)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.CacheDatasetPlaceholder(),
            functools.partial(
                mixture_of_denoisers, mixture=mixture, vocab=tokenizer.vocab
            ),
        ],
        output_features={
            side: seqio.Feature(vocabulary, add_eos=False)
            for side in ("inputs", "targets")
        },
        metric_fns=[],
    )


def _make_text_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, source: TextSource
) -> Any:
    """Returns the documents of one split, in the order of the files.

    `shuffle_files` and `seed` are seqio's; one process that reads file after file has
    nothing to shuffle.
    """
    del shuffle_files, seed

    def read() -> Iterator[dict[str, str]]:
        documents = read_documents(source, on_skip=logging.warning)
        for name, document in split_documents(documents, source.held_out_share):
            if name == _SPLITS[split]:
                yield {"text": document.text}

    return tf.data.Dataset.from_generator(
        read, output_signature={"text": tf.TensorSpec([], tf.string)}
    )


CORPORA: Final = {
    "c4_v310": seqio.TfdsDataSource(tfds_name=C4, splits=("train", "validation")),
    "embedded": _make_source(TextSource(files=EMBEDDED)),
}
for _name, _source in CORPORA.items():
    if _name not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add(
            _name,
            source=_source,
            preprocessors=[],
            output_features={
                "text": seqio.Feature(
                    seqio.PassThroughVocabulary(1), False, dtype=tf.string, rank=0
                )
            },
            metric_fns=[],
        )
