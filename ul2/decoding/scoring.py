"""How likely given outputs are: log probabilities, token by token, in one pass.

Outputs of the same inputs (the choices of a rank classification) share a row. They
branch off where the inputs end, and none sees another:

    inputs 5 6, targets (7 8) and (9), P the start id

    decoder-only       P 5 6 7    column 2 predicts both 7 and 9, column 3 predicts 8
                       0 1 2 3    columns that the first target sees
                       0 1 2 -    columns that the second sees
    encoder-decoder    P 7        the same behind P; 5 6 are encoded once, for both

So the inputs are read once, whichever the architecture. The prefix, that is P and the
inputs of a decoder-only model, sees itself from both sides, as in training.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from ul2.batch import Batch, Packed, one_per_row
from ul2.sharding.placement import batch_sharding, num_batch_shards
from ul2.sharding.rules import DEFAULT_RULES, Rules, logical_axes
from ul2.vocab import Vocab, round_up

# Targets that share a row at most, and that are scored together.
_TARGETS_PER_ROW: Final = 16
_TARGETS_AT_ONCE: Final = 16
# Lengths are multiples of it; logits exist for so many columns at once.
_COLUMNS: Final = 16


class Score(NamedTuple):
    """How likely an output is."""

    log_prob: float  # natural log, of the tokens that count
    num_tokens: int
    token_log_probs: list[float]


class _Group(NamedTuple):
    """Targets of the same inputs that share a row."""

    inputs: list[int]
    targets: list[Sequence[int]]
    numbers: list[int]  # of the targets, as they were given


class _Shape(NamedTuple):
    """What one compiled program is for; a group's depends on nothing but the group."""

    inputs: int  # columns of the encoder; 0 without one
    targets: int  # that share a row
    view: int  # columns of an example: prefix and target
    width: int  # columns of a row
    scored: int  # tokens of all targets


class _Rows(NamedTuple):
    """Rows of groups, as arrays."""

    encoder: Packed | None
    decoder: Packed
    prefix_lengths: NDArray[np.int32]  # [B, N]
    columns: NDArray[np.int32]  # [B, K], which column predicts each target token
    targets: NDArray[np.int32]  # [B, K]


class Scorer:
    """Scores given outputs; see the module.

    A score depends on no other inputs: the targets of some inputs run in a program of
    their own size, together with a fixed number of others.
    """

    def __init__(
        self,
        model: Any,
        vocab: Vocab,
        *,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        """Prepares the programs; each is compiled when it is first needed.

        Args:
            model: an `EncoderDecoder` or a `DecoderOnly`.
            vocab: start and pad ids.
            mesh: where the parameters lie; None for one device.
            rules: logical axis to mesh axis.
        """
        self._graphdef, self._params = nnx.split(model)
        self._has_encoder: bool = model.architecture == "encoder_decoder"
        self._vocab = vocab
        self._mesh, self._rules = mesh, rules
        self._shards = 1 if mesh is None else num_batch_shards(mesh, rules)
        self._run = jax.jit(functools.partial(_log_probs, self._graphdef))

    def score(
        self,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        forced: Sequence[int] | None = None,
        owners: Sequence[int] | None = None,
    ) -> list[Score]:
        """Returns how likely each target is, given its inputs.

        Args:
            inputs: ids, mode and EOS included; equal ones are read once.
            targets: ids; with EOS if that shall count.
            forced: how many leading ids of each target are given, and not counted.
            owners: whose each target is; those of different owners share no row, so
                that no rounding depends on others. By default all are of one.
        """
        assert len(inputs) == len(targets)
        owners = [0] * len(targets) if owners is None else owners
        forced = [0] * len(targets) if forced is None else forced
        by_shape: dict[_Shape, list[_Group]] = {}
        for group in _groups(inputs, targets, owners):
            by_shape.setdefault(self._shape(group), []).append(group)
        found: dict[int, list[float]] = {}
        # The largest first: if memory does not suffice, it shows at once.
        for shape in sorted(by_shape, reverse=True):
            groups = by_shape[shape]
            rows = round_up(max(1, _TARGETS_AT_ONCE // shape.targets), self._shards)
            for start in range(0, len(groups), rows):
                found |= self._score(groups[start : start + rows], shape, rows)
        return [_to_score(found[number][first:]) for number, first in enumerate(forced)]

    def _shape(self, group: _Group) -> _Shape:
        """Returns the program that a group runs in."""
        prefix = 1 if self._has_encoder else 1 + len(group.inputs)
        # The last token of a target is predicted, and read by none.
        read = [max(0, len(target) - 1) for target in group.targets]
        return _Shape(
            inputs=_bucket(len(group.inputs)) if self._has_encoder else 0,
            targets=1 << (len(group.targets) - 1).bit_length(),
            view=_bucket(prefix + max(read)),
            width=_bucket(prefix + sum(read)),
            scored=_bucket(sum(map(len, group.targets))),
        )

    def _score(
        self, groups: Sequence[_Group], shape: _Shape, num_rows: int
    ) -> dict[int, list[float]]:
        """Returns the log probabilities of the tokens of each target, by its number."""
        rows = self._lay_out(groups, shape, num_rows)
        if self._mesh is None:
            scored = self._run(self._params, rows)
        else:
            placed = jax.tree.map(self._place, rows)
            with logical_axes(self._mesh, self._rules):
                scored = self._run(self._params, placed)
        scored = jax.device_get(scored)
        found = {}
        for row, group in zip(scored, groups, strict=False):
            start = 0
            for number, target in zip(group.numbers, group.targets, strict=True):
                found[number] = row[start : start + len(target)].tolist()
                start += len(target)
        return found

    def _place(self, array: NDArray[np.int32]) -> jax.Array:
        """Splits rows that every host holds whole."""
        assert self._mesh is not None
        sharding = batch_sharding(self._mesh, self._rules)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    def _lay_out(self, groups: Sequence[_Group], shape: _Shape, num_rows: int) -> _Rows:
        """Makes the rows of some groups; rows that are left over are padding."""
        rows = _empty_rows(shape, num_rows, self._vocab.pad_id)
        prefixes = [[self._vocab.start_id]] * len(groups)
        if self._has_encoder:
            spare: list[list[int]] = [[]] * (num_rows - len(groups))
            inputs = [*(group.inputs for group in groups), *spare]
            encoder = one_per_row(inputs, shape.inputs, pad_id=self._vocab.pad_id)
            rows = rows._replace(encoder=encoder)
        else:
            prefixes = [[self._vocab.start_id, *group.inputs] for group in groups]
        for row, (prefix, group) in enumerate(zip(prefixes, groups, strict=True)):
            _fill(rows, row, prefix, group.targets)
        return rows


def _groups(
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    owners: Sequence[int],
) -> Iterator[_Group]:
    """Yields targets of equal inputs together, in the order of the first of them."""
    numbers: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, (ids, owner) in enumerate(zip(inputs, owners, strict=True)):
        numbers.setdefault((owner, tuple(ids)), []).append(number)
    for (_, ids), all_of_them in numbers.items():
        for start in range(0, len(all_of_them), _TARGETS_PER_ROW):
            some = all_of_them[start : start + _TARGETS_PER_ROW]
            yield _Group(list(ids), [targets[number] for number in some], some)


def _empty_rows(shape: _Shape, num_rows: int, pad_id: int) -> _Rows:
    """Returns rows of padding, without an encoder."""
    grid = (num_rows, shape.width)
    decoder = Packed(
        tokens=np.full(grid, pad_id, np.int32),
        segment_ids=np.zeros(grid, np.int32),
        positions=np.zeros(grid, np.int32),
        columns=np.full((num_rows, shape.targets, shape.view), -1, np.int32),
    )
    return _Rows(
        encoder=None,
        decoder=decoder,
        prefix_lengths=np.zeros((num_rows, shape.targets), np.int32),
        columns=np.zeros((num_rows, shape.scored), np.int32),
        targets=np.full((num_rows, shape.scored), pad_id, np.int32),
    )


def _fill(
    rows: _Rows, row: int, prefix: list[int], targets: list[Sequence[int]]
) -> None:
    """Writes a prefix and the targets that branch off from it into a row."""
    packed, begin = rows.decoder, len(prefix)
    packed.tokens[row, :begin] = prefix
    packed.segment_ids[row, :begin] = 1
    packed.positions[row, :begin] = range(begin)
    rows.prefix_lengths[row, : len(targets)] = begin
    end, scored = begin, 0
    for index, target in enumerate(targets):
        # The last token is predicted, and read by none.
        read = target[:-1]
        seen = [*range(begin), *range(end, end + len(read))]
        packed.tokens[row, end : end + len(read)] = read
        packed.segment_ids[row, end : end + len(read)] = index + 1
        packed.positions[row, end : end + len(read)] = range(begin, len(seen))
        packed.columns[row, index, : len(seen)] = seen
        counted = slice(scored, scored + len(target))
        rows.columns[row, counted] = seen[begin - 1 :][: len(target)]
        rows.targets[row, counted] = target
        end, scored = end + len(read), counted.stop


def _bucket(length: int) -> int:
    """Rounds a length up to one of few: multiples of 16, then four to an octave."""
    octave = 1 << max(0, (max(length, 1) - 1).bit_length() - 1)
    return round_up(max(length, 1), max(_COLUMNS, octave // 4))


def _to_score(token_log_probs: list[float]) -> Score:
    return Score(math.fsum(token_log_probs), len(token_log_probs), token_log_probs)


def _log_probs(graphdef: Any, params: Any, rows: _Rows) -> Float[Array, "B K"]:
    """Returns the log probability of every target token."""
    model = nnx.merge(graphdef, params)
    tokens = rows.decoder.tokens
    batch = Batch(
        encoder=rows.encoder,
        decoder=rows.decoder,
        targets=tokens,  # this and the next two are for a loss
        loss_weights=jnp.zeros(tokens.shape, jnp.float32),
        denoiser_ids=jnp.full(tokens.shape, -1, jnp.int32),
        prefix_lengths=rows.prefix_lengths,
    )
    if rows.encoder is None:
        hidden = model(batch)
    else:
        encoded = model.encode(rows.encoder)
        views = jnp.repeat(rows.encoder.columns, rows.prefix_lengths.shape[1], axis=1)
        # Every target of a row reads the same inputs.
        shared = rows.encoder._replace(columns=views)
        hidden = model.decode(batch._replace(encoder=shared), encoded)
    hidden = jnp.take_along_axis(hidden, rows.columns[..., None], axis=1)
    return _of_targets(model, hidden, jnp.asarray(rows.targets))


def _of_targets(
    model: Any, hidden: Float[Array, "B K D"], targets: Int[Array, "B K"]
) -> Float[Array, "B K"]:
    """Returns log softmax(logits)[target], some columns at a time."""

    def chunk(arrays: tuple[Array, Array]) -> Array:
        hidden, targets = arrays
        log_probs = jax.nn.log_softmax(model.unembed(hidden), axis=-1)
        return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]

    def cut(array: Array) -> Array:
        chunks = array.reshape(array.shape[0], -1, _COLUMNS, *array.shape[2:])
        return jnp.moveaxis(chunks, 1, 0)

    scored = jax.lax.map(chunk, (cut(hidden), cut(targets)))
    return jnp.moveaxis(scored, 0, 1).reshape(targets.shape)
