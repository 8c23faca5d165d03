"""`manifest.json` of a token store: what its files are, believed only where it fits.

A store may come from anywhere, so nothing in the manifest is taken on trust: a file has
a plain name, its size follows from the counts, and the counts add up. What cannot be
told so (ids of the vocabulary, names of sources) is covered by the manifest's own hash.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ul2 import json_files
from ul2.data.block_checksums import CHECKSUM, num_blocks
from ul2.spelling import did_you_mean
from ul2.vocab import Vocab

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
SPLITS: Final = ("train", "held_out")
KINDS: Final = ("tokens", "documents", "origins")
# Stores from before blocks had checksums lack these files.
CHECKSUMS: Final = "checksums"
OFFSET: Final = np.dtype("<u8")
ORIGIN: Final = np.dtype([("source", "<u4"), ("record", "<u8")])
_TOKENS: Final[dict[str, "np.dtype[Any]"]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}
_HASH: Final = "manifest_sha256"
_KEYS: Final = {
    "dtype": str,
    "tokenizer": dict,
    "vocab": dict,
    "splits": dict,
    "sources": list,
}
_MAX_BYTES: Final = 2**28
_MAX_COUNT: Final = 2**60


def _no_store(path: Path) -> str:
    """Says that a path is no store, and what to do."""
    if path.is_file():
        return (
            f"{path} is no token store; make one of that text: "
            f"ul2 tokenize --text {path} --train_vocab SIZE --out STORE."
        )
    stores = [file.parent for file in path.parent.glob(f"*/{MANIFEST_FILE}")]
    return (
        f"{path} is no token store: {path / MANIFEST_FILE} does not exist"
        f"{did_you_mean(str(path), map(str, stores))}; make one with `ul2 tokenize` or "
        "set DATA to one."
    )


def read(path: Path) -> dict[str, Any]:
    """Reads the manifest of the store at a path.

    Raises:
        ValueError: there is none, or it is damaged, or of another version.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise ValueError(_no_store(path))
    manifest = _parse(file)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {str(version)[:20]}, this ul2 reads "
            f"{FORMAT_VERSION}; tokenize the text again."
        )
    try:
        _check(manifest)
    except _BadManifestError as error:
        raise ValueError(
            f"{file} is damaged: {error}; copy it or tokenize the text again."
        ) from None
    return manifest


def write(manifest: Mapping[str, Any]) -> str:
    """Returns the text of a manifest, with its own hash."""
    whole = {**manifest, _HASH: _hash(manifest)}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def vocab_of(path: Path, manifest: Mapping[str, Any]) -> Vocab:
    """Returns the vocab contract.

    Raises:
        ValueError: there is none such, or it is of another tokenizer than the store's.
    """
    try:
        vocab = Vocab.from_json(manifest["vocab"])
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST_FILE}: {error}") from None
    if vocab.tokenizer_sha256 != manifest["tokenizer"]["sha256"]:
        raise ValueError(
            f"{path / MANIFEST_FILE} is damaged: its vocab contract is of tokenizer "
            f"{vocab.tokenizer_sha256}, not {manifest['tokenizer']['sha256']}."
        )
    return vocab


def token_dtype(manifest: Mapping[str, Any]) -> "np.dtype[Any]":
    """Returns the dtype of the tokens on disk."""
    return _TOKENS[manifest["dtype"]]


def files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the entry of every file but the manifest itself."""
    shards = [
        entry
        for split in manifest["splits"].values()
        for shard in split["shards"]
        for entry in shard["files"].values()
    ]
    return [manifest["tokenizer"], *shards]


class _BadManifestError(Exception):
    """What is wrong with a manifest."""


def _parse(file: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        return json_files.read_object(file, most_bytes=_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from None


def _hash(manifest: Mapping[str, Any]) -> str:
    """Returns a hash of everything in the manifest but the hash."""
    fields = {name: manifest[name] for name in manifest if name != _HASH}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check(manifest: Mapping[str, Any]) -> None:
    """Refuses what cannot be; names it."""
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise _BadManifestError(f"no {', '.join(missing)}")
    for key, kind in _KEYS.items():
        if type(manifest[key]) is not kind:
            raise _BadManifestError(f"{key} is {_shown(manifest[key])}")
    if _HASH in manifest and manifest[_HASH] != _hash(manifest):
        raise _BadManifestError(f"it is not what {_HASH} says")
    if manifest["dtype"] not in _TOKENS:
        raise _BadManifestError(f"dtype is {_shown(manifest['dtype'])}")
    if not all(isinstance(source, str) for source in manifest["sources"]):
        raise _BadManifestError("sources are no names")
    if set(manifest["splits"]) != set(SPLITS):
        raise _BadManifestError(f"splits are {_shown(sorted(manifest['splits']))}")
    _check_file("tokenizer", manifest["tokenizer"], None)
    for name in SPLITS:
        _check_split(name, manifest["splits"][name], _TOKENS[manifest["dtype"]])
    names = [entry["file"] for entry in files(manifest)]
    if len(set(names)) < len(names):
        raise _BadManifestError("a file stands in it twice")


def _check_split(name: str, split: Any, dtype: "np.dtype[Any]") -> None:
    if not isinstance(split, dict) or not isinstance(split.get("shards"), list):
        raise _BadManifestError(f"split {name} has no shards")
    for number, shard in enumerate(split["shards"]):
        _check_shard(f"shard {number} of {name}", shard, dtype)
    for key in ("tokens", "documents"):
        total = sum(shard[key] for shard in split["shards"])
        if split.get(key) != total:
            raise _BadManifestError(
                f"{name} has {_shown(split.get(key))} {key}, but its shards {total}"
            )


def _check_shard(what: str, shard: Any, dtype: "np.dtype[Any]") -> None:
    """Refuses a shard whose files have not the sizes that its counts ask for."""
    if not isinstance(shard, dict) or not isinstance(shard.get("files"), dict):
        raise _BadManifestError(f"{what} has no files")
    for key in ("tokens", "documents"):
        count = shard.get(key)
        if type(count) is not int or not 0 < count < _MAX_COUNT:
            raise _BadManifestError(f"{what} has {_shown(count)} {key}")
    tokens = shard["tokens"] * dtype.itemsize
    sizes = {
        "tokens": tokens,
        "documents": shard["documents"] * OFFSET.itemsize,
        "origins": shard["documents"] * ORIGIN.itemsize,
        CHECKSUMS: num_blocks(tokens) * CHECKSUM.itemsize,
    }
    kinds = shard["files"].keys()
    if not set(KINDS) <= kinds <= sizes.keys():
        raise _BadManifestError(f"{what} has the files {_shown(sorted(kinds))}")
    for kind, entry in shard["files"].items():
        _check_file(f"{kind} of {what}", entry, sizes[kind])


def _check_file(what: str, entry: Any, size: int | None) -> None:
    """Refuses an entry without a plain name, the right size and a hash."""
    if not isinstance(entry, dict):
        raise _BadManifestError(f"{what} is {_shown(entry)}")
    name, found, sha256 = (entry.get(key) for key in ("file", "bytes", "sha256"))
    # A path would lead out of the store.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,200}", name):
        raise _BadManifestError(f"{what} is in {_shown(name)}, which is no file name")
    if type(found) is not int or not 0 <= found < _MAX_COUNT:
        raise _BadManifestError(f"{what} has {_shown(found)} bytes")
    if size is not None and found != size:
        raise _BadManifestError(f"{what} has {found} bytes, not {size}")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise _BadManifestError(f"{what} has no sha256")


def _shown(value: Any) -> str:
    """Returns the beginning of a value, for a message."""
    return repr(value)[:60]
