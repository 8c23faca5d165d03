"""Token stores of random documents, and a vocabulary whose tokenizer is no model."""

import hashlib
import json

import numpy as np

from ul2.data.store_manifest import MANIFEST_FILE, write
from ul2.data.token_store_writer import TokenStoreWriter
from ul2.vocab import Vocab

MODEL = b"a tokenizer"


def make_vocab(size=300):
    return Vocab(
        size=size,
        padded_size=size + 84,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        start_id=0,
        sentinel_ids=(3, 4),
        mode_ids={},
        mode_convention="paper",
        tokenizer_sha256=hashlib.sha256(MODEL).hexdigest(),
    )


def make_documents(num_documents, seed=0, high=300, longest=30):
    rng = np.random.default_rng(seed)
    return [
        np.append(rng.integers(5, high, rng.integers(0, longest)), 1)
        for _ in range(num_documents)
    ]


def fill_store(path, documents, held_out=(), chunk=3, size=300, **options):
    with TokenStoreWriter(
        path, tokenizer=MODEL, vocab=make_vocab(size), **options
    ) as writer:
        for split, rows in (("train", documents), ("held_out", held_out)):
            for begin in range(0, len(rows), chunk):
                part = rows[begin : begin + chunk]
                writer.add(
                    split,
                    np.concatenate(part),
                    np.array([len(row) for row in part]),
                    [(f"{split}.txt", begin + i) for i in range(len(part))],
                )


def without_checksums(path):
    """Makes a store one from before blocks, and manifests, had checksums."""
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    del manifest["manifest_sha256"]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            (path / shard["files"].pop("checksums")["file"]).unlink()
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def change_manifest(path, change):
    """Changes a manifest in place, and makes its hash fit again."""
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    manifest.pop("manifest_sha256")
    change(manifest)
    (path / MANIFEST_FILE).write_text(write(manifest))


def flip_bit(file, byte):
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)
