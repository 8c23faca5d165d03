"""`EvaluationSettings`: how examples become predictions, and which examples."""

import dataclasses
from typing import Any, Final

from ul2.decoding.settings import DecodingSettings
from ul2.tasks.text_task import TextExample, TextTask

METHODS: Final = ("auto", "generate", "rank", "teacher_forced")
ROADS: Final = ("auto", "direct", "seqio")
CHOICE_SCORES: Final = ("sum", "per_token", "per_character")
# Self-consistency paper (arXiv 2203.11171), for UL2 20B.
SAMPLES: Final = 40
SAMPLE_TEMPERATURE: Final = 0.5
SAMPLE_TOP_K: Final = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How examples become predictions, and which examples.

    Attributes:
        method: `generate` decodes an output; `rank` takes the likeliest of an
            example's choices; `teacher_forced` measures how well the right output is
            predicted token by token. `auto` ranks where every example has choices and
            generates elsewhere.
        split: train, validation or test.
        shots: exemplars in front of each example.
        limit: the first so many examples; None for all.
        num_samples: of self-consistency: so many outputs are drawn of each example and
            their answers vote; 0 decodes one output.
        calculator: put the equations of an output right before its answer is read.
        infill: ask as pre-training did: inputs end with a blank, and the output fills
            it. For models that were trained to fill blanks and on nothing else.
        forbid_sentinels: let no output hold a sentinel of pre-training. Otherwise those
            that do are counted, as a sign of a model that fills blanks instead.
        choice_score: what ranks a choice: the log probability of its tokens and EOS,
            summed (T5's rank classification), or divided by their number, or by the
            characters of its text.
        road: through seqio's Evaluator, or direct; `auto` takes seqio for tasks of TFDS
            and of seqio's registry, where it can.
        decoding: of `generate`.
        max_tokens: longest output; None for the task's.
        inputs_length: longest inputs in tokens, mode and EOS included; None for the
            task's, for each exemplar and the example.
        seed: of the exemplars and the drawing.
        data_dir: where the data sets lie; None for the usual place.
        batch_size: sequences that are scored together.
    """

    method: str = "auto"
    split: str = "validation"
    shots: int = 0
    limit: int | None = None
    num_samples: int = 0
    calculator: bool = False
    infill: bool = False
    forbid_sentinels: bool = False
    choice_score: str = "sum"
    road: str = "auto"
    decoding: DecodingSettings = dataclasses.field(default_factory=DecodingSettings)
    max_tokens: int | None = None
    inputs_length: int | None = None
    seed: int = 0
    data_dir: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", METHODS),
            ("road", ROADS),
            ("choice_score", CHOICE_SCORES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--{name}={getattr(self, name)} is not one of "
                    f"{', '.join(allowed)}."
                )
        minima = {"shots": 0, "limit": 1, "num_samples": 0, "batch_size": 1}
        minima |= {"max_tokens": 1, "inputs_length": 8}
        for name, least in minima.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name}={value} must be at least {least}.")
        if self.num_samples and self.decoding.num_beams:
            raise ValueError(
                f"--num_samples={self.num_samples} draws its outputs; leave out "
                f"--num_beams={self.decoding.num_beams}."
            )
        if self.num_samples and self.method in ("rank", "teacher_forced"):
            raise ValueError(
                f"--num_samples={self.num_samples} is for --method generate, not "
                f"{self.method}."
            )

    def to_json(self) -> dict[str, Any]:
        """Returns what a result depends on, as plain JSON values."""
        fields = dataclasses.asdict(self)
        # Memory and place: the result is the same.
        del fields["batch_size"], fields["data_dir"]
        return fields

    def decoding_of(self, task: TextTask) -> DecodingSettings:
        """Returns how outputs of a task are decoded."""
        settings = dataclasses.replace(
            self.decoding,
            max_tokens=self.max_tokens or task.targets_length,
            seed=self.seed,
        )
        if not self.num_samples:
            return settings
        return dataclasses.replace(
            settings,
            temperature=settings.temperature or SAMPLE_TEMPERATURE,
            top_k=settings.top_k or SAMPLE_TOP_K,
            num_decodes=self.num_samples,
        )

    def inputs_length_of(self, task: TextTask) -> int:
        """Returns the longest inputs of a task, in tokens."""
        return self.inputs_length or task.inputs_length * (self.shots + 1)

    def method_for(self, task: TextTask, examples: list[TextExample]) -> str:
        """Returns which method `auto` stands for.

        Raises:
            ValueError: ranking is asked for where there is nothing to choose from.
        """
        have_choices = all(example.choices for example in examples)
        if self.method == "rank" and not have_choices:
            raise ValueError(
                f"--method rank: task {task.name!r} has no choices to rank; use "
                "--method generate."
            )
        if self.method != "auto":
            return self.method
        return "rank" if have_choices and not self.num_samples else "generate"
