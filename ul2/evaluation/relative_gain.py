"""The UL2 paper's normalised relative gain: many metrics as one number.

Each score is compared with the reference's on the same task and metric; the gains, in
percent of the reference, are averaged over tasks. F1, ROUGE and perplexity may so be
combined (UL2 paper, section 4.2).

    task        score   reference   gain
    boolq        66.0        60.0   + 10 %
    xsum         27.0        30.0   - 10 %
    text loss     2.0         2.5   + 20 %    as -2.0 against -2.5, in shares of |-2.5|
    mean                            +6.67 %

More is better, but for losses and perplexities. Those count as negative
log-perplexities, as the paper's language modelling does, so that more is better for
them too; where a reference is negative, its absolute value is what a gain is a share
of. A reference of zero has no shares: that task is left out, and said so.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple


class RelativeGain(NamedTuple):
    """Gains over a reference, in percent.

    Attributes:
        mean: over the tasks that could be compared; None where there is none.
        tasks: of each.
        left_out: why a task could not be compared.
    """

    mean: float | None
    tasks: dict[str, float]
    left_out: dict[str, str]


def relative_gain(
    scores: Mapping[str, tuple[str, float]],
    reference: Mapping[str, tuple[str, float]],
) -> RelativeGain:
    """Returns how much better `scores` are than `reference`.

    Args:
        scores: of each task: the name of the metric, and its value.
        reference: the same, of what is compared with.
    """
    gains: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for task, (metric, value) in scores.items():
        if task not in reference:
            left_out[task] = "the reference was not scored on it"
        elif reference[task][0] != metric:
            left_out[task] = f"the reference has {reference[task][0]}, not {metric}"
        else:
            base = oriented(metric, reference[task][1])
            ours = oriented(metric, value)
            if base == 0:
                left_out[task] = f"the reference's {metric} is zero"
            elif not math.isfinite(base) or not math.isfinite(ours):
                left_out[task] = f"{metric} is not finite"
            else:
                gains[task] = 100 * (ours - base) / abs(base)
    mean = math.fsum(gains.values()) / len(gains) if gains else None
    return RelativeGain(mean, gains, left_out)


def oriented(metric: str, value: float) -> float:
    """Returns a score of which more is better.

    loss 2.0 -> -2.0; perplexity e^2 -> -2.0; accuracy 66.0 -> 66.0
    """
    if metric.endswith("perplexity"):
        return -math.log(value) if value > 0 else math.nan
    return -value if metric.endswith("loss") else value
