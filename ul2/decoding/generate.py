"""`Generator`: inputs to outputs, for both architectures, by any of the settings.

    inputs      [S] 11 12 <eos>         what the model reads
    forced      7 8                     what the output must begin with
    output      7 8 15 16               EOS is left out

A group of examples is read once (`prefill`), whatever the number of hypotheses of each,
and then goes on one token at a time inside one compiled loop. There is one program per
shape, and lengths are rounded up, so there are few.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from ul2.batch import Batch
from ul2.decoding.beam import Beams, BeamSearch
from ul2.decoding.prompts import Example, Group, bucket, group
from ul2.decoding.sampling import Samples, Sampling, make_keys
from ul2.decoding.search import Dials
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.written import Limits, start
from ul2.sharding.placement import batch_sharding, num_batch_shards
from ul2.sharding.rules import DEFAULT_RULES, Rules, logical_axes
from ul2.vocab import Vocab, round_up

# Examples that are decoded together.
BATCH_SIZE: Final = 16
# A beam search leaves places empty where fewer hypotheses than beams came to an end.
_EMPTY: Final = -1e6

# (number of the example, which of its outputs, new ids)
OnTokens = Callable[[int, int, list[int]], None]


class Decoded(NamedTuple):
    """One output.

    Attributes:
        ids: forced ids included, EOS not.
        log_prob: natural log of the probability of what follows the forced ids, EOS
            included; the model's own, whatever the temperature.
        score: what ranked it: a beam search's normalised score, else `log_prob`.
        finished: whether it ended with EOS, and not for want of room.
    """

    ids: list[int]
    log_prob: float
    score: float
    finished: bool


class Generator:
    """Decodes with a model; see the module.

    Args:
        model: an `EncoderDecoder` or a `DecoderOnly`.
        vocab: start, EOS, pad ids and sentinels.
        mesh: where the parameters lie; None for one device.
        rules: logical axis to mesh axis.
        batch_size: examples that are decoded together, a multiple of the parts that
            the mesh splits a batch into. It is part of what an outcome depends on, in
            the last bits.
    """

    def __init__(
        self,
        model: Any,
        vocab: Vocab,
        *,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT_RULES,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._graphdef, self._params = nnx.split(model)
        self._has_encoder: bool = model.architecture == "encoder_decoder"
        self._vocab = vocab
        self._mesh, self._rules = mesh, rules
        shards = 1 if mesh is None else num_batch_shards(mesh, rules)
        self._rows = round_up(batch_size, shards)

    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        settings: DecodingSettings,
        *,
        forced: Sequence[Sequence[int]] | None = None,
        numbers: Sequence[int] | None = None,
        blanks: Sequence[int | None] | None = None,
        forbidden: Sequence[int] = (),
        on_tokens: OnTokens | None = None,
    ) -> list[list[Decoded]]:
        """Returns what the model writes for each of the inputs.

        Args:
            inputs: ids of each example, mode and EOS included.
            settings: how the next token is chosen, and when to stop.
            forced: ids that each output must begin with.
            numbers: number of each example, which its drawing depends on; by default
                its place among `inputs`.
            blanks: how many sentinels each output holds, in order and each once, with
                EOS after the last; None for an output without such a rule.
            forbidden: ids that are never written. Pad and the ids that no tokenizer
                names never are.
            on_tokens: called with every new token as soon as it is there; with a beam
                search, with the whole of each output at the end.

        Returns:
            For each example `num_decodes` outputs, the best first. A beam search by
            T5X's rule may return fewer: those that ended.

        Raises:
            ValueError: the forced ids or the sentinels of an example take more room
                than `max_tokens`.
        """
        examples = [
            Example(
                index,
                index if numbers is None else numbers[index],
                list(row),
                [] if forced is None else list(forced[index]),
                _or_none(blanks, index),
            )
            for index, row in enumerate(inputs)
        ]
        for example in examples:
            _check_room(example, settings)
        results: list[list[Decoded]] = [[] for _ in examples]
        for one in group(
            examples, self._vocab, has_encoder=self._has_encoder, rows=self._rows
        ):
            outputs = self._decode(one, settings, forbidden, on_tokens)
            for example, decoded in zip(one.examples, outputs, strict=False):
                results[example.place] = decoded
        return results

    def _decode(
        self,
        one: Group,
        settings: DecodingSettings,
        forbidden: Sequence[int],
        on_tokens: OnTokens | None,
    ) -> list[list[Decoded]]:
        """Decodes a group."""
        program = _Program(
            graphdef=self._graphdef,
            settings=_compiled_in(settings),
            columns=bucket(settings.max_tokens),
            eos_id=self._vocab.eos_id,
        )
        rooms = settings.max_tokens - one.num_forced
        rooms[len(one.examples) :] = 0
        limits = self._limits(one, rooms, forbidden)
        dials = Dials.of(settings)
        batch, ends = self._place((one.batch, one.ends))
        with self._on_mesh():
            state = _begin(
                program,
                self._params,
                batch,
                _Request(
                    ends,
                    jnp.asarray(one.forced),
                    jnp.asarray(one.numbers),
                    jnp.int32(settings.seed & 0x7FFFFFFF),
                ),
                limits,
                dials,
            )
            if on_tokens is None or settings.num_beams:
                everything = np.int32(program.columns)
                state = _go_on(program, self._params, state, limits, dials, everything)
            else:
                state = self._stream(program, state, limits, dials, one, on_tokens)
            outputs = _collect(program, self._params, state, limits, dials)
        decoded = _to_lists(outputs, settings.num_decodes)
        if on_tokens is not None and settings.num_beams:
            for example, row in zip(one.examples, decoded, strict=False):
                for decode, output in enumerate(row):
                    on_tokens(example.number, decode, output.ids)
        return decoded

    def _stream(
        self,
        program: "_Program",
        state: Samples,
        limits: Limits,
        dials: Dials,
        one: Group,
        on_tokens: OnTokens,
    ) -> Samples:
        """Goes on token by token, and tells of each."""
        first = state.written.tokens.shape[-1] - program.columns
        for column in range(program.columns):
            if column:
                until = np.int32(column + 1)
                state = _go_on(program, self._params, state, limits, dials, until)
            chosen = np.asarray(state.written.tokens[:, :, first + column])
            for example, row in zip(one.examples, chosen, strict=False):
                for decode, token in enumerate(row.tolist()):
                    if token >= 0:
                        on_tokens(example.number, decode, [token])
            if not np.asarray(state.is_open).any():
                break
        return state

    def _limits(self, one: Group, rooms: Any, forbidden: Sequence[int]) -> Limits:
        """Returns what holds for the examples of a group."""
        vocab = self._vocab
        never = np.arange(vocab.padded_size) >= vocab.size
        never[[vocab.pad_id, *forbidden]] = True
        sentinels = np.array(vocab.sentinel_ids, np.int32)
        if (one.blanks < 0).all():
            sentinels = sentinels[:0]
        is_sentinel = np.zeros(vocab.padded_size, bool)
        is_sentinel[sentinels] = True
        arrays = (rooms, one.num_forced, one.blanks, never, sentinels, is_sentinel)
        return Limits(*map(jnp.asarray, arrays))

    def _place(self, tree: Any) -> Any:
        """Splits rows over the mesh, as in training."""
        if self._mesh is None:
            return tree
        return jax.device_put(tree, batch_sharding(self._mesh, self._rules))

    def _on_mesh(self) -> Any:
        if self._mesh is None:
            return contextlib.nullcontext()
        return logical_axes(self._mesh, self._rules)


class _Program(NamedTuple):
    """What is compiled in."""

    graphdef: Any
    settings: DecodingSettings
    columns: int
    eos_id: int

    @property
    def hypotheses(self) -> int:
        """How many of each example are written at once."""
        return self.settings.num_beams or self.settings.num_decodes

    def search(
        self, params: Any, limits: Limits, dials: Dials
    ) -> Sampling | BeamSearch:
        """Returns what chooses tokens."""
        kind = BeamSearch if self.settings.num_beams else Sampling
        model = nnx.merge(self.graphdef, params)
        return kind(model, self.settings, dials, limits, self.eos_id)


class _Request(NamedTuple):
    """What else is asked for, beside the batch."""

    ends: Int[Array, " E"]  # column of the last token of each prompt
    forced: Int[Array, "E F"]
    numbers: Int[Array, " E"]
    seed: Int[Array, ""]


class _Outputs(NamedTuple):
    """All outputs of a group, the best first."""

    tokens: Int[Array, "E J L"]
    log_probs: Array
    scores: Array
    finished: Array


@functools.partial(jax.jit, static_argnums=0)
def _begin(
    program: _Program,
    params: Any,
    batch: Batch,
    request: _Request,
    limits: Limits,
    dials: Dials,
) -> Samples | Beams:
    """Reads the prompts and chooses the first tokens."""
    model = nnx.merge(program.graphdef, params)
    hidden, cache = model.prefill(
        batch,
        hypotheses=program.hypotheses,
        columns=program.columns,
        may_reorder=program.settings.num_beams > 0,
    )
    last = jnp.take_along_axis(hidden, request.ends[:, None, None], axis=1)
    written = start(request.forced, program.hypotheses, program.columns, limits)
    search = program.search(params, limits, dials)
    if isinstance(search, BeamSearch):
        return search.start(last, cache, written)
    keys = make_keys(request.seed, request.numbers, program.hypotheses)
    return search.start(last, cache, written, keys)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _go_on(
    program: _Program,
    params: Any,
    state: Any,
    limits: Limits,
    dials: Dials,
    until: Int[Array, ""],
) -> Any:
    """Writes on, up to column `until`."""
    return program.search(params, limits, dials).advance(state, until)


@functools.partial(jax.jit, static_argnums=0)
def _collect(
    program: _Program, params: Any, state: Any, limits: Limits, dials: Dials
) -> _Outputs:
    """Returns the outputs of what has come to its end."""
    search = program.search(params, limits, dials)
    if isinstance(search, BeamSearch):
        best = search.best(state)
        return _Outputs(best.written.tokens, best.log_probs, best.scores, best.finished)
    return _Outputs(
        state.written.tokens, state.log_probs, state.log_probs, state.finished
    )


def _to_lists(outputs: _Outputs, num_decodes: int) -> list[list[Decoded]]:
    """Returns the outputs of each row, the best first."""
    arrays = [np.asarray(array) for array in outputs]
    rows = []
    for tokens, log_probs, scores, finished in zip(*arrays, strict=True):
        order = np.argsort(-scores, kind="stable")[:num_decodes]
        rows.append(
            [
                Decoded(
                    [token for token in tokens[j].tolist() if token >= 0],
                    float(log_probs[j]),
                    float(scores[j]),
                    bool(finished[j]),
                )
                for j in order
                if scores[j] > _EMPTY
            ]
        )
    return rows


def _compiled_in(settings: DecodingSettings) -> DecodingSettings:
    """Returns settings without what a program can be told when it runs."""
    return dataclasses.replace(
        settings,
        seed=0,
        max_tokens=1,
        temperature=float(settings.temperature > 0),
        top_p=1.0 if settings.top_p == 1 else 0.5,
        repetition_penalty=1.0 if settings.repetition_penalty == 1 else 2.0,
        length_penalty=1.0,
    )


def _or_none(blanks: Sequence[int | None] | None, index: int) -> int:
    found = None if blanks is None else blanks[index]
    return -1 if found is None else found


def _check_room(example: Example, settings: DecodingSettings) -> None:
    """Refuses an output that has no room for what must be in it."""
    forced = len(example.forced)
    if forced >= settings.max_tokens:
        raise ValueError(
            f"max_tokens={settings.max_tokens} leaves no room behind a prefix of "
            f"{forced} tokens."
        )
    if example.blanks > settings.max_tokens:
        raise ValueError(
            f"max_tokens={settings.max_tokens} is too few for {example.blanks} blanks."
        )
