"""Readers of gin files, text, rows, stores and tokenizers, and of what a run leaves."""

import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.reader_table import ROOT, is_small, json_of, reader, sha256
from ul2.data import store_manifest

# Gin files and flags.

_GIN = ("models/enc_dec_tiny", "objectives/ul2", "runs/pretrain")
_BINDINGS = (
    "DATA=x\nMODEL_DIR=m\nTOTAL_STEPS=3\nMESH=data=1\nSEED=7\nLEARNING_RATE=0.5\n"
)
_BINDINGS += "MODE_CONVENTION=None\nBATCH_SIZE=14\nEXAMPLES_PER_ROW=2\n"


def _bindings(text: str) -> list[tuple[str, str]]:
    parts = [line.partition("=") for line in text.split("\n") if line]
    return [(name, value) for name, _, value in parts if name]


def make_gin(folder: Path) -> None:
    for name in (*_GIN, "models/encoder_decoder", "runs/run", "objectives/rsx"):
        source = ROOT / "configs" / f"{name}.gin"
        if source.is_file():
            shutil.copy(source, folder / f"{source.stem}.gin")


@reader("gin files", make_gin, share=10)
def read_gin(folder: Path) -> None:
    from ul2 import launch

    files = [str(folder / f"{name.split('/')[1]}.gin") for name in _GIN]
    extra = [str(path) for path in sorted(folder.glob("enc*r.gin"))]
    launch.read([*extra, *files], _bindings(_BINDINGS)[:4])


def make_bindings(folder: Path) -> None:
    (folder / "bindings").write_text(_BINDINGS)


@reader("gin bindings", make_bindings, share=10)
def read_bindings(folder: Path) -> None:
    from ul2 import launch

    text = _text(folder / "bindings")
    files = [f"configs/{name}.gin" for name in _GIN]
    launch.read(files, [*_bindings(_BINDINGS)[:4], *_bindings(text)])


def _text(file: Path) -> str:
    """Returns what a shell would hand on."""
    if not file.is_file() or file.stat().st_size > 2**20:
        return ""
    return file.read_bytes().decode("utf-8", "surrogateescape")


# Text and rows.

_LINES = [
    {"text": "one two three", "id": 1},
    {"text": "the second\nof two lines", "more": {"a": [1, 2.5, None]}},
    {"text": "Grüße 🙂", "inputs": "A ___ reads.", "mode": "R", "max_tokens": 3},
]


def make_text(folder: Path) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in _LINES).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "c.txt").write_bytes("a paragraph\nof two\n\nand a third é\n".encode())
    import zstandard

    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(lines))


@reader("jsonl, text, gz, zst", make_text, share=40)
def read_text(folder: Path) -> None:
    from ul2.tasks.sources import TextSource, read_documents
    from ul2.tasks.splits import split_documents

    for unit, field in (("paragraph", "text"), ("file", "inputs")):
        source = TextSource(
            files=str(folder), text_unit=unit, text_field=field, on_error="skip"
        )
        for _, document in split_documents(read_documents(source), 0.5):
            document.text.encode()
    strict = TextSource(files=str(folder))
    for document in read_documents(strict):
        assert document.text


def make_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {
        "text": [f"row {i % 7}" for i in range(60)],
        "inputs": ["a", None] * 30,
        "number": [float(i) for i in range(60)],
        "many": [[1, 2]] * 60,
    }
    table = pyarrow.table(columns)
    for codec in ("none", "zstd"):
        file = folder / f"{codec}.parquet"
        parquet.write_table(table, file, compression=codec, row_group_size=25)


@reader("parquet", make_parquet, share=15)
def read_parquet(folder: Path) -> None:
    from ul2.inference.rows import FileRows, survey
    from ul2.tasks.sources import TextSource, read_documents

    source = TextSource(files=str(folder), on_error="skip")
    for document in read_documents(source):
        document.text.encode()
    for file in sorted(folder.glob("*.parquet")):
        survey(FileRows(file))


@reader("rows to infer", make_text, share=20)
def read_rows(folder: Path) -> None:
    from ul2.inference.rows import FileRows, survey

    refusals = []
    for file in sorted(folder.iterdir()):
        try:
            survey(FileRows(file))
        except ValueError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


# Stores.


def make_token_store(folder: Path) -> None:
    from store_toys import fill_store, make_documents

    documents = make_documents(40)
    fill_store(folder / "store", documents, make_documents(5, 1), shard_tokens=300)
    for file in (folder / "store").iterdir():
        file.rename(folder / file.name)
    (folder / "store").rmdir()


def make_old_token_store(folder: Path) -> None:
    from store_toys import without_checksums

    make_token_store(folder)
    without_checksums(folder)


def repair_token_store(folder: Path) -> None:
    """Makes the manifest's hashes fit the files that there are."""
    manifest = json_of(folder / "manifest.json")
    if manifest is None:
        return
    for entry in _entries(manifest):
        file = folder / str(entry.get("file")).replace("/", "_").replace("\0", "_")
        if is_small(file):
            entry["sha256"] = sha256(file.read_bytes())
    manifest.pop("manifest_sha256", None)
    (folder / "manifest.json").write_text(store_manifest.write(manifest))


def _entries(node: object) -> Iterable[dict[str, object]]:
    """Yields every object in a tree that names a file."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "file" in node:
                yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def read_token_store(folder: Path) -> None:
    from ul2.data.token_store import TokenStore

    store = TokenStore.open(folder)
    for name in store_manifest.SPLITS:
        split = store.split(name)
        store.fingerprint(name)
        if split.num_tokens:
            places = np.arange(0, split.num_tokens, 37)
            split.take(places, 50)
            for place in places.tolist():
                split.document_of(place)
    store.tokenizer_path.read_bytes()
    store.verify()


reader("token store", make_token_store, repair=repair_token_store, share=20)(
    read_token_store
)
reader("token store, old", make_old_token_store, share=10)(read_token_store)


def make_example_store(folder: Path) -> None:
    from ul2.data.example_store import write_store

    examples = [([5, 6, 7 + i], [8, 9]) for i in range(9)]
    names = {"task": "t", "split": "train", "tokenizer_sha256": "0" * 64}
    write_store(folder / "s", examples, **names)
    for file in (folder / "s").iterdir():
        file.rename(folder / file.name)
    (folder / "s").rmdir()


def repair_example_store(folder: Path) -> None:
    manifest = json_of(folder / "manifest.json")
    if manifest is None:
        return
    for side in ("inputs", "targets"):
        entry: Any = manifest[side]
        for kind in ("tokens", "offsets"):
            content = (folder / f"{side}.{kind}").read_bytes()
            entry[f"{kind}_sha256"] = sha256(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@reader("example store", make_example_store, repair=repair_example_store, share=40)
def read_example_store(folder: Path) -> None:
    from ul2.data.example_store import open_store

    split = open_store(folder, tokenizer_sha256="0" * 64)
    for row in split.rows.tolist():
        split.inputs[row].sum()
        split.targets[row].sum()
    split.lengths("inputs").sum()
    split.hold_out(0.5)


# Tokenizers.


def make_tokenizer(folder: Path) -> None:
    from ul2.tasks.tokenizer import train_tokenizer

    texts = [f"the {i}th text of many words, {i * i}" for i in range(60)]
    train_tokenizer(texts, 300, 4, folder / "spiece.model")


def make_foreign_tokenizer(folder: Path) -> None:
    from text_toys import train_foreign

    # Nearly all of it is the table of what is normalised to what.
    train_foreign(folder / "spiece.model")


def read_tokenizer(folder: Path) -> None:
    from ul2.interop.vocabulary import open_foreign

    tokenizer = open_foreign(folder / "spiece.model")
    for text in ("the model reads", "▁ <extra_id_0> é", "", "x" * 300):
        ids = tokenizer.encode(text)
        tokenizer.decode([i for i in ids if 0 <= i < tokenizer.vocab.size])
    for token in (0, tokenizer.vocab.size - 1):
        tokenizer.id_to_text(token)


reader("sentencepiece", make_tokenizer, share=30)(read_tokenizer)
reader("sentencepiece, T5's", make_foreign_tokenizer, share=10)(read_tokenizer)


# What a run leaves behind, and reads again.

_CONFIG = "A = 1\nrecipe.Recipe.seed = %A\nrecipe.Recipe.data = \\\n    'x'\n"
_SCORES = [{"step": i, "loss": 2.0 / (i + 1), "accuracy": 0.5} for i in range(4)]


def make_run(folder: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in _SCORES)
    (folder / "metrics.jsonl").write_text(text)
    parts = {"r": {"loss": 1.0, "unigram_entropy": 2.0}}
    sample = {"index": 1, "denoiser": "r", "mode": "R", "output": "<extra_id_0> é"}
    told = {"modes": {"R": {"loss": 1.0, "denoisers": parts}}, "samples": [sample]}
    lines = ({**line, "denoisers": parts, "sources": parts, **told} for line in _SCORES)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "eval.jsonl").write_text(text)
    start = {"event": "start", "step": 0, "time": 1.0, "host_memory_bytes": 7}
    (folder / "history.jsonl").write_text(json.dumps(start) + "\n")
    event = {"event": "skip", "step": 2, "batch": 1, "loss": "nan"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    best = {"metric": "loss", "step": 3, "value": 0.5}
    (folder / "best.json").write_text(json.dumps(best))
    trials = {"R": {"loss": 1.0}, "S": {"loss": 2.0}}
    modes = {"metric": "loss", "trial_steps": 3, "trials": trials, "best": "R"}
    (folder / "modes.json").write_text(json.dumps(modes))
    (folder / "config.gin").write_text(_CONFIG)
    result = {"key": "k", "checkpoint": "c", "task": "t", "mode": "R", "scores": {}}
    result["predictions"] = "predictions/c/t.jsonl"
    (folder / "results.json").write_text(json.dumps({"results": [result]}))
    (folder / "checkpoints" / "3" / "contract").mkdir(parents=True)
    (folder / "checkpoints" / "3" / "contract" / "metadata").write_text("{}")


@reader("files of a run", make_run, share=20)
def read_run(folder: Path) -> None:
    from ul2.evaluation.results import Results
    from ul2.report.report import make_report
    from ul2.report.run_record import RunRecord
    from ul2.training import best, mode_search, run_directory
    from ul2.training.writers import JsonLines

    def read_modes() -> None:
        search = mode_search.ModeSearch(folder, 3, "loss")
        if search.chosen is not None:
            place = search.trial_dir(search.chosen)
            assert place.parent == folder / "trials" and place.name not in ("", "..")

    refusals = []
    for read in (
        lambda: JsonLines(folder / "metrics.jsonl", 2).close(),
        lambda: best.BestRecord(folder, "loss", 3).to_json(),
        lambda: best.best_step(folder),
        read_modes,
        lambda: run_directory.check_same_run(folder, _CONFIG),
        lambda: Results(folder).find("k"),
        lambda: make_report([RunRecord(folder, "run")]),
    ):
        try:
            read()
        except ValueError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def make_journal(folder: Path) -> None:
    from ul2.inference.journal import Journal

    with Journal(folder / "out.jsonl", 3, {"a": 1, "b": None}) as journal:
        journal.add({0: {"inputs": "x"}, 2: {"inputs": "é"}})


@reader("journal", make_journal, share=40)
def read_journal(folder: Path) -> None:
    from ul2.inference.journal import Journal

    with Journal(folder / "out.jsonl", 3, {"a": 1, "b": None}) as journal:
        missing = [i for i in range(3) if not journal.has([i])]
        journal.add({i: {"inputs": "again"} for i in missing})
        assert len(list(journal.answers())) == 3
        journal.finish()


# Data sets as their authors publish them.


def make_published(folder: Path) -> None:
    rows = [{"question": f"{i}+1?", "options": ["1", "2"]} for i in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(json.dumps(rows))
    problem = '<Problem ID="1"><Body>Two &amp; two.</Body></Problem>'
    xml = f"<?xml version='1.0' encoding='utf-8'?>\n<a>\n{problem}\n{problem}\n</a>\n"
    (folder / "a.xml").write_text(xml)
    (folder / "anatomy_test.csv").write_text('What?,"a, b",c,d,e,B\nWho?,1,2,3,4,A\n')


@reader("published data sets", make_published, share=40)
def read_published(folder: Path) -> None:
    from ul2.tasks import published_files as files
    from ul2.tasks.examples import _read_file
    from ul2.tasks.text_task import Files

    shape = {"question": str, "options": [str]}
    kinds = {
        "a.jsonl": lambda path: files.read_json_lines(path, shape),
        "a.json": lambda path: files.read_json_list(path, shape),
        "a.xml": lambda path: files.read_xml_problems(path, ("ID", "Body")),
        "anatomy_test.csv": files.read_mmlu,
    }
    refusals = []
    for name, read in kinds.items():
        source = Files(home="", folder="", splits={}, read=read)
        try:
            list(_read_file(source, folder / name))
        except ValueError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
