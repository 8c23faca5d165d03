"""Readers of checkpoints, ours and those of others, and of exports."""

import dataclasses
import functools
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuzzing.reader_table import TESTS, is_small, json_of, reader, sha256

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


def make_export(folder: Path) -> None:
    from stablehlo_toys import make_checkpoint

    from ul2.interop import stablehlo

    stablehlo.write(make_checkpoint("decoder_only"), folder)


def repair_export(folder: Path) -> None:
    manifest = json_of(folder / "export.json")
    if manifest is None or not isinstance(manifest.get("files"), dict):
        return
    for name, identity in manifest["files"].items():
        file = folder / name.replace("/", "_").replace("\0", "_")
        if is_small(file) and isinstance(identity, dict):
            content = file.read_bytes()
            identity |= {"bytes": len(content), "sha256": sha256(content)}
    (folder / "export.json").write_text(json.dumps(manifest))


@reader("stablehlo export", make_export, repair=repair_export)
def read_export(folder: Path) -> None:
    from ul2.interop import stablehlo_loader

    stablehlo_loader.load(folder)
