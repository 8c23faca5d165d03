"""Changes to valid inputs that reach behind the first check of a reader.

A flipped bit seldom gets past a parser. So a file that is JSON is changed as a tree
(another type, a number without end, a path that leads out, a key twice), lengths are
written over with the numbers that overflow, and headers are put back together with
lengths that fit. Everything is drawn from one `random.Random`, so an input is a number.
"""

import gzip
import json
import os
import random
import struct
import zlib
from pathlib import Path

# What each kind of number overflows at, and what is merely absurd.
NUMBERS = [
    *(0, 1, -1, 2, 7, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32),
    *(-(2**31), 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(10**30)),
]
# Names that lead out, end lines, or mean something to whoever prints or opens them.
TEXTS = [
    *("", ".", "..", "../../../../etc/passwd", "/etc/passwd", "a/b", "\\\\host\\c"),
    *("x\ny", "\x1b[31m", "\x00", "\ud800", "ÿ" * 300, "🙂", "²", "nan", "-1", "{}"),
    *("bfloat16", "float64", "V100000", "O", "(2,3)f4", "i4,i4", "|S9", "<f4", "U9"),
    *("%SEED", "@os.system", "__class__", "file:///etc/passwd", "<extra_id_0>"),
    *("layers_999999999", "train", "uint32", "1e999", "٣"),
]
_RAW = [b"", b"\x00", b"\xff" * 8, b"\xef\xbb\xbf", b"\r", b"\n", b"}\n", b"\xc3("]
_RAW += [b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"\x1f\x8b\x08\x00", b"%A = %A\n"]
_RAW += [b"<!DOCTYPE x [<!ENTITY e 'e'>]>", b"import os\n", b"\x80\x04cos\nsystem\n"]
_FRESH_VALUES = 7
# Stands for brackets within brackets, more of them than Python itself can write.
_DEEP = "so deep"
_GROWN_BYTES = 5 * 2**28


def mutate(folder: Path, rng: random.Random) -> None:
    """Changes one or two of the files of a folder, in place."""
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and path.stat().st_size < _GROWN_BYTES
        )
        if not files:
            return
        file = rng.choice(files)
        if rng.random() < 0.03:
            _mutate_entry(file, files, rng)
        else:
            file.write_bytes(mutated(file.read_bytes(), rng))


def _mutate_entry(file: Path, files: list[Path], rng: random.Random) -> None:
    """Does to a file what happens to whole files."""
    action = rng.choice(("gone", "empty", "folder", "other", "loop", "grown"))
    if action == "empty":
        file.write_bytes(b"")
    elif action == "other":
        file.write_bytes(rng.choice(files).read_bytes())
    elif action == "grown":
        # Takes no room on disk, and all there is in memory.
        grown = _GROWN_BYTES if rng.random() < 0.1 else file.stat().st_size + 1
        os.truncate(file, grown)
    else:
        file.unlink()
        if action == "folder":
            file.mkdir()
        elif action == "loop":
            file.symlink_to(file.name)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Returns a file's content after one to three changes of a kind that suits it."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = _once(content, rng)
    return content


def _once(content: bytes, rng: random.Random) -> bytes:
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        try:
            return gzip.compress(_once(gzip.decompress(content), rng), 1)
        except (OSError, EOFError, zlib.error):
            pass
    if rng.random() < 0.7:
        for suits in (_json_tree, _json_line, _headed_json):
            changed = suits(content, rng)
            if changed is not None:
                return changed
    if rng.random() < 0.5 and _is_text(content):
        return _text_lines(content, rng)
    return _bytes(content, rng)


def _is_text(content: bytes) -> bool:
    return b"\n" in content[:4096] and b"\x00" not in content[:4096]


def _json_tree(content: bytes, rng: random.Random) -> bytes | None:
    """Changes one value of a JSON document; None where it is none."""
    if content.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return None
    text = json.dumps(change_value(tree, rng))
    depth = rng.choice((3, 70, 1200, 50_000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    if rng.random() < 0.05:  # a name that stands twice
        text = text.replace("{", '{"format_version": 7, "shape": [0], ', 1)
    if rng.random() < 0.05:
        text = text.replace("1", rng.choice(("NaN", "Infinity", "1e999", "-0")), 1)
    return text.encode()


def _json_line(content: bytes, rng: random.Random) -> bytes | None:
    """Changes one line of a file of JSON lines, behind a number and a tab or not."""
    lines = content.split(b"\n")
    if len(lines) < 2:
        return None
    place = rng.randrange(len(lines))
    head, brace, rest = lines[place].partition(b"{")
    changed = _json_tree(brace + rest, rng)
    if changed is None or len(head) > 20:
        return None
    lines[place] = head + changed
    return b"\n".join(lines)


def _headed_json(content: bytes, rng: random.Random) -> bytes | None:
    """Changes a JSON header behind its length, as safetensors has it."""
    if len(content) < 10 or content[8:9] != b"{":
        return None
    length = int.from_bytes(content[:8], "little")
    header = _json_tree(content[8 : 8 + length], rng)
    if header is None:
        return None
    if rng.random() < 0.1:
        length = rng.choice([n for n in NUMBERS if 0 <= n < 2**64])
    else:
        length = len(header)
    return length.to_bytes(8, "little") + header + content[8 + length :]


def change_value(tree: object, rng: random.Random) -> object:
    """Returns a JSON value with one value in it changed, wherever it is."""
    places: list[tuple[object, object]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys: list[object] = []
        if isinstance(node, dict):
            keys = list(node)
        elif isinstance(node, list):
            keys = list(range(len(node)))
        for key in keys:
            places.append((node, key))
            waiting.append(node[key])  # type: ignore[index]
    if not places or rng.random() < 0.02:
        return fresh_value(tree, rng)
    node, key = rng.choice(places)
    action = rng.random()
    if action < 0.12:
        del node[key]  # type: ignore[attr-defined]
    elif action < 0.2 and isinstance(node, dict):
        node[rng.choice(TEXTS)] = node.pop(key)
    elif action < 0.24 and isinstance(node, list):
        node *= rng.choice((2, 3, 50))
    else:
        node[key] = fresh_value(node[key], rng)  # type: ignore[index]
    return tree


def fresh_value(value: object, rng: random.Random) -> object:
    """Returns another value in the place of one, most often of the same kind."""
    kind = rng.randrange(_FRESH_VALUES)
    if type(value) is int and kind < 3:
        return rng.choice([*NUMBERS, value + 1, value - 1, -value, value * 2**20])
    if isinstance(value, str) and kind < 3:
        return rng.choice([*TEXTS, value + "x", value[::-1], value[:-1], value * 9])
    if kind == 3:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice([*NUMBERS, 0.5, -1.5, 1e308, True, False, None])
    if kind == 5:
        return _DEEP
    return rng.choice([[], {}, [value], {"a": value}, [[]], [value, value]])


def _text_lines(content: bytes, rng: random.Random) -> bytes:
    """Moves, repeats, cuts or writes over the lines of a text, or its words."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    action = rng.randrange(6)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(place, rng.choice(lines))
    elif action == 2:
        lines.insert(place, rng.choice(_RAW))
    elif action == 3:
        lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    else:
        words = lines[place].split(b" ")
        texts = [text.encode("utf-8", "surrogatepass") for text in TEXTS]
        numbers = [str(number).encode() for number in NUMBERS]
        others = rng.choice(lines).split(b" ")
        words[rng.randrange(len(words))] = rng.choice([*texts, *numbers, *others])
        lines[place] = b" ".join(words)
    return b"\n".join(lines)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes bytes without knowing what they mean."""
    data = bytearray(content)
    if not data:
        return rng.choice(_RAW)
    # The heads of formats are at the front and at the end.
    place = rng.randrange(len(data))
    if rng.random() < 0.5:
        place = rng.choice((place % 64, len(data) - 1 - place % min(64, len(data))))
        place %= len(data)
    action = rng.randrange(8)
    if action <= 1:
        data[place] ^= 1 << rng.randrange(8)
    elif action == 2:
        data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xDD, 0xFE, 0xFF))
    elif action == 3:
        code = rng.choice(("<B", "<H", "<I", "<Q", ">H", ">I", ">Q"))
        size = struct.calcsize(code)
        number = rng.choice(NUMBERS) % 2 ** (8 * size)
        data[place : place + size] = struct.pack(code, number)
    elif action == 4:
        del data[place:]
    elif action == 5:
        del data[place : place + rng.choice((1, 2, 4, 8, 100))]
    elif action == 6:
        other = rng.randrange(len(data))
        data[place:place] = data[other : other + rng.choice((1, 8, 64))]
    else:
        data[place:place] = rng.choice(_RAW)
    return bytes(data)
