"""`Vocab`: where ids live. Written beside every token store, checkpoint and export.

Ids are looked up by token string, once, when a tokenizer is opened (T5 counts its
sentinels down from the end of the vocabulary, others count up: arithmetic on
`len(tokenizer)` is wrong for one of them). Afterwards nobody asks the tokenizer.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

# What the paper prints, and what the released checkpoints were trained on
# (ul2-20B's model card; U-PaLM, section 2.2).
MODE_CONVENTIONS: Final[dict[str, dict[str, str]]] = {
    "paper": {"R": "[R]", "S": "[S]", "X": "[X]"},
    "released": {"R": "[NLU]", "S": "[S2S]", "X": "[NLG]"},
}
MODES: Final = ("R", "S", "X")


def sentinel_text(index: int) -> str:
    """Returns the text of the sentinel of span `index`: `<extra_id_0>` first."""
    return f"<extra_id_{index}>"


def round_up(size: int, multiple: int) -> int:
    """Returns the smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def mode_meant(text: object) -> str:
    """Returns ` (did you mean 'R'?)` for another way to write R, S or X, or nothing.

    [NLU] -> R; s2s -> S; x -> X
    """
    plain = str(text).strip("[]").upper()
    for texts in MODE_CONVENTIONS.values():
        for mode, written in texts.items():
            if plain == written.strip("[]"):
                return f" (did you mean {mode!r}?)"
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocab:
    """The ids that mean something to denoising, training and decoding.

    Attributes:
        size: number of ids the tokenizer can name, sentinels included.
        padded_size: rows of the embedding table, a multiple of 128 so that it divides
            over any mesh; the ids from `size` up are never data.
        start_id: what the decoder reads first (T5: the pad id).
        sentinel_ids: id of `<extra_id_i>` at index i.
        mode_ids: mode text to its ids: one id of our own vocabulary, or the several
            ordinary pieces of a foreign one.
        mode_convention: which texts R, S and X stand for; a key of
            `MODE_CONVENTIONS`.
        tokenizer_sha256: hash of the SentencePiece model file.
    """

    size: int
    padded_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    start_id: int
    sentinel_ids: tuple[int, ...]
    mode_ids: dict[str, tuple[int, ...]]
    mode_convention: str
    tokenizer_sha256: str

    def __post_init__(self) -> None:
        if self.mode_convention not in MODE_CONVENTIONS:
            raise ValueError(
                f"mode_convention={self.mode_convention!r} is not one of "
                f"{sorted(MODE_CONVENTIONS)}; set MODE_CONVENTION."
            )
        special = [self.pad_id, self.eos_id, self.unk_id, *self.sentinel_ids]
        modes = [token for ids in self.mode_ids.values() for token in ids]
        if min(*special, self.start_id, *modes) < 0:
            raise ValueError(
                f"special ids must be at least 0; got {special}, start_id="
                f"{self.start_id} and modes {self.mode_ids}."
            )
        if len(set(special)) != len(special):
            raise ValueError(
                "pad, eos, unk and the sentinels must have ids of their own; got "
                f"{special}."
            )
        largest = max(*special, self.start_id, *modes)
        if self.size > self.padded_size or largest >= self.padded_size:
            raise ValueError(
                f"{self.padded_size=} does not hold {self.size=} ids and "
                f"special id {largest}."
            )

    def mode(self, name: str | None) -> tuple[int, ...]:
        """Returns the ids that announce mode R, S or X; none for no mode.

        Raises:
            ValueError: `name` is no mode, or no tokenizer is known.
        """
        if name is None:
            return ()
        texts = MODE_CONVENTIONS[self.mode_convention]
        if name not in texts:
            raise ValueError(
                f"mode {name!r} is not one of {list(texts)} or none{mode_meant(name)}."
            )
        if texts[name] not in self.mode_ids:
            raise ValueError(
                f"mode {name!r}: no tokenizer says how {texts[name]} is written; give "
                "ul2 convert the one it was trained with (--vocab), or use no mode."
            )
        return self.mode_ids[texts[name]]

    def with_mode_convention(self, mode_convention: str) -> "Vocab":
        """Returns this vocabulary, with R, S and X written in another convention."""
        return dataclasses.replace(self, mode_convention=mode_convention)

    def to_json(self) -> dict[str, Any]:
        """Returns the contract as plain JSON values."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Vocab":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field is missing or unknown, or no such value is possible.
        """
        if not isinstance(fields, dict):
            raise ValueError(f"vocab contract: {str(fields)[:40]!r} is no object.")
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        if set(fields) != set(known):
            raise ValueError(
                f"vocab contract: missing {sorted(set(known) - set(fields))}, unknown "
                f"{sorted(set(fields) - set(known))}."
            )
        for name, kind in known.items():
            if kind in (int, str) and type(fields[name]) is not kind:
                raise ValueError(f"vocab contract: {name} is no {kind.__name__}.")
        modes = fields["mode_ids"]
        if not isinstance(modes, dict) or not all(map(_are_ids, modes.values())):
            raise ValueError("vocab contract: mode_ids are no lists of ids.")
        if not _are_ids(fields["sentinel_ids"]):
            raise ValueError("vocab contract: sentinel_ids are no list of ids.")
        return cls(
            **{
                **fields,
                "sentinel_ids": tuple(fields["sentinel_ids"]),
                "mode_ids": {text: tuple(ids) for text, ids in modes.items()},
            }
        )


def _are_ids(value: Any) -> bool:
    """Returns whether a JSON value is a list of whole numbers."""
    return isinstance(value, list) and all(type(token) is int for token in value)


def resolve(
    piece_to_id: Callable[[str], int | None],
    encode: Callable[[str], Sequence[int]],
    *,
    size: int,
    tokenizer_sha256: str,
    mode_convention: str,
    extra_sentinels: int = 0,
) -> Vocab:
    """Looks every special id up by its token string.

    A vocabulary without sentinels of its own gets `extra_sentinels` of them above
    its pieces. The first hundred are T5's, counted down (`<extra_id_0>` is 32099
    above 32,000 pieces), so that they are the released checkpoints' sentinels; any
    further ones go above those, and move none of them:

        pieces 0..31999   <extra_id_99>..<extra_id_0> at 32000..32099   then 32100...

    Args:
        piece_to_id: id of a piece, or None where the vocabulary lacks it.
        encode: ids of a text, with no special ids added.
        size: number of pieces.
        tokenizer_sha256: hash of the tokenizer's file.
        mode_convention: a key of `MODE_CONVENTIONS`.
        extra_sentinels: sentinels to add to a vocabulary that has none.

    Raises:
        ValueError: pad, eos or unk is missing, or sentinels were asked for on top of
            a vocabulary that has its own.
    """
    ids = {name: piece_to_id(name) for name in ("<pad>", "</s>", "<unk>")}
    missing = [name for name, found in ids.items() if found is None]
    if missing:
        raise ValueError(f"the vocabulary has no {' and no '.join(missing)}.")

    own: list[int] = []
    while (found := _sentinel(piece_to_id, len(own))) is not None:
        own.append(found)
    if own and extra_sentinels:
        raise ValueError(
            f"the vocabulary has {len(own)} sentinels of its own; extra_sentinels="
            f"{extra_sentinels} is for one that has none."
        )
    first = min(extra_sentinels, 100)
    added = [size + first - 1 - i for i in range(first)]
    added += [size + i for i in range(first, extra_sentinels)]
    size += extra_sentinels

    mode_ids = {}
    for texts in MODE_CONVENTIONS.values():
        for text in texts.values():
            single = piece_to_id(text)
            mode_ids[text] = (single,) if single is not None else tuple(encode(text))
    pad_id, eos_id, unk_id = (found or 0 for found in ids.values())
    return Vocab(
        size=size,
        padded_size=round_up(size, 128),
        pad_id=pad_id,
        eos_id=eos_id,
        unk_id=unk_id,
        start_id=pad_id,
        sentinel_ids=tuple(own or added),
        mode_ids=mode_ids,
        mode_convention=mode_convention,
        tokenizer_sha256=tokenizer_sha256,
    )


def _sentinel(piece_to_id: Callable[[str], int | None], index: int) -> int | None:
    """Finds sentinel `index` under the spellings SentencePiece gives it."""
    text = sentinel_text(index)
    found = piece_to_id(text)
    return found if found is not None else piece_to_id(f"▁{text}")
