"""`TextModel`: a trained model that reads and writes text, modes and blanks included.

model = ul2.load("runs/one")
model.infill("A ___ walks into a ___.")             "A man walks into a bar."
model.generate(["question: ..."], modes=["S"])      [[TextOutput("yes", ...)]]
model.score(["is it red?"], ["yes"])                [Score(-0.2, 2, [-0.1, -0.1])]
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from jax.sharding import Mesh

from ul2.decoding.generate import BATCH_SIZE, Generator, OnTokens
from ul2.decoding.scoring import Score, Scorer
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text import Prompt, encode_output, fill, make_prompt
from ul2.sharding.rules import DEFAULT_RULES, Rules
from ul2.vocab import Vocab

# The mode that a checkpoint fills blanks best in.
INFILLING: Final = "infilling"
_GREEDY: Final = DecodingSettings()


class Tokenizer(Protocol):
    """What turns text into ids and back."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without EOS."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, sentinels as their names."""


class TextOutput(NamedTuple):
    """What a model wrote.

    Attributes:
        text: a forced prefix included, EOS not; sentinels as their names.
        ids: the same as ids.
        log_prob: natural log of the probability of what was not forced.
        score: what ranked it among several: a beam's normalised score, else log_prob.
        finished: whether it ends with EOS, and not for want of room.
    """

    text: str
    ids: list[int]
    log_prob: float
    score: float
    finished: bool


class Infilling(NamedTuple):
    """A text whose blanks are filled.

    Attributes:
        text: the whole; a blank for which there was no room stays a blank.
        output: what the model wrote.
    """

    text: str
    output: TextOutput


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
    """A model and its tokenizer.

    Attributes:
        model: an `EncoderDecoder` or a `DecoderOnly`, its parameters on `mesh`.
        tokenizer: text to ids and back.
        vocab: sentinels, modes, EOS.
        trained_modes: the modes it was trained with; empty for none, None for unknown.
        inputs_length: ids of inputs that it was trained on; None for unknown.
        identity: what tells this checkpoint from others, as JSON values.
        mesh: None for one device.
        rules: logical axis to mesh axis.
        batch_size: texts that are decoded together, whatever is asked for; outputs
            depend on it in the last bits, and on no other text.
    """

    model: Any
    tokenizer: Tokenizer
    vocab: Vocab
    trained_modes: tuple[str, ...] | None = None
    inputs_length: int | None = None
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None
    rules: Rules = dataclasses.field(default_factory=lambda: DEFAULT_RULES)
    batch_size: int = BATCH_SIZE

    def prompt(
        self,
        text: str,
        mode: str | None = None,
        *,
        prefix: str = "",
        max_inputs: int | None = None,
    ) -> Prompt:
        """Returns a text as the model reads it; see `make_prompt`."""
        return make_prompt(
            text,
            mode,
            self.tokenizer.encode,
            self.vocab,
            prefix=prefix,
            max_inputs=max_inputs,
        )

    def generate(
        self,
        inputs: Sequence[str],
        *,
        modes: Sequence[str | None] | None = None,
        settings: DecodingSettings = _GREEDY,
        prefixes: Sequence[str] | None = None,
        numbers: Sequence[int] | None = None,
        on_tokens: OnTokens | None = None,
        keep_sentinels: bool = False,
    ) -> list[list[TextOutput]]:
        """Returns what the model writes for each text, best first.

        Args:
            inputs: texts; `___` is a blank to fill.
            modes: R, S, X or None for each; None for no mode at all.
            settings: how to decode.
            prefixes: text that each output must begin with.
            numbers: of the texts, for the seed; by default 0, 1, ...
            on_tokens: see `Generator.generate_each`.
            keep_sentinels: let the outputs of texts without blanks hold sentinels.

        Returns:
            `settings.num_decodes` outputs of each text.

        Raises:
            ValueError: a mode is unknown, or there are too many blanks.
        """
        prompts = [
            self.prompt(text, mode, prefix=prefix)
            for text, mode, prefix in zip(
                inputs,
                modes or [None] * len(inputs),
                prefixes or [""] * len(inputs),
                strict=True,
            )
        ]
        return self.generate_from(
            prompts,
            settings,
            numbers=numbers,
            on_tokens=on_tokens,
            keep_sentinels=keep_sentinels,
        )

    def generate_from(
        self,
        prompts: Sequence[Prompt],
        settings: DecodingSettings,
        *,
        numbers: Sequence[int] | None = None,
        on_tokens: OnTokens | None = None,
        keep_sentinels: bool = False,
    ) -> list[list[TextOutput]]:
        """Returns what the model writes for each prompt; see `generate`."""
        outputs: dict[int, list[TextOutput]] = {}
        for ended in self.generate_each(
            prompts,
            settings,
            numbers=numbers,
            on_tokens=on_tokens,
            keep_sentinels=keep_sentinels,
        ):
            outputs.update(ended)
        return [outputs[i] for i in range(len(prompts))]

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        settings: DecodingSettings,
        *,
        numbers: Sequence[int] | None = None,
        max_tokens: Sequence[int] | None = None,
        on_tokens: OnTokens | None = None,
        keep_sentinels: bool = False,
    ) -> Iterator[dict[int, list[TextOutput]]]:
        """Yields outputs as they come to their end, by the places of their prompts.

        The outputs of prompts with blanks hold their sentinels in order, each once;
        those of others hold none, unless `keep_sentinels`. Give many prompts at once:
        one begins where another has ended.

        Args:
            prompts: inputs, and what is forced.
            settings: how to decode.
            numbers: of the prompts, for the seed; by default 0, 1, ...
            max_tokens: of each output; by default those of the settings.
            on_tokens: see `Generator.generate_each`.
            keep_sentinels: let the outputs of prompts without blanks hold sentinels.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        max_tokens = max_tokens or [settings.max_tokens] * len(prompts)
        free = [i for i, one in enumerate(prompts) if not one.num_blanks]
        filling = [i for i, one in enumerate(prompts) if one.num_blanks]
        sentinels = () if keep_sentinels else self.vocab.sentinel_ids
        for some, forbidden in ((free, sentinels), (filling, ())):
            for ended in self._generator.generate_each(
                [prompts[i].inputs for i in some],
                settings,
                forced=[prompts[i].forced for i in some],
                numbers=[numbers[i] for i in some],
                blanks=[prompts[i].num_blanks or None for i in some],
                max_tokens=[max_tokens[i] for i in some],
                forbidden=forbidden,
                on_tokens=on_tokens,
            ):
                yield {
                    some[place]: [
                        TextOutput(self.tokenizer.decode(one.ids), *one)
                        for one in best_first
                    ]
                    for place, best_first in ended.items()
                }

    def infill(
        self,
        text: str,
        *,
        mode: str | None = INFILLING,
        settings: DecodingSettings = _GREEDY,
    ) -> str:
        """Returns a text with its blanks `___` filled; without any, it is continued.

        Args:
            text: with as many blanks as the vocabulary has sentinels, at most.
            mode: R, S, X or None; by default R, but none for a checkpoint that is
                known to have been trained without.
            settings: how to decode.
        """
        return self.infillings(text, mode=mode, settings=settings)[0].text

    def infillings(
        self,
        text: str,
        *,
        mode: str | None = INFILLING,
        settings: DecodingSettings = _GREEDY,
    ) -> list[Infilling]:
        """Returns `settings.num_decodes` ways to fill a text's blanks, best first."""
        if mode == INFILLING:
            knows = self.trained_modes is None or "R" in self.trained_modes
            mode = "R" if knows else None
        (outputs,) = self.one_at_a_time.generate(
            [text], modes=[mode], settings=settings
        )
        return [Infilling(self.fill(text, output), output) for output in outputs]

    def fill(self, text: str, output: TextOutput) -> str:
        """Returns a text with its blanks filled from an output; see `text.fill`."""
        return fill(text, output.ids, self.tokenizer.decode, self.vocab)

    def score(
        self,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        modes: Sequence[str | None] | None = None,
        prefixes: Sequence[str] | None = None,
    ) -> list[Score]:
        """Returns how likely each output is, EOS included, given its text.

        Targets of equal inputs are best given together: the inputs are read once.

        Args:
            inputs: texts; `___` is a blank.
            targets: outputs. That of a text with blanks names its sentinels:
                "<extra_id_0> man<extra_id_1> bar"; the first does not count.
            modes: R, S, X or None for each; None for no mode at all.
            prefixes: text before each target that is given, and does not count.
        """
        prompts = [
            self.prompt(text, mode, prefix=prefix)
            for text, mode, prefix in zip(
                inputs,
                modes or [None] * len(inputs),
                prefixes or [""] * len(inputs),
                strict=True,
            )
        ]
        encoded = [
            self.encode_target(prompt, target)
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        return self.score_from(prompts, encoded)

    def encode_target(self, prompt: Prompt, target: str) -> list[int]:
        """Returns the ids of an output of a prompt, what is forced and EOS included.

        Raises:
            ValueError: it names a sentinel that the vocabulary does not have.
        """
        encode = self.tokenizer.encode
        if not prompt.num_blanks:
            return [*prompt.forced, *encode(target), self.vocab.eos_id]
        ids = encode_output(target, encode, self.vocab)
        if ids[:1] == prompt.forced[:1]:
            ids = ids[1:]
        return [*prompt.forced, *ids, self.vocab.eos_id]

    def score_from(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[Sequence[int]],
        *,
        owners: Sequence[int] | None = None,
    ) -> list[Score]:
        """Returns how likely each output is, given its prompt; see `score`.

        Args:
            prompts: inputs, and what is forced.
            targets: of each, from `encode_target`.
            owners: see `Scorer.score`.
        """
        return self._scorer.score(
            [prompt.inputs for prompt in prompts],
            targets,
            forced=[len(prompt.forced) for prompt in prompts],
            owners=owners,
        )

    @functools.cached_property
    def one_at_a_time(self) -> "TextModel":
        """The same model, quicker where there is only one text."""
        return dataclasses.replace(self, batch_size=1)

    @functools.cached_property
    def _generator(self) -> Generator:
        return Generator(
            self.model,
            self.vocab,
            mesh=self.mesh,
            rules=self.rules,
            batch_size=self.batch_size,
        )

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.model, self.vocab, mesh=self.mesh, rules=self.rules)
