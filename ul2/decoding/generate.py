"""`Generator`: inputs to outputs, for both architectures, by any of the settings.

    inputs      [S] 11 12 <eos>         what the model reads
    forced      7 8                     what the output must begin with
    output      7 8 15 16               EOS is left out

Prompts are read a few at a time (`prefill`), once each whatever the number of
hypotheses, and take free rows of a batch that goes on one token at a time inside one
compiled loop. When enough rows have come to their end, the loop is left and the next
prompts take their places, so that a long output does not hold up short ones (known as
continuous batching; Yu et al. 2022, "Orca", section 3.1):

    row 0       a a a a a a a a
    row 1       b b d d d d             8 steps; groups of three would take 8 + 5
    row 2       c c c e e e e e

Outputs do not depend on who is in the other rows, not even in the last bit. There is
one program per shape, and lengths are rounded up, so there are few.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ul2.decoding import programs
from ul2.decoding.prompts import Example, Shape, bucket, by_room, lay_out
from ul2.decoding.search import Dials, open_examples
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.written import NOTHING, Limits
from ul2.sharding.placement import batch_sharding, num_batch_shards
from ul2.sharding.rules import DEFAULT_RULES, Rules, logical_axes
from ul2.vocab import Vocab, round_up

# Examples that are decoded together.
BATCH_SIZE: Final = 16
# Of them, so many parts are read one after another. Few rows are free while others go
# on, and few are read for nobody where few prompts have a length; two cores read 2
# prompts of 256 tokens about as fast as 16. With 4 parts, 64 prompts of many lengths
# took 1.08 times as long; 128 as long as with 8.
_PARTS: Final = 8
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
        self.graphdef, self.params = nnx.split(model)
        self.vocab = vocab
        self._has_encoder: bool = model.architecture == "encoder_decoder"
        self._mesh, self._rules = mesh, rules
        shards = 1 if mesh is None else num_batch_shards(mesh, rules)
        self.rows = round_up(batch_size, shards)
        self.rows_at_once = round_up(max(1, self.rows // _PARTS), shards)

    def generate(
        self,
        inputs: Sequence[Sequence[int]],
        settings: DecodingSettings,
        **options: Any,
    ) -> list[list[Decoded]]:
        """Returns what the model writes for each of the inputs.

        Args:
            inputs: ids of each example, mode and EOS included.
            settings: how the next token is chosen, and when to stop.
            options: see `generate_each`.

        Returns:
            For each example `num_decodes` outputs, the best first. A beam search by
            T5X's rule may return fewer: those that ended.

        Raises:
            ValueError: the forced ids or the sentinels of an example take more room
                than `max_tokens`.
        """
        results: list[list[Decoded]] = [[] for _ in inputs]
        for ended in self.generate_each(inputs, settings, **options):
            for place, outputs in ended.items():
                results[place] = outputs
        return results

    def generate_each(
        self,
        inputs: Sequence[Sequence[int]],
        settings: DecodingSettings,
        *,
        forced: Sequence[Sequence[int]] | None = None,
        numbers: Sequence[int] | None = None,
        blanks: Sequence[int | None] | None = None,
        max_tokens: Sequence[int] | None = None,
        forbidden: Sequence[int] = (),
        on_tokens: OnTokens | None = None,
    ) -> Iterator[dict[int, list[Decoded]]]:
        """Yields outputs as they come to their end, by the places of their inputs.

        Args:
            inputs: ids of each example, mode and EOS included.
            settings: how the next token is chosen, and when to stop.
            forced: ids that each output must begin with.
            numbers: number of each example, which its drawing depends on; by default
                its place among `inputs`.
            blanks: how many sentinels each output holds, in order and each once, with
                EOS after the last; None for an output without such a rule.
            max_tokens: longest output of each example; by default that of the
                settings, which must not be less.
            forbidden: ids that are never written. Pad and the ids that no tokenizer
                names never are.
            on_tokens: called with every new token as soon as it is there; with a beam
                search, with the whole of each output at the end.

        Raises:
            ValueError: see `generate`; before the first output.
        """
        examples = [
            Example(
                index,
                index if numbers is None else numbers[index],
                list(row),
                [] if forced is None else list(forced[index]),
                _or_none(blanks, index),
                settings.max_tokens if max_tokens is None else max_tokens[index],
            )
            for index, row in enumerate(inputs)
        ]
        for example in examples:
            _check_room(example, settings.max_tokens)
        for room, groups in by_room(
            examples, has_encoder=self._has_encoder, at_once=self.rows_at_once
        ):
            yield from _Decoding(self, room, groups, settings, forbidden, on_tokens)

    @functools.cached_property
    def layers(self) -> tuple[Any, ...] | None:
        """Returns the parameters of the decoder's layers, cut apart for its steps.

        They are a second copy, but a copy at every call of `go_on` took longer than two
        steps of 77M parameters on CPU: outputs that are told token by token came three
        times as slow. None for a deep stack; see `Stack.make_step`.
        """
        layers: tuple[Any, ...] | None = programs.cut_layers(self.graphdef, self.params)
        return layers

    def place(self, tree: Any) -> Any:
        """Splits rows over the mesh, as in training."""
        if self._mesh is None:
            return tree
        return jax.device_put(tree, batch_sharding(self._mesh, self._rules))

    def on_mesh(self) -> contextlib.AbstractContextManager[None]:
        """Tells programs of the mesh, while they are made."""
        if self._mesh is None:
            return contextlib.nullcontext()
        return logical_axes(self._mesh, self._rules)


class _Decoding:
    """Examples of one room on their way through the rows of a batch."""

    def __init__(
        self,
        generator: Generator,
        room: Shape,
        groups: Sequence[tuple[Shape, list[Example]]],
        settings: DecodingSettings,
        forbidden: Sequence[int],
        on_tokens: OnTokens | None,
    ) -> None:
        self._generator, self._room, self._settings = generator, room, settings
        self._on_tokens = on_tokens
        self._waiting = collections.deque(groups)
        self._rows: list[Example | None] = [None] * generator.rows
        self._told = [0] * generator.rows
        self._state: Any = None
        self._program = programs.Program(
            graphdef=generator.graphdef,
            settings=_compiled_in(settings),
            columns=bucket(settings.max_tokens),
            read_columns=room.inputs or room.prompt,
            eos_id=generator.vocab.eos_id,
        )
        self._dials = Dials.of(settings)
        self._ids = _limit_ids(generator.vocab, room, forbidden)

    def __iter__(self) -> Iterator[dict[int, list[Decoded]]]:
        """Yields the outputs of examples, by their places, as they end."""
        while self._waiting or any(self._rows):
            self._fill_rows()
            self._tell()
            self._go_on()
            self._tell()
            if ended := self._collect():
                yield ended

    @property
    def _streams(self) -> bool:
        return self._on_tokens is not None and not self._settings.num_beams

    def _fill_rows(self) -> None:
        """Lets waiting examples begin where enough rows are free."""
        free = [row for row, one in enumerate(self._rows) if one is None]
        while self._waiting and len(free) >= len(self._waiting[0][1]):
            shape, some = self._waiting.popleft()
            rows, free = free[: len(some)], free[len(some) :]
            begun = self._begin(shape, some)
            if self._generator.rows_at_once == len(self._rows):
                self._state = begun
            else:
                with self._generator.on_mesh():
                    if self._state is None:
                        self._state = programs.make_room(begun, len(self._rows))
                    origins = np.full(len(self._rows), -1, np.int32)
                    origins[rows] = np.arange(len(some))
                    self._state = programs.insert(self._state, begun, origins)
            for row, example in zip(rows, some, strict=True):
                self._rows[row], self._told[row] = example, 0

    def _begin(self, shape: Shape, examples: Sequence[Example]) -> Any:
        """Reads prompts."""
        generator = self._generator
        at_once = generator.rows_at_once
        group = lay_out(examples, shape, generator.vocab, at_once)
        empty = [None] * (at_once - len(examples))
        batch, ends = generator.place((group.batch, group.ends))
        with generator.on_mesh():
            return programs.begin(
                self._program,
                generator.params,
                batch,
                ends,
                jnp.asarray(group.forced),
                self._limits([*examples, *empty]),
                self._dials,
            )

    def _go_on(self) -> None:
        """Writes until enough rows are free, or by one token if each is told of."""
        columns, rows = self._program.columns, len(self._rows)
        enough = rows - len(self._waiting[0][1]) if self._waiting else 0
        with self._generator.on_mesh():
            self._state = programs.go_on(
                self._program,
                self._generator.params,
                self._generator.layers,
                self._state,
                self._limits(self._rows),
                self._dials,
                np.int32(1 if self._streams else columns),
                np.int32(enough),
            )

    def _tell(self) -> None:
        """Tells of new tokens."""
        if self._on_tokens is None or not self._streams:
            return
        tokens = np.asarray(self._state.written.tokens)[:, :, self._room.forced :]
        columns = np.asarray(self._state.columns)
        for row, example in enumerate(self._rows):
            if example is None:
                continue
            for column in range(self._told[row], min(columns[row], tokens.shape[-1])):
                for decode, token in enumerate(tokens[row, :, column].tolist()):
                    if token != NOTHING:
                        self._on_tokens(example.number, decode, [token])
            self._told[row] = columns[row]

    def _collect(self) -> dict[int, list[Decoded]]:
        """Returns the outputs of the examples that have ended, and frees their rows."""
        is_open = np.asarray(open_examples(self._state))
        ended = {
            row: example
            for row, example in enumerate(self._rows)
            if example is not None and not is_open[row]
        }
        if not ended:
            return {}
        with self._generator.on_mesh():
            collected = programs.collect(
                self._program,
                self._generator.params,
                self._state,
                self._limits(self._rows),
                self._dials,
            )
        outputs = jax.tree.map(np.asarray, collected)
        results = {}
        for row, example in ended.items():
            decoded = _to_list(outputs, row, self._settings.num_decodes)
            if self._on_tokens is not None and not self._streams:
                for decode, output in enumerate(decoded):
                    self._on_tokens(example.number, decode, output.ids)
            results[example.place] = decoded
            self._rows[row] = None
        return results

    def _limits(self, examples: Sequence[Example | None]) -> Limits:
        """Returns what holds for the examples in some rows; others have no room."""
        nobody = (0, 0, 0, NOTHING)
        values = [nobody if one is None else _limits_of(one) for one in examples]
        of_rows = np.array(values, np.int32).T
        return Limits(*map(jnp.asarray, of_rows), *self._ids)


def _limits_of(example: Example) -> tuple[int, int, int, int]:
    """Returns its number, the room behind its forced ids, their number, its blanks."""
    forced = len(example.forced)
    return example.number, example.max_tokens - forced, forced, example.blanks


def _limit_ids(vocab: Vocab, room: Shape, forbidden: Sequence[int]) -> Any:
    """Returns which ids are never written, and which are the sentinels."""
    never = np.arange(vocab.padded_size) >= vocab.size
    never[[vocab.pad_id, *forbidden]] = True
    sentinels = np.array(vocab.sentinel_ids if room.fills_blanks else (), np.int32)
    is_sentinel = np.zeros(vocab.padded_size, bool)
    is_sentinel[sentinels] = True
    return tuple(map(jnp.asarray, (never, sentinels, is_sentinel)))


def _to_list(outputs: programs.Outputs, row: int, num_decodes: int) -> list[Decoded]:
    """Returns the outputs of a row, the best first."""
    tokens, log_probs, scores, finished = (array[row] for array in outputs)
    order = np.argsort(-scores, kind="stable")[:num_decodes]
    return [
        Decoded(
            [token for token in tokens[j].tolist() if token != NOTHING],
            float(log_probs[j]),
            float(scores[j]),
            bool(finished[j]),
        )
        for j in order
        if scores[j] > _EMPTY
    ]


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


def _check_room(example: Example, most: int) -> None:
    """Refuses an output that has no room for what must be in it."""
    forced, room = len(example.forced), example.max_tokens
    if room > most:
        raise ValueError(f"max_tokens={room} of an example is more than {most} of all.")
    if forced >= room:
        raise ValueError(
            f"max_tokens={room} leaves no room behind a prefix of {forced} tokens."
        )
    if example.blanks > room:
        raise ValueError(f"max_tokens={room} is too few for {example.blanks} blanks.")
