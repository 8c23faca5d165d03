"""What a model in training writes: a few held-out examples, decoded at each evaluation.

    {"samples": [{"index": 3, "denoiser": "r_3_15", "mode": "R", "source": "a.txt:7",
                  "inputs": "...", "targets": "...", "output": "..."}, ...]}

The same examples each time, greedily, so that outputs may be read one under another.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ul2 import inspection
from ul2.data.run_data import Example
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text import Prompt
from ul2.tasks.tokenizer import Tokenizer
from ul2.training.state import Params

if TYPE_CHECKING:
    from ul2.decoding.text_model import TextModel

# Characters of a text: a line of evaluations is read whole.
_MOST_CHARACTERS: Final = 2000


def take_in_turn(examples: Iterable[Example], most: int) -> list[Example]:
    """Returns at most so many examples: the first of each denoiser, the second, ..."""
    of_denoiser: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        of_denoiser[example.denoiser].append(example)
    turns = max(map(len, of_denoiser.values()), default=0)
    taken = [
        some[turn]
        for turn in range(turns)
        for some in of_denoiser.values()
        if turn < len(some)
    ]
    return taken[:most]


class Samples:
    """Decodes examples with whatever parameters it is given.

    Args:
        examples: to decode.
        make_model: returns the model with some parameters.
        tokenizer: of the examples.
        max_tokens: longest output.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        make_model: "Callable[[Params], TextModel]",
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
    ) -> None:
        self._examples, self._make_model = tuple(examples), make_model
        self._tokenizer = tokenizer
        self._settings = DecodingSettings(max_tokens=max_tokens)

    def __call__(
        self, params: Params, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Returns the samples.

        Args:
            params: what is evaluated.
            before_batch: may give up by an error.
        """
        before_batch()
        model = self._make_model(params)
        prompts = [_prompt(example, model) for example in self._examples]
        outputs = model.generate_from(prompts, self._settings)
        return {
            "samples": [
                _cut(
                    inspection.to_json(example, self._tokenizer)
                    | {"output": output.text}
                )
                for example, (output, *_) in zip(self._examples, outputs, strict=True)
            ]
        }


def _prompt(example: Example, model: "TextModel") -> Prompt:
    """Returns the inputs of an example; its output begins with the first sentinel."""
    inputs = example.inputs.tolist()
    blanks = [i for i in inputs if i in model.vocab.sentinel_ids]
    is_marked = bool(np.isin(example.targets, blanks).any())
    return Prompt(
        inputs=inputs,
        forced=blanks[:1] if is_marked else [],
        num_blanks=len(blanks) if is_marked else 0,
    )


def _cut(sample: dict[str, Any]) -> dict[str, Any]:
    def shortened(value: Any) -> Any:
        is_long = isinstance(value, str) and len(value) > _MOST_CHARACTERS
        return value[:_MOST_CHARACTERS] + " ..." if is_long else value

    return {name: shortened(value) for name, value in sample.items()}
