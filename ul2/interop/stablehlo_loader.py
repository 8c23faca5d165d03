"""Runs a model that was exported as StableHLO; needs Python, jax and numpy alone.

    python load.py FOLDER            checks every file and runs the functions once

    import load
    model = load.load("FOLDER")
    model.generate([[71, 1712, 1]], max_tokens=20)            ids in, ids out
    model.score(input_tokens, target_tokens)                  log_probs, num_tokens

`export.json` in the folder says what the functions take and return. Rows of ids are
filled up with the pad id at their end. An encoder-decoder has

    encoded = model.encode(input_tokens)                                  [b, s, d]
    logits = model.decode(encoded, input_tokens, decoder_input_tokens)    [b, t, v]
    log_probs, num_tokens = model.score(input_tokens, target_tokens)      [b], [b]

where the decoder reads the start id and then the targets; a decoder-only model has

    logits = model.decode(tokens, prefix_lengths)                         [b, t, v]
    log_probs, num_tokens = model.score(tokens, prefix_lengths)           [b], [b]

where rows are the start id, inputs, targets; the prefix is the start id and inputs.
The logits of a column are those of the token after it.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT: Final = "ul2-stablehlo-1"
# What safetensors calls the dtypes that parameters may have.
DTYPES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Rows are padded to a multiple of this, so that few programs are compiled.
_LENGTH_MULTIPLE: Final = 32
_MAX_HEADER_BYTES: Final = 100 * 2**20
_LENGTHS: Final = ("inputs_length", "targets_length")

Place = Callable[[str, np.ndarray], Any]


class Model:
    """The functions of an export, with its parameters.

    Attributes:
        manifest: `export.json`.
        params: dotted path to values.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        params: dict[str, Any],
        exported: dict[str, export.Exported],
    ) -> None:
        self.manifest = manifest
        self.params = params
        self._functions = {name: jax.jit(made.call) for name, made in exported.items()}

    def encode(self, input_tokens: Any) -> jax.Array:
        """Returns what the encoder makes of rows of inputs."""
        encoded: jax.Array = self._call("encode", input_tokens)
        return encoded

    def decode(self, *arrays: Any) -> jax.Array:
        """Returns the logits of the token after each column."""
        logits: jax.Array = self._call("decode", *arrays)
        return logits

    def score(self, *arrays: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the log probability of each row's targets, and their number."""
        log_probs, num_tokens = self._call("score", *arrays)
        return log_probs, num_tokens

    def generate(
        self, inputs: Sequence[Sequence[int]], max_tokens: int = 64
    ) -> list[list[int]]:
        """Returns the likeliest tokens, one by one, for each row, up to EOS.

        Every step runs the decoder over all that was written before. Pad and ids that
        no tokenizer names are never written.
        """
        vocab = self.manifest["vocab"]
        never = np.arange(vocab["padded_size"]) >= vocab["size"]
        never[vocab["pad_id"]] = True
        context: tuple[Any, ...] = ()
        firsts = [[vocab["start_id"], *row] for row in inputs]
        prefixes = [len(first) for first in firsts]
        if self.manifest["architecture"] == "encoder_decoder":
            sources = self.pad(inputs, "inputs_length")
            context = (self.encode(sources), sources)
            firsts = [[vocab["start_id"]] for _ in inputs]
        written = [list(first) for first in firsts]
        is_open = [True] * len(written)
        longest = max(map(len, firsts)) + max_tokens - 1
        for _ in range(max_tokens):
            tokens = self.pad(written, "targets_length", longest)
            arrays = (*context, tokens) if context else (tokens, prefixes)
            at = np.arange(len(written)), np.array([len(row) - 1 for row in written])
            logits = jnp.where(never[None], -jnp.inf, self.decode(*arrays)[at])
            likeliest = np.asarray(jnp.argmax(logits, axis=-1))
            for i, token in enumerate(likeliest.tolist()):
                is_open[i] = is_open[i] and token != vocab["eos_id"]
                if is_open[i]:
                    written[i].append(token)
            if not any(is_open):
                break
        return [row[len(first) :] for row, first in zip(written, firsts, strict=True)]

    def pad(
        self, rows: Sequence[Sequence[int]], length: str, longest: int = 1
    ) -> np.ndarray:
        """Returns rows of ids as one array, filled up with the pad id.

        Args:
            rows: ids.
            length: `inputs_length` or `targets_length`, which `export.json` may fix.
            longest: columns to have room for, even if no row is that long.

        Raises:
            ValueError: a row is longer than the export takes.
        """
        fixed = self.manifest[length]
        longest = max([longest, *map(len, rows)])
        if fixed is not None and longest > fixed:
            raise ValueError(
                f"{longest} ids in a row; this export has {length}={fixed}."
            )
        columns = fixed or -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        pad_id = self.manifest["vocab"]["pad_id"]
        padded = np.full((len(rows), columns), pad_id, np.int32)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        return padded

    def _call(self, name: str, *arrays: Any) -> Any:
        if name not in self._functions:
            raise ValueError(f"this export has {[*self._functions]}, not {name}.")
        arguments = self.manifest["functions"][name]["arguments"]
        if len(arrays) != len(arguments):
            names = ", ".join(argument["name"] for argument in arguments)
            raise ValueError(f"{name} takes {names}; got {len(arrays)} arrays.")
        given = [
            jnp.asarray(array, argument["dtype"])
            for array, argument in zip(arrays, arguments, strict=True)
        ]
        return self._functions[name](self.params, *given)


def load(
    folder: str | Path, *, check_hashes: bool = True, place: Place | None = None
) -> Model:
    """Opens an export.

    Args:
        folder: where `export.json` is.
        check_hashes: whether to read every file once to see that it is undamaged.
        place: puts the values of a parameter on devices, as place(path, values), for
            a model that needs several. By default all go to the first device.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / "export.json")
    for name, identity in manifest["files"].items():
        _check_file(folder, name, identity, check_hashes)
    by_file: dict[str, dict[str, np.ndarray]] = {}
    params = {}
    for path, described in manifest["parameters"].items():
        file = described["file"]
        if file not in by_file:
            by_file[file] = _map_safetensors(folder / file)
        values = by_file[file].get(path)
        wanted = (described["dtype"], tuple(described["shape"]))
        if values is None or (str(values.dtype), values.shape) != wanted:
            raise ValueError(f"{folder / file} has no {path} as in export.json.")
        params[path] = place(path, values) if place else jnp.asarray(values)
    exported = {
        name: _read_function(folder / made["file"])
        for name, made in manifest["functions"].items()
    }
    return Model(manifest, params, exported)


def _read_function(path: Path) -> export.Exported:
    """Reads a program; jax says in many ways that it is damaged."""
    try:
        return export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path} is damaged: {reason}.") from None


def check(model: Model) -> str:
    """Scores two rows of random ids in two ways; returns a line that says so.

    Raises:
        ValueError: the two differ.
    """
    vocab = model.manifest["vocab"]
    ids = np.random.default_rng(0).integers(0, vocab["size"], (2, 2, 6))
    ids[ids == vocab["pad_id"]] = vocab["eos_id"]
    columns = min(6, model.manifest["targets_length"] or 6)
    lengths = np.array([columns, max(1, columns - 2)])
    rows = [row[:n] for row, n in zip(ids[0].tolist(), lengths, strict=True)]
    if model.manifest["architecture"] == "encoder_decoder":
        source_columns = model.manifest["inputs_length"] or 6
        sources = [ids[1, 0, :source_columns].tolist(), ids[1, 1, :1].tolist()]
        inputs = model.pad(sources, "inputs_length")
        targets = model.pad(rows, "targets_length")
        read = np.roll(targets, 1, axis=1)
        read[:, 0] = vocab["start_id"]
        logits = model.decode(model.encode(inputs), inputs, read)
        log_probs, num_tokens = model.score(inputs, targets)
        firsts = np.zeros(2, int)
    else:
        rows = [[vocab["start_id"], *row[1:]] for row in rows]
        tokens = model.pad(rows, "targets_length")
        firsts = np.array([(columns + 1) // 2, 1])
        logits = model.decode(tokens, firsts)
        log_probs, num_tokens = model.score(tokens, firsts)
        targets = np.roll(tokens, -1, axis=1)
        lengths, firsts = lengths - 1, firsts - 1
    picked = jax.nn.log_softmax(logits, axis=-1)
    by_token = np.take_along_axis(np.asarray(picked), targets[..., None], -1)[..., 0]
    places = np.arange(targets.shape[1])
    scored = (firsts[:, None] <= places) & (places < lengths[:, None])
    expected = np.sum(by_token, axis=1, where=scored)
    # bfloat16, and float32 products of a GPU, round differently in either function.
    room = 0.1 * lengths + 0.01 * np.abs(expected)
    same = np.abs(np.asarray(log_probs) - expected) <= room
    if not (np.all(same) and np.array_equal(num_tokens, np.sum(scored, axis=1))):
        raise ValueError(
            f"score gives {np.asarray(log_probs).tolist()} for {num_tokens.tolist()} "
            f"tokens, but the logits {expected.tolist()}."
        )
    size = sum(math.prod(values.shape) for values in model.params.values())
    return (
        f"ok: {model.manifest['architecture']}, {size:,} parameters, "
        f"{len(model.manifest['files'])} files undamaged, on {jax.default_backend()}"
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Reads `export.json` and looks at every field that is used here."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format is {manifest['format']!r}, not {FORMAT!r}")
        files = manifest["files"]
        outside = [name for name in files if name != Path(name).name or name == ".."]
        if outside:
            raise ValueError(f"{outside[0]!r} is no plain file name")
        described = [*manifest["functions"].values(), *manifest["parameters"].values()]
        unknown = {made["file"] for made in described} - files.keys()
        if unknown:
            raise ValueError(f"{unknown.pop()!r} has no hash")
        # What is missing or of another kind raises here, and not in the middle of work.
        _ = [len(made["arguments"]) for made in manifest["functions"].values()]
        _ = [tuple(made["shape"]) for made in manifest["parameters"].values()]
        _ = [made["dtype"] for made in manifest["parameters"].values()]
        _ = [(made["bytes"], made["sha256"]) for made in files.values()]
        _ = [manifest["vocab"][key] for key in ("size", "pad_id", "eos_id", "start_id")]
        _ = [manifest[key] for key in ("architecture", *_LENGTHS)]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}.") from None
    return manifest


def _check_file(
    folder: Path, name: str, identity: dict[str, Any], check_hashes: bool
) -> None:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    size = path.stat().st_size
    if size != identity["bytes"]:
        raise ValueError(
            f"{path} is damaged: {size} bytes, not {identity['bytes']} as in "
            "export.json."
        )
    if not check_hashes:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != identity["sha256"]:
        raise ValueError(f"{path} is damaged: its sha256 is not that of export.json.")


def _map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, which are read when they are used.

    The file is 8 bytes with the length of a JSON header, the header, and the values;
    the header has, of each array, dtype, shape and first and last byte.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"{path} is damaged: a header of {length} bytes.")
        text = file.read(length)
    arrays: dict[str, np.ndarray] = {}
    try:
        for name, entry in json.loads(text).items():
            if name == "__metadata__":
                continue
            dtype = np.dtype(getattr(jnp, DTYPES[entry["dtype"]]))
            first, last = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not 0 <= first <= last <= size - 8 - length:
                raise ValueError(f"{name} ends at byte {last}")
            if math.prod(shape) * dtype.itemsize != last - first:
                raise ValueError(f"{name} has {last - first} bytes for {shape}")
            arrays[name] = np.memmap(path, dtype, "r", 8 + length + first, shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}.") from None
    return arrays


def main() -> None:
    """Checks the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python load.py FOLDER")
    try:
        line = check(load(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"load.py: {error}")
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
