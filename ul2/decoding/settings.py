"""`DecodingSettings`: how the next token is chosen, and when to stop."""

import dataclasses
from typing import Final

LENGTH_RULES: Final = ("t5x", "huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How the next token is chosen, and when to stop.

    The logits go through, in this order: what is not allowed here (constraints,
    forbidden ids, `no_repeat_ngram`), `repetition_penalty`, `temperature`, `top_k`,
    `top_p`. Log probabilities that are reported are the model's, before all of that.

    Attributes:
        max_tokens: longest output: forced tokens and EOS are part of it.
        temperature: 0 takes the likeliest token; otherwise the logits are divided by it
            and a token is drawn.
        top_k: draw among the k likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that together have at least this
            probability, after `top_k`; 1 for all.
        repetition_penalty: divides the positive logits of tokens that were written, and
            multiplies their negative ones (CTRL, arXiv 1909.05858); 1 for none.
        no_repeat_ngram: no sequence of this many tokens is written twice; 0 for any.
        num_beams: hypotheses of a beam search; 0 for none. One beam is not greedy
            decoding under T5X's rule: an EOS that is second best may end it.
        length_rule: `t5x` divides a log probability by ((5 + length) / 6)^alpha and
            keeps finished hypotheses apart; `huggingface` divides by length^alpha.
        length_penalty: the alpha of that rule.
        early_stopping: of `huggingface`: stop once there are `num_beams` finished ones.
        num_decodes: outputs of each example: samples, or the best of the beam.
        seed: of the drawing. What is drawn depends on it, on the number of the example
            and on the place in the output alone, not on what else is in the batch.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    num_beams: int = 0
    length_rule: str = "t5x"
    length_penalty: float = 0.6
    early_stopping: bool = False
    num_decodes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "max_tokens": 1,
            "temperature": 0,
            "top_k": 0,
            "no_repeat_ngram": 0,
            "num_beams": 0,
            "num_decodes": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least {least}."
                )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1].")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be positive."
            )
        if self.length_rule not in LENGTH_RULES:
            raise ValueError(
                f"length_rule={self.length_rule!r} is not one of {list(LENGTH_RULES)}."
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.num_beams and self.temperature:
            raise ValueError(
                f"num_beams={self.num_beams} and temperature={self.temperature}: a "
                "beam search draws nothing; leave one of them out."
            )
        if self.num_beams and self.num_decodes > self.num_beams:
            raise ValueError(
                f"num_decodes={self.num_decodes} is more than num_beams="
                f"{self.num_beams}."
            )
        if not self.num_beams and not self.temperature and self.num_decodes > 1:
            raise ValueError(
                f"num_decodes={self.num_decodes} of greedy decoding would all be the "
                "same; set temperature or num_beams."
            )
