import pytest

from ul2.tasks import metrics


def test_accuracy_counts_equal_values_and_no_answer_as_wrong():
    assert metrics.accuracy([1, 0, 1, 1], [1, 0, 0, None]) == {"accuracy": 50}
    assert metrics.accuracy(["a", "b"], ["a", "c"]) == {"accuracy": 50}


def test_exact_match_takes_any_reference():
    assert metrics.exact_match(["a", ["b", "c"]], ["x", "c"]) == {"exact_match": 50}


def test_binary_f1_takes_no_answer_as_the_wrong_one():
    # One true positive; None counts as 0 for a 1 and as 1 for a 0.
    assert metrics.f1_binary([1, 1, 0], [1, None, None])["f1"] == 50


def test_macro_f1_averages_classes_and_micro_f1_decisions():
    targets, predictions = [0, 0, 0, 1, 2], [0, 0, 0, 1, None]
    assert metrics.f1_macro(3)(targets, predictions)["f1_macro"] == pytest.approx(
        100 * 2 / 3
    )
    assert metrics.f1_micro(3)(targets, predictions)["f1_micro"] == pytest.approx(
        100 * 2 * 4 / (4 + 5)
    )


@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman])
def test_correlation_is_a_percentage_and_zero_for_constants(metric):
    (score,) = metric([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).values()
    assert score == pytest.approx(100)
    assert [*metric([1.0, 2.0], [3.0, 3.0]).values()] == [0]
    assert [*metric([1.0, 2.0], [None, None]).values()] == [0]


def test_matthews_is_a_percentage_and_zero_for_constants():
    assert metrics.matthews([1, 0, 1], [1, 0, 1])["matthews"] == pytest.approx(100)
    assert metrics.matthews([1, 0, 1], [1, 1, 1])["matthews"] == 0


def test_bleu_takes_different_numbers_of_references():
    references = [["a b c d e", "other words stand here"], "f g h i"]
    assert metrics.bleu(references, ["other words stand here", "f g h i"])[
        "bleu"
    ] == pytest.approx(100)
    assert metrics.bleu(references, ["a b c d e", "x"])["bleu"] < 90


def test_rouge_takes_the_best_reference():
    scores = metrics.rouge([["a dog", "a cat sat"]], ["a cat"])
    assert scores["rouge1"] == pytest.approx(80)
    assert scores["rouge2"] == pytest.approx(100 * 2 / 3)


def test_rouge_lsum_reads_sentences_as_lines():
    scores = metrics.rouge(["one two\nthree four"], ["three four\none two"])
    assert scores["rougeLsum"] == pytest.approx(100)
    assert scores["rougeL"] == pytest.approx(50)
    assert metrics.rouge(["x y . z"], ["z . x y"])["rougeLsum"] > 60


def test_squad_normalises_and_takes_the_best_answer():
    targets, predictions = (
        [["The Cat's  hat.", "cap"], ["red"]],
        ["cats hat", "a red x"],
    )
    scores = metrics.squad(targets, predictions)
    assert scores["em"] == 50
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert metrics.squad([[]], [None]) == {"em": 100, "f1": 100}


def test_groups_match_as_a_whole():
    targets = [(1, "q1"), (0, "q1"), (1, "q2")]
    assert metrics.group_exact_match(targets, [1, 1, 1]) == {"exact_match": 50}
    assert metrics.of_labels(metrics.accuracy)(targets, [1, 0, None])[
        "accuracy"
    ] == pytest.approx(200 / 3)


def test_parity_counts_pairs_with_one_prediction():
    targets = [(1, "a"), (1, "a"), (0, "b"), (0, "b"), (0, "single")]
    assert metrics.group_parity(targets, [0, 0, 1, 0, 1]) == {"gender_parity": 50}
