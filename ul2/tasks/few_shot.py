"""Few-shot prompts: solved examples in front of the one to solve.

    exemplars   "q: 1 + 1"  "2"        "q: 2 + 2"  "4"
    inputs      "q: 3 + 3"
    prompt      q: 1 + 1
                2

                q: 2 + 2
                4

                q: 3 + 3

Targets follow their inputs on a line of their own, or after a space where the inputs
end with a colon ("Q: ... A:"). An empty line ends an exemplar. A tokenizer without line
breaks, such as T5's, reads spaces there; the inputs' own beginning then tells exemplars
apart. What an exemplar shows is its `targets`: of a chain-of-thought task the rationale
and "The answer is ...".

Exemplars are drawn from the training examples without repetition. With `per="task"`
they are the same for every example, as in most benchmarks' harnesses; with
`per="example"` they are drawn anew for each, as for GPT-3 (arXiv 2005.14165, section
2.4). The example itself is never among its exemplars.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from ul2.tasks.text_task import TextExample

PER: Final = ("task", "example")
# What `ul2.decoding.text` turns into a sentinel.
_BLANK: Final = "___"


def write_prompt(
    exemplars: Iterable[TextExample], inputs: str, *, infill: bool = False
) -> str:
    """Returns the inputs behind some solved examples.

    Args:
        exemplars: in order.
        inputs: what is to be solved.
        infill: end with a blank, for the first sentinel: UL2's R and X modes have
            learned to write spans, and a prompt in these modes may ask for one.
    """
    solved = "".join(
        f"{one.inputs}{_separator(one.inputs)}{one.targets}\n\n" for one in exemplars
    )
    return f"{solved}{inputs} {_BLANK}" if infill else f"{solved}{inputs}"


def _separator(inputs: str) -> str:
    return " " if inputs.endswith(":") else "\n"


class Exemplars:
    """Training examples to draw exemplars from.

    Args:
        pool: training examples, those without targets aside.
        shots: how many are drawn.
        seed: of the draw.
        per: "task" or "example".
        share: a key of `meta` that an example has in common with its exemplars.

    Raises:
        ValueError: `per` or `shots` is neither.
    """

    def __init__(
        self,
        pool: Iterable[TextExample],
        shots: int,
        seed: int,
        per: str = "task",
        share: str | None = None,
    ) -> None:
        if per not in PER:
            raise ValueError(f"shots_per={per!r} is not one of {list(PER)}.")
        if shots < 0:
            raise ValueError(f"{shots=} must be at least 0.")
        self._shots = shots
        self._seed = seed
        self._per = per
        self._share = share
        self._pools: dict[object, list[TextExample]] = {}
        # One example of each inputs: ReCoRD has one for each right answer.
        seen = set()
        for example in pool:
            if example.targets and example.inputs not in seen:
                seen.add(example.inputs)
                self._pools.setdefault(self._group(example), []).append(example)

    def draw(self, example: TextExample, number: int) -> list[TextExample]:
        """Returns the exemplars of an example.

        Args:
            example: what they stand in front of.
            number: of the example in its split, which the draw depends on with
                `per="example"`.

        Raises:
            ValueError: there are too few training examples.
        """
        pool = self._pools.get(self._group(example), [])
        entropy = [self._seed % 2**64, *[number] * (self._per == "example")]
        # One more than needed: the example itself may be among them.
        count = min(self._shots + 1, len(pool))
        chosen = _draw_distinct(len(pool), count, entropy)
        found = [pool[i] for i in chosen if pool[i].inputs != example.inputs]
        if len(found) < self._shots:
            raise ValueError(
                f"{self._shots} exemplars are asked for, but there are only "
                f"{len(found)} training examples besides the example; lower --shots."
            )
        return found[: self._shots]

    def _group(self, example: TextExample) -> object:
        return None if self._share is None else example.meta[self._share]


def _draw_distinct(size: int, count: int, entropy: Sequence[int]) -> list[int]:
    """Draws different numbers below `size`, the same on every machine."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    chosen: dict[int, None] = {}
    # Not a permutation of thousands for five exemplars.
    while len(chosen) < count:
        chosen.setdefault(int(rng.integers(size)))
    return list(chosen)


def add_exemplars(
    examples: Iterable[TextExample],
    exemplars: Exemplars | None,
    *,
    infill: bool = False,
) -> Iterator[TextExample]:
    """Yields examples with their few-shot prompts as inputs.

    Args:
        examples: in the order of their split.
        exemplars: where they are drawn from; None for none.
        infill: end every prompt with a blank.
    """
    for number, example in enumerate(examples):
        drawn = exemplars.draw(example, number) if exemplars else []
        prompt = write_prompt(drawn, example.inputs, infill=infill)
        yield dataclasses.replace(example, inputs=prompt)
