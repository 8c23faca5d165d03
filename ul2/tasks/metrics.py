"""Metrics of the tasks: adapters over scikit-learn, SciPy, sacrebleu and rouge-score.

    accuracy([1, 0, 1], [1, 0, None])                 {"accuracy": 66.7}
    rouge(["a cat sat"], ["a cat"])                   {"rouge1": 80.0, ...}
    squad([["the cat", "cat"]], ["The cat!"])         {"em": 100.0, "f1": 100.0}

Each is a `text_task.Metric`: targets and predictions in, scores out, all times 100. A
prediction without an answer is None and counts as wrong. Where a text may have several
references, its target is a list of them. Where an example belongs to a group, its
target is `(label, group)`, and its prediction the label alone.

Each function imports its library itself: to list the tasks needs none of them.
"""

import collections
import re
import string
from collections.abc import Sequence
from typing import Any, Final

from ul2.tasks.text_task import Metric

# What stands for a prediction without answer: no class and no score has this number
# (T5's choice, too).
_NO_ANSWER: Final = -1
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_ROUGE_TYPES: Final = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns how many predictions are the target."""
    return {"accuracy": _share_equal(targets, predictions)}


def exact_match(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns how many predictions are the target, or one of its references."""
    hits = [p in r for r, p in zip(_references(targets), predictions, strict=True)]
    return {"exact_match": 100 * sum(hits) / len(hits)}


def f1_binary(
    targets: Sequence[int], predictions: Sequence[int | None]
) -> dict[str, float]:
    """Returns F1 of class 1; a prediction that is neither 0 nor 1 is the wrong one."""
    from sklearn.metrics import f1_score

    found = [
        p if p in (0, 1) else 1 - t for t, p in zip(targets, predictions, strict=True)
    ]
    return {"f1": 100 * float(f1_score(targets, found, zero_division=0.0))}


def f1_macro(num_classes: int) -> Metric:
    """Returns a metric: the mean of the F1 of the classes 0 .. num_classes - 1."""
    return _f1_of_classes(num_classes, "macro")


def f1_micro(num_classes: int) -> Metric:
    """Returns a metric: F1 over the decisions of all classes together."""
    return _f1_of_classes(num_classes, "micro")


def matthews(
    targets: Sequence[int], predictions: Sequence[int | None]
) -> dict[str, float]:
    """Returns Matthews correlation; 0 where all targets or predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    found = matthews_corrcoef(targets, _with_numbers(predictions))
    return {"matthews": 100 * float(found)}


def pearson(
    targets: Sequence[float], predictions: Sequence[float | None]
) -> dict[str, float]:
    """Returns Pearson correlation; 0 where all targets or predictions are the same."""
    return {"pearson": _correlation("pearsonr", targets, predictions)}


def spearman(
    targets: Sequence[float], predictions: Sequence[float | None]
) -> dict[str, float]:
    """Returns Spearman correlation; 0 where all targets or predictions are the same."""
    return {"spearman": _correlation("spearmanr", targets, predictions)}


def bleu(
    targets: Sequence[str | Sequence[str]],
    predictions: Sequence[str],
    tokenize: str = "13a",
) -> dict[str, float]:
    """Returns corpus BLEU against all references of each example.

    Args:
        targets: a text, or a list of references that may be shorter for some.
        predictions: texts.
        tokenize: sacrebleu's; T5's tasks use `intl`.
    """
    from sacrebleu.metrics import BLEU

    references = _references(targets)
    most = max(map(len, references))
    # sacrebleu reads None as a reference that an example does not have.
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    # Case-sensitive, exponential smoothing: what the two defaults are.
    found = BLEU(tokenize=tokenize).corpus_score(list(predictions), streams)
    return {"bleu": float(found.score)}


def rouge(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
    """Returns the F-measures of ROUGE-1, -2, -L and -Lsum, without stemming.

    The best reference counts, for each of the four. ROUGE-Lsum takes a text as
    sentences, one a line; T5's " . " ends one, too. T5 prints the median of resampled
    means, which is random; this is the mean.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE_TYPES, use_stemmer=False)
    sums = dict.fromkeys(_ROUGE_TYPES, 0.0)
    for references, prediction in zip(_references(targets), predictions, strict=True):
        found = scorer.score_multi(
            [_one_sentence_a_line(text) for text in references],
            _one_sentence_a_line(prediction),
        )
        for name in _ROUGE_TYPES:
            sums[name] += found[name].fmeasure
    return {name: 100 * total / len(predictions) for name, total in sums.items()}


def squad(
    targets: Sequence[str | Sequence[str]], predictions: Sequence[str | None]
) -> dict[str, float]:
    """Returns exact match and word F1 after SQuAD's normalisation, of the best answer.

    Of an example without any answer, the empty text is the right one.
    """
    em = f1 = 0.0
    for answers, prediction in zip(_references(targets), predictions, strict=True):
        found = normalize_answer(prediction or "")
        wanted = [normalize_answer(answer) for answer in answers] or [""]
        em += max(found == answer for answer in wanted)
        f1 += max(_word_f1(answer, found) for answer in wanted)
    return {"em": 100 * em / len(predictions), "f1": 100 * f1 / len(predictions)}


def normalize_answer(text: str) -> str:
    """Returns a text in lower case without punctuation, articles and extra spaces.

    "The Cat's  hat." -> "cats hat", as SQuAD's own script does.
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def with_average(*metrics: Metric) -> Metric:
    """Returns a metric: all scores of some, and `average`, their mean."""

    def scores_and_average(
        targets: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        for metric in metrics:
            scores |= metric(targets, predictions)
        return {**scores, "average": sum(scores.values()) / len(scores)}

    return scores_and_average


def of_labels(metric: Metric) -> Metric:
    """Returns a metric of targets `(label, group)` that looks at the labels alone."""

    def of_all(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        return metric([label for label, _ in targets], predictions)

    return of_all


def group_exact_match(
    targets: Sequence[tuple[Any, str]], predictions: Sequence[Any]
) -> dict[str, float]:
    """Returns how many groups have every label right.

    Sound only where all examples of a group are there.
    """
    right: dict[str, bool] = {}
    for (label, group), prediction in zip(targets, predictions, strict=True):
        right[group] = right.get(group, True) and label == prediction
    return {"exact_match": 100 * sum(right.values()) / len(right)}


def group_parity(
    targets: Sequence[tuple[Any, str]], predictions: Sequence[Any]
) -> dict[str, float]:
    """Returns how many groups of two or more have one prediction for all.

    Winogender's gender parity: the two of a group differ in the gender of a pronoun.
    """
    found: dict[str, list[Any]] = {}
    for (_, group), prediction in zip(targets, predictions, strict=True):
        found.setdefault(group, []).append(prediction)
    pairs = [values for values in found.values() if len(values) > 1]
    equal = sum(all(value == values[0] for value in values) for values in pairs)
    return {"gender_parity": 100 * equal / max(1, len(pairs))}


def _f1_of_classes(num_classes: int, average: str) -> Metric:
    """Returns F1 averaged over classes, by a name that says how."""

    def of_classes(
        targets: Sequence[int], predictions: Sequence[int | None]
    ) -> dict[str, float]:
        from sklearn.metrics import f1_score

        found = f1_score(
            targets,
            _with_numbers(predictions),
            labels=range(num_classes),
            average=average,
            zero_division=0.0,
        )
        return {f"f1_{average}": 100 * float(found)}

    return of_classes


def _share_equal(targets: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Returns the percentage of pairs that are equal, whatever the values are."""
    from sklearn.metrics import accuracy_score

    # scikit-learn takes one kind of labels only: no None among numbers.
    codes: dict[Any, int] = {}
    pairs = [
        [codes.setdefault(value, len(codes)) for value in values]
        for values in (targets, predictions)
    ]
    return 100 * float(accuracy_score(*pairs))


def _correlation(
    measure: str, targets: Sequence[float], predictions: Sequence[float | None]
) -> float:
    """Returns 100 times a correlation of SciPy's; 0 where there is none to measure."""
    from scipy import stats

    found = _with_numbers(predictions)
    if len(set(targets)) < 2 or len(set(found)) < 2:
        return 0.0
    return 100 * float(getattr(stats, measure)(targets, found).statistic)


def _with_numbers(predictions: Sequence[Any]) -> list[Any]:
    """Replaces None."""
    return [_NO_ANSWER if value is None else value for value in predictions]


def _references(targets: Sequence[Any]) -> list[list[Any]]:
    """Returns the references of each example."""
    return [list(t) if isinstance(t, list | tuple) else [t] for t in targets]


def _one_sentence_a_line(text: str) -> str:
    """Breaks lines as T5 does before ROUGE-Lsum."""
    return text.replace(" . ", " .\n")


def _word_f1(answer: str, prediction: str) -> float:
    """Returns F1 of the words of two normalised texts, each as often as it occurs."""
    wanted, found = answer.split(), prediction.split()
    if not wanted or not found:
        return float(wanted == found)
    common = (collections.Counter(wanted) & collections.Counter(found)).total()
    return 2 * common / (len(wanted) + len(found))
