"""Every reader of foreign bytes: a valid input of each, and how all of it is read."""

import dataclasses
import functools
import gzip
import itertools
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ul2.data import store_manifest

TESTS = Path(__file__).parents[1]
# Toys that make valid inputs stand beside the tests of what they are of.
for folder in ("", "data", "interop", "evaluation"):
    sys.path.append(str(TESTS / folder))

ROOT = TESTS.parent


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of foreign input.

    Attributes:
        name: of the reader.
        make: writes a valid input into an empty folder.
        read: reads all of it, as the package does.
        repair: makes checksums fit again, so that what they cover is read, too.
        share: inputs of a campaign, as a multiple of those of a slow reader.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    repair: Callable[[Path], None] | None = None
    share: int = 1


READERS: dict[str, Reader] = {}


def reader(
    name: str,
    make: Callable[[Path], None],
    *,
    repair: Callable[[Path], None] | None = None,
    share: int = 1,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers what follows as a reader."""

    def register(read: Callable[[Path], None]) -> Callable[[Path], None]:
        READERS[name] = Reader(name, make, read, repair, share)
        return read

    return register


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
    from ul2.tasks.sources import TextSource, read_documents, split_documents

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
    manifest = _json_of(folder / "manifest.json")
    if manifest is None:
        return
    for entry in _entries(manifest):
        file = folder / str(entry.get("file")).replace("/", "_").replace("\0", "_")
        if _is_small(file):
            entry["sha256"] = _sha256(file.read_bytes())
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
    manifest = _json_of(folder / "manifest.json")
    if manifest is None:
        return
    for side in ("inputs", "targets"):
        entry: Any = manifest[side]
        for kind in ("tokens", "offsets"):
            content = (folder / f"{side}.{kind}").read_bytes()
            entry[f"{kind}_sha256"] = _sha256(content)
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


def _json_of(file: Path) -> dict[str, object] | None:
    if not _is_small(file):
        return None
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _is_small(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size < 2**20
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return False


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


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


# Checkpoints of others, and ours.


def _checkpoint(**changes: object) -> object:
    from checkpoint_toys import make_checkpoint

    small = {"embed_dim": 4, "num_heads": 2, "head_dim": 2, "mlp_dim": 3}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return make_checkpoint("t5_1_1", **{**small, **layers, **changes})


def _saved(write: Callable[..., object], folder: Path, **options: object) -> None:
    """Writes a checkpoint of a micro model, with the files directly in a folder."""
    from checkpoint_toys import save

    save(write, _checkpoint(), folder / "saved", **options)
    for path in (folder / "saved").iterdir():
        path.rename(folder / path.name)
    (folder / "saved").rmdir()


def read_checkpoint(folder: Path) -> None:
    """Opens whatever checkpoint is there, and reads all of it."""
    from ul2.interop.certificate import check_card
    from ul2.interop.opening import open_checkpoint

    opened = open_checkpoint(folder)
    for tensor in opened.params.values():
        for region in itertools.islice(tensor.regions(), 100):
            tensor.read(region)
    if opened.moments is not None:
        for slot in (opened.moments.v_row, opened.moments.v_col, opened.moments.v):
            for tensor in slot.values():
                tensor.read()
    check_card(opened)


def make_huggingface(folder: Path) -> None:
    from ul2.interop import huggingface

    _saved(huggingface.write, folder)


def make_huggingface_shards(folder: Path) -> None:
    from text_toys import train_foreign

    from ul2.interop import huggingface

    _saved(functools.partial(huggingface.write, max_shard_bytes=900), folder)
    (folder / "ul2_vocab.json").unlink()
    size = train_foreign(folder / "spiece.model").vocab.size - 4
    ids = {f"<extra_id_{i}>": size + 6 - i for i in range(7)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    decoder = {str(token): {"content": text} for text, token in ids.items()}
    config = {"added_tokens_decoder": decoder, "extra_ids": 7}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_tokenizer_json(folder: Path) -> None:
    make_huggingface(folder)
    (folder / "ul2_vocab.json").unlink()
    pieces = ["<pad>", "</s>", "<unk>", "a", "<extra_id_0>", "[R]"]
    added = [{"id": 4, "content": "<extra_id_0>"}]
    content = {"added_tokens": added, "model": {"vocab": [[p, 0.0] for p in pieces]}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


reader("hugging face", make_huggingface, share=2)(read_checkpoint)
reader("hugging face, shards", make_huggingface_shards, share=2)(read_checkpoint)
reader("tokenizer.json", make_tokenizer_json, share=2)(read_checkpoint)


@reader("safetensors", make_huggingface_shards, share=40)
def read_safetensors(folder: Path) -> None:
    from ul2.interop import safetensors

    for tensor in safetensors.read_index(folder).values():
        tensor.read()


def make_t5x(variant: str, folder: Path) -> None:
    with tarfile.open(TESTS / "goldens" / "t5x_formats.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for path in (folder / variant / "checkpoint_2").iterdir():
        path.rename(folder / path.name)
    for path in folder.iterdir():
        if path.name in VARIANTS:
            shutil.rmtree(path)
    for name in ("expected.npz", "README.md"):
        (folder / name).unlink(missing_ok=True)


VARIANTS = (
    *("gzip_f32", "gzip_bf16", "gzip_chunked", "two_devices"),
    *("orbax_ocdbt", "msgpack_inline"),
)
for variant in ("gzip_chunked", "orbax_ocdbt"):
    make = functools.partial(make_t5x, variant)
    reader(f"t5x, {variant}", make)(read_checkpoint)


def make_t5x_written(folder: Path) -> None:
    from ul2.interop import t5x_writing

    _saved(t5x_writing.write, folder)


reader("t5x, zarr", make_t5x_written, share=2)(read_checkpoint)


def make_msgpack(folder: Path) -> None:
    from flax import serialization

    tree = {
        "optimizer": {
            "target": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
            "state": {"step": np.int32(7), "list": {"0": 1.5, "1": "text"}},
        },
        "version": 3,
        "chunked": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2, "1": 2},
            "chunks": {"0": np.zeros(3, np.int8), "1": np.zeros(1, np.int8)},
        },
    }
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


@reader("msgpack", make_msgpack, share=100)
def read_msgpack(folder: Path) -> None:
    from ul2.interop.flax_msgpack import index
    from ul2.interop.tensors import Tensor

    waiting = [index(folder / "checkpoint")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, Tensor):
            node.read()


def make_zarr(folder: Path) -> None:
    from ul2.interop import tensors
    from ul2.interop.zarr_arrays import write_directory, write_metadata

    array = np.arange(48, dtype=np.float32).reshape(6, 8)
    tensor = dataclasses.replace(tensors.from_array("a.b", array), piece=(4, 8))
    for name, codec in (("a.b", {"id": "gzip", "level": 1}), ("a.c", None)):
        write_directory(folder, name, tensor, codec)
    write_directory(folder, "a.d", tensor, {"id": "zstd", "level": 1})
    write_metadata(folder, {("a", name): tensor for name in "bcd"})


def make_ocdbt(folder: Path) -> None:
    import orbax.checkpoint as ocp

    tree = {"a": {"b": np.arange(48, dtype=np.float32), "c": np.int32(7)}}
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "item", tree)
    for path in (folder / "item").iterdir():
        path.rename(folder / path.name)
    (folder / "item").rmdir()


def read_arrays(folder: Path) -> None:
    from ul2.interop.zarr_arrays import read_database

    for tensor in read_database(folder).values():
        for region in itertools.islice(tensor.regions(), 100):
            tensor.read(region)


reader("zarr", make_zarr, share=25)(read_arrays)
reader("ocdbt", make_ocdbt, share=8)(read_arrays)


def make_own(folder: Path) -> None:
    from ul2.interop import own

    _saved(own.write, folder)


@reader("our checkpoint", make_own, share=2)
def read_own(folder: Path) -> None:
    from ul2.training import checkpoints

    contract = checkpoints.read_contract(folder)
    checkpoints.model_of(contract)
    read_checkpoint(folder)


# What a run leaves behind, and reads again.

_CONFIG = "A = 1\nrecipe.Recipe.seed = %A\nrecipe.Recipe.data = \\\n    'x'\n"
_SCORES = [{"step": i, "loss": 2.0 / (i + 1), "accuracy": 0.5} for i in range(4)]


def make_run(folder: Path) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in _SCORES)
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "eval.jsonl").write_text(lines)
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


def make_export(folder: Path) -> None:
    from stablehlo_toys import make_checkpoint

    from ul2.interop import stablehlo

    stablehlo.write(make_checkpoint("decoder_only"), folder)


def repair_export(folder: Path) -> None:
    manifest = _json_of(folder / "export.json")
    if manifest is None or not isinstance(manifest.get("files"), dict):
        return
    for name, identity in manifest["files"].items():
        file = folder / name.replace("/", "_").replace("\0", "_")
        if _is_small(file) and isinstance(identity, dict):
            content = file.read_bytes()
            identity |= {"bytes": len(content), "sha256": _sha256(content)}
    (folder / "export.json").write_text(json.dumps(manifest))


@reader("stablehlo export", make_export, repair=repair_export)
def read_export(folder: Path) -> None:
    from ul2.interop import stablehlo_loader

    stablehlo_loader.load(folder)
