"""Trains and opens SentencePiece tokenizers. Text can never become a special id.

A corpus may well contain the characters `<extra_id_0>`: pages about T5 do. If they
became the sentinel, the model would read a mask that masks nothing. So sentinels and
modes are control symbols, which no text encodes to; in a foreign model that has them
as ordinary or user-defined pieces they are turned into control symbols on opening.

    tokenizer = open_tokenizer("tokenizer.model", mode_convention="paper")
    tokenizer.encode("a <extra_id_0>")   ids of the fourteen characters
    tokenizer.decode([*tokenizer.encode("a "), tokenizer.vocab.sentinel_ids[0]])
                                         "a <extra_id_0>"
"""

import collections
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, overload

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from ul2.tasks.text_encoder import SPACE, TextEncoder
from ul2.vocab import MODE_CONVENTIONS, Vocab, resolve, sentinel_text

_PIECE_TYPES: Final = sentencepiece_model_pb2.ModelProto.SentencePiece
_Loaded = TypeVar("_Loaded")
_NUM_BYTES: Final = 256
_SENTENCE_CHARACTERS: Final = 4000
# mT5's, the largest that is published, has 4 MiB.
_MAX_MODEL_BYTES: Final = 2**27
# How many there are may come from a damaged file, and each takes memory.
_MAX_EXTRA_SENTINELS: Final = 2**16


class Tokenizer:
    """Text to ids and back, and where the special ids live.

    Pickling sends the path, so another process opens the model itself; one that only
    encodes needs no more than `encoder`.

    Attributes:
        path: the model file.
        model: the content of that file.
        encoder: what encodes.
        vocab: the vocab contract.
    """

    def __init__(
        self, path: Path, model: bytes, *, mode_convention: str, extra_sentinels: int
    ) -> None:
        """Reads `model`, the content of `path`; called by `open_tokenizer`."""
        if not 0 <= extra_sentinels <= _MAX_EXTRA_SENTINELS:
            raise ValueError(
                f"{path}: {extra_sentinels} sentinels above its pieces, of "
                f"0..{_MAX_EXTRA_SENTINELS}; the vocabulary is of another tokenizer, "
                "or damaged."
            )
        self.path = path
        self.model = model
        self._options = (extra_sentinels, mode_convention)
        proto = _parse(path, model)
        self._ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        special = self._special_ids()
        # No text encodes to a control symbol.
        silenced = _retype(proto, special, _PIECE_TYPES.CONTROL)
        byte_ids = self._find_byte_ids_of_space(proto)
        self.encoder = _load(path, lambda: TextEncoder(silenced, byte_ids))
        try:
            self.vocab: Vocab = resolve(
                self._ids.get,
                self.encoder.encode_one,
                size=len(proto.pieces),
                tokenizer_sha256=hashlib.sha256(model).hexdigest(),
                mode_convention=mode_convention,
                extra_sentinels=extra_sentinels,
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        # As user-defined symbols they are decoded to their text, whole.
        shown = special - {self.vocab.pad_id, self.vocab.eos_id}
        decoded = self._with_extra_sentinels(proto, shown)
        self._decoder = _load(
            path, lambda: sentencepiece.SentencePieceProcessor(model_proto=decoded)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_tokenizer, (self.path, *self._options)

    @property
    def sha256(self) -> str:
        """Hash of the model file."""
        return self.vocab.tokenizer_sha256

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Returns the ids of a text, or of each of several; no EOS is added."""
        if isinstance(text, str):
            return self.encoder.encode_one(text)
        return self.encoder.encode_lists(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`: sentinels and modes as their names, no EOS.

        Ids of the padding rows of the embedding table show as the unknown piece.

        Raises:
            ValueError: an id is negative or beyond the embedding table.
        """
        known = [self._check(int(i)) for i in ids]
        size, unk_id = self.vocab.size, self.vocab.unk_id
        return str(self._decoder.decode([i if i < size else unk_id for i in known]))

    def id_to_text(self, token: int) -> str:
        """Returns what a single id stands for, with its leading space.

        Raises:
            ValueError: the id is negative or beyond the embedding table.
        """
        if self._check(token) >= self.vocab.size:
            return f"<unused_{token}>"
        piece = str(self._decoder.id_to_piece(token))
        if self._decoder.is_control(token) or self._decoder.is_byte(token):
            return piece
        text = piece.replace(SPACE, " ")
        return text.strip() if token in self.vocab.sentinel_ids else text

    def _check(self, token: int) -> int:
        """Refuses what is no row of the embedding table."""
        if not 0 <= token < self.vocab.padded_size:
            raise ValueError(
                f"token {token} is not in 0..{self.vocab.padded_size - 1} of "
                f"{self.path}."
            )
        return token

    def _special_ids(self) -> set[int]:
        """Finds every piece that text must not encode to."""
        names = ["<pad>", "</s>"]
        names += [t for texts in MODE_CONVENTIONS.values() for t in texts.values()]
        found = {self._ids[name] for name in names if name in self._ids}
        sentinel = re.compile(f"{SPACE}?<extra_id_[0-9]+>")
        return found | {i for t, i in self._ids.items() if sentinel.fullmatch(t)}

    def _find_byte_ids_of_space(self, proto: Any) -> list[int]:
        """Returns the ids of the bytes of `▁`; none where a model loses spaces anyway.

        Joining separately encoded parts is exact only if no part gets a space of its
        own in front, and none loses one.
        """
        spec = proto.normalizer_spec
        if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
            return []
        ids = [self._ids.get(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        return [i for i in ids if i is not None] if None not in ids else []

    def _with_extra_sentinels(self, proto: Any, special: set[int]) -> bytes:
        """Returns the model in which the added sentinels are pieces as well."""
        shown = sentencepiece_model_pb2.ModelProto()
        shown.CopyFrom(proto)
        index = {token: i for i, token in enumerate(self.vocab.sentinel_ids)}
        for token in range(len(proto.pieces), self.vocab.size):
            shown.pieces.add(
                piece=sentinel_text(index[token]), type=_PIECE_TYPES.USER_DEFINED
            )
        return _retype(shown, special, _PIECE_TYPES.USER_DEFINED)


def open_tokenizer(
    path: str | os.PathLike[str],
    extra_sentinels: int = 0,
    mode_convention: str = "paper",
) -> Tokenizer:
    """Opens a SentencePiece model file.

    Args:
        path: the model file.
        extra_sentinels: sentinels to add above the pieces of a model that has none
            (100 for T5's own vocabulary).
        mode_convention: how modes are written; a key of `vocab.MODE_CONVENTIONS`.

    Raises:
        ValueError: the file is missing or no SentencePiece model, has no pad, eos or
            unk, or has sentinels of its own on top of which more were asked for.
    """
    path = Path(path).absolute()
    try:
        if path.stat().st_size > _MAX_MODEL_BYTES:
            raise ValueError(f"{path} is too large to be a SentencePiece model file.")
        model = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"cannot read the tokenizer {path}: {error.strerror}; give --vocab a "
            "SentencePiece model file."
        ) from None
    return Tokenizer(
        path, model, mode_convention=mode_convention, extra_sentinels=extra_sentinels
    )


def open_with_vocab(path: str | os.PathLike[str], vocab: Vocab) -> Tokenizer:
    """Opens a tokenizer as it was when `vocab` was made, added sentinels included.

    Raises:
        ValueError: the file is another tokenizer than the one `vocab` came from.
    """
    plain = open_tokenizer(path, mode_convention=vocab.mode_convention)
    if plain.sha256 != vocab.tokenizer_sha256:
        raise ValueError(
            f"{path} is the tokenizer {plain.sha256}, but the vocabulary came from "
            f"{vocab.tokenizer_sha256}; put that file back."
        )
    added = vocab.size - plain.vocab.size
    return open_tokenizer(path, added, vocab.mode_convention) if added else plain


def pieces_of(path: str | os.PathLike[str], vocab: Vocab) -> list[str]:
    """Returns the characters of every id, for rules of what is masked.

    Special ids have none; an EOS is a line end, a byte that is no ASCII one character.
    """
    tokenizer = open_with_vocab(path, vocab)
    # Modes of several ids are written with ordinary ones.
    modes = {ids[0] for ids in vocab.mode_ids.values() if len(ids) == 1}
    special = {*vocab.sentinel_ids, *modes, vocab.pad_id}
    pieces = []
    for token in range(vocab.size):
        text = tokenizer.id_to_text(token)
        byte = re.fullmatch("<0x([0-9A-F]{2})>", text)
        if byte:
            text = chr(int(byte[1], 16)) if int(byte[1], 16) < 128 else "\ufffd"
        pieces.append("" if token in special else text)
    pieces[vocab.eos_id] = "\n"
    return pieces


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int,
    num_sentinels: int,
    out: str | os.PathLike[str],
    *,
    max_characters: int = 2**26,
) -> Path:
    """Trains a unigram SentencePiece model and writes it to `out`.

    Pad is 0, eos 1, unk 2, the sentinels follow from 3 on, then the modes of both
    conventions. Characters outside the vocabulary fall back to bytes and nothing is
    normalised, so every text, code and newlines included, comes back unchanged.
    The same documents make the same file.

    Args:
        documents: the text to learn from.
        vocab_size: ids in all: special ids, 256 bytes and learned pieces. A text too
            small to fill it makes a smaller vocabulary.
        num_sentinels: how many `<extra_id_i>`.
        out: the file to write.
        max_characters: longer text is thinned out evenly to at most this many.

    Raises:
        ValueError: there is no text, `vocab_size` is too small, or `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; choose another place for the tokenizer.")
    modes = [t for texts in MODE_CONVENTIONS.values() for t in texts.values()]
    symbols = [sentinel_text(i) for i in range(num_sentinels)] + modes
    reserved = 3 + len(symbols) + _NUM_BYTES
    if vocab_size <= reserved:
        raise ValueError(
            f"{vocab_size=} leaves no piece to learn: {num_sentinels} sentinels, "
            f"{len(modes)} modes, 256 bytes and 3 more need {reserved}; use at least "
            f"{reserved + 100}."
        )
    sentences = _sample(documents, max_characters)
    if not sentences:
        raise ValueError("no text to train a tokenizer on; give --text other files.")
    model = _train(sentences, vocab_size, symbols)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(model)
        os.rename(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _train(sentences: Sequence[str], vocab_size: int, symbols: list[str]) -> bytes:
    """Runs SentencePiece's trainer and puts its refusals into our words."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            # A small text may not have that many pieces to learn.
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            eos_piece="</s>",
            unk_piece="<unk>",
            control_symbols=symbols,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            # Indentation as one piece.
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            # The sums of the training run depend on it, so not the machine's cores.
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if needed:
            raise ValueError(
                f"{vocab_size=} does not hold the characters of this text; use at "
                f"least {needed[1]}."
            ) from None
        raise ValueError(f"SentencePiece cannot train on this text: {error}") from None
    return model.getvalue()


def _sample(documents: Iterable[str], max_characters: int) -> list[str]:
    """Returns sentences of all documents, every second dropped while they are too many.

    What is kept depends on the documents and their order alone.
    """
    kept: collections.deque[str] = collections.deque()
    stride, size = 1, 0
    for i, sentence in enumerate(_sentences(documents)):
        if i % stride:
            continue
        kept.append(sentence)
        size += len(sentence)
        if size > max_characters:
            stride *= 2
            kept = collections.deque(s for j, s in enumerate(kept) if j % 2 == 0)
            size = sum(map(len, kept))
    return list(kept)


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """Cuts documents into pieces that the trainer accepts, at a newline or a space."""
    for document in documents:
        begin = 0
        while begin < len(document):
            end = begin + _SENTENCE_CHARACTERS
            if end < len(document):
                cuts = (document.rfind(sign, begin + 1, end) for sign in ("\n", " "))
                end = next((cut for cut in cuts if cut > 0), end)
            yield document[begin:end]
            begin = end


def _parse(path: Path, model: bytes) -> Any:
    """Reads the model's protocol buffer."""
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception:  # protobuf's own DecodeError, which is not worth a dependency
        proto.Clear()
    # A piece that is no UTF-8 comes back as bytes.
    if not proto.pieces or not all(type(one.piece) is str for one in proto.pieces):
        raise ValueError(f"{path} is not a SentencePiece model file, or damaged.")
    return proto


def _retype(proto: Any, ids: set[int], kind: int) -> bytes:
    """Returns the model with the pieces `ids` made another kind."""
    changed = sentencepiece_model_pb2.ModelProto()
    changed.CopyFrom(proto)
    for i in ids:
        changed.pieces[i].type = kind
    return bytes(changed.SerializeToString())


def _load(path: Path, load: Callable[[], _Loaded]) -> _Loaded:
    """Returns what `load` makes of a model; names the file where it cannot."""
    try:
        return load()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged: {reason}") from None
