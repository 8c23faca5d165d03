"""Examples to predictions: what is asked, what is chosen, what is counted."""

import pytest
from evaluation_toys import ToyModel, ToyScore, WordTokenizer, make_task

from ul2.decoding.settings import DecodingSettings
from ul2.evaluation.evaluator import TaskEvaluator, takes_seqio
from ul2.evaluation.prediction import choice_value, make_prompts
from ul2.evaluation.settings import EvaluationSettings
from ul2.evaluation.task_evaluation import evaluate_task
from ul2.tasks.answers import extract_number
from ul2.tasks.text_task import TextExample, Tfds


def no_scores(inputs, targets):
    raise AssertionError


def evaluate(model, task, examples, mode=None, **settings):
    return evaluate_task(
        model, task, examples, mode, EvaluationSettings(**settings), no_scores
    )


RED = TextExample("is it red", "yes", ("no", "yes"))
BIG = TextExample("is it big", "no", ("no", "yes"))
FREE = TextExample("3 + 4", "7")


def test_generated_predictions_are_scored_in_the_order_of_the_examples():
    model = ToyModel({"is it red": "yes", "is it big": "yes", "q:": "no"})
    short = TextExample("q:", "7")
    result = evaluate(
        model, make_task(), [RED, short, BIG, RED], "S", method="generate", batch_size=2
    )
    assert result.scores == {"accuracy": 50}
    assert [row["prediction"] for row in result.rows] == ["yes", "no", "yes", "yes"]
    assert [row["correct"] for row in result.rows] == [True, False, False, True]
    assert {asked[1] for asked in model.asked} == {"S"}
    # All at once, in the user's order, which the seed of each follows from.
    assert [asked[2] for asked in model.asked] == [3, 2, 1, 0]
    assert (result.method, result.road, result.metric) == (
        "generate",
        "direct",
        "accuracy",
    )


def test_output_length_and_seed_are_those_of_task_and_user():
    model = ToyModel({"3 + 4": "7"})
    evaluate(model, make_task(targets_length=5), [FREE], seed=3)
    assert model.asked[0][3] == DecodingSettings(max_tokens=5, seed=3)
    evaluate(model, make_task(), [FREE], max_tokens=2)
    assert model.asked[1][3].max_tokens == 2


def test_rank_takes_the_likeliest_choice_and_the_first_of_a_tie():
    model = ToyModel(
        {},
        {
            ("is it red", "no"): -3.0,
            ("is it red", "yes"): -2.0,
            ("is it big", "no"): -1.0,
            ("is it big", "yes"): -1.0,
        },
    )
    result = evaluate(model, make_task(), [RED, BIG], "R")
    assert result.method == "rank"
    assert result.scores == {"accuracy": 100}
    assert [row["prediction"] for row in result.rows] == ["yes", "no"]
    assert result.rows[0]["choice_scores"] == [-3.0, -2.0]
    assert result.rows[0]["choices"] == ["no", "yes"]
    # The choices of one example are neighbours, so its inputs are encoded once.
    assert model.asked[:2] == [("is it red", "no", "R"), ("is it red", "yes", "R")]


def test_choice_that_cannot_be_is_last_and_no_number_in_json():
    model = ToyModel({}, {("is it red", "yes"): -9.0})
    result = evaluate(model, make_task(), [RED])
    assert result.rows[0]["prediction"] == "yes"
    assert result.rows[0]["choice_scores"] == [None, -9.0]


def test_normalised_choice_scores_divide_by_tokens_or_characters():
    # The example of the docstring.
    score = ToyScore(-3.0, 2)
    values = {
        rule: choice_value(score, "no", rule)
        for rule in ("sum", "per_token", "per_character")
    }
    assert values == {"sum": -3.0, "per_token": -1.5, "per_character": -1.5}
    assert choice_value(score, "", "per_character") == -3.0


def test_longer_choice_wins_under_normalisation_alone():
    example = TextExample("q:", "so small", ("big", "so small"))
    model = ToyModel({}, {("q:", "big"): -2.0, ("q:", "so small"): -2.4})
    for rule, winner in (("sum", "big"), ("per_token", "so small")):
        result = evaluate(model, make_task(), [example], choice_score=rule)
        assert result.rows[0]["prediction"] == winner


def test_auto_generates_where_an_example_has_no_choices():
    model = ToyModel({"is it red": "yes", "3 + 4": "7"})
    assert evaluate(model, make_task(), [RED, FREE]).method == "generate"


def test_self_consistency_draws_samples_and_takes_the_majority_answer():
    samples = ["so the answer is 6", "so the answer is 7", "so 7", "so blue"]
    model = ToyModel({"3 + 4": samples})
    task = make_task(postprocess=lambda text, example: extract_number(text))
    result = evaluate(model, task, [FREE], num_samples=4, seed=5)
    settings = model.asked[0][3]
    assert (settings.temperature, settings.top_k, settings.num_decodes) == (0.5, 40, 4)
    assert settings.seed == 5
    assert result.scores == {"accuracy": 100}
    (row,) = result.rows
    assert (row["prediction"], row["votes"], row["valid_votes"]) == (samples[1], 2, 3)
    assert row["answers"] == ["6", "7", "7", None]


def test_self_consistency_ranks_no_choices_and_keeps_what_the_user_sets():
    model = ToyModel({"is it red": ["yes", "yes"]})
    decoding = DecodingSettings(temperature=0.9, top_k=3)
    result = evaluate(model, make_task(), [RED], num_samples=2, decoding=decoding)
    assert result.method == "generate"
    assert (model.asked[0][3].temperature, model.asked[0][3].top_k) == (0.9, 3)


def test_calculator_changes_what_is_scored_and_keeps_what_was_written():
    written = "3 + 4 = 6 so the answer is 6"
    model = ToyModel({"3 + 4": written})
    task = make_task(postprocess=lambda text, example: extract_number(text))
    assert evaluate(model, task, [FREE]).scores == {"accuracy": 0}
    result = evaluate(model, task, [FREE], calculator=True)
    assert result.scores == {"accuracy": 100}
    assert result.rows[0]["prediction"] == "3 + 4 = 7 so the answer is 7"
    assert result.rows[0]["uncalculated"] == written


def test_troubles_are_counted():
    task = make_task(postprocess=lambda text, example: extract_number(text))
    long = TextExample(" ".join(["it"] * 30), "3", ("1", "3"))
    model = ToyModel(
        {"3 + 4": "<extra_id_0> 7", " ".join(["it"] * 15): "blue", "is it": "3"}
    )
    examples = [FREE, long, TextExample("is it", "3", ("1", "3"))]
    result = evaluate(model, task, examples, method="generate")
    assert result.counts == {
        "examples": 3,
        "truncated_inputs": 1,
        "unanswered": 1,
        "not_a_choice": 1,
        "sentinel_leaks": 1,
    }
    assert [row["tokens_cut"] for row in result.rows] == [0, 15, 0]


def test_inputs_are_cut_to_leave_room_for_mode_and_eos():
    model = ToyModel({})
    prompts = make_prompts(["1 2 3 4 5", "1 2"], "R", model, 5, EvaluationSettings())
    ids = WordTokenizer().encode("1 2 3 4 5")
    # Mode first, EOS last.
    assert prompts[0].inputs == [5, *ids[:3], 1]
    assert [prompt.num_cut for prompt in prompts] == [2, 0]
    few_shot = EvaluationSettings(shots=1)
    (prompt,) = make_prompts(["1 2 3 4 5"], None, model, 4, few_shot)
    assert (prompt.inputs, prompt.num_cut) == ([*ids[2:], 1], 2)
    example = TextExample("1 2 3 4 5 6 7 so", "yes")
    for mode, asked in ((None, "1 2 3 4 5 6 7"), ("X", "1 2 3 4 5 6")):
        model = ToyModel({asked: "yes"})
        evaluate(model, make_task(), [example], mode, inputs_length=8)
        assert model.asked[0][0] == asked


def test_blank_in_a_question_is_no_blank_to_fill():
    settings = EvaluationSettings()
    (prompt,) = make_prompts(["is ___ red"], None, ToyModel({}), 9, settings)
    assert (prompt.num_blanks, prompt.forced) == (0, [])
    assert not {3, 4} & set(prompt.inputs)


def test_infilling_ends_inputs_with_a_blank_that_the_output_fills():
    settings = EvaluationSettings(infill=True)
    (prompt,) = make_prompts(["1 2 3 4"], "X", ToyModel({}), 6, settings)
    ids = WordTokenizer().encode("1 2 3")
    assert prompt == ([7, *ids, 3, 1], [3], 1, 1)
    model = ToyModel({"3 + 4": "<extra_id_0> 7"})
    result = evaluate(model, make_task(), [FREE], infill=True)
    assert result.scores == {"accuracy": 100}
    assert result.counts["sentinel_leaks"] == 0
    assert result.rows[0]["prediction"] == "7"
    model = ToyModel({}, {("is it red", "yes"): -1.0, ("is it red", "no"): -2.0})
    assert evaluate(model, make_task(), [RED], infill=True).scores == {"accuracy": 100}


def test_sentinels_are_forbidden_by_choice_and_counted_otherwise():
    model = ToyModel({"3 + 4": "<extra_id_0> 7"})
    result = evaluate(model, make_task(), [FREE])
    assert result.counts["sentinel_leaks"] == 1
    result = evaluate(model, make_task(), [FREE], forbid_sentinels=True)
    assert result.counts["sentinel_leaks"] == 0
    assert result.scores == {"accuracy": 100}


def test_exemplars_have_room_of_their_own_and_are_cut_first():
    model = ToyModel({"so 1 2 3 4 5 6 7 is it red": "yes"})
    text = "1 2 3 4 so 1 2 3 4 5 6 7 is it red"
    example = TextExample(text, "yes")
    evaluate(model, make_task(inputs_length=6), [example], shots=1, method="generate")


def test_reference_among_several_is_correct():
    task = make_task(target=lambda example: ["red", "blue"])
    model = ToyModel({"q:": "blue"})
    assert evaluate(model, task, [TextExample("q:", "red")]).rows[0]["correct"]


def test_rank_without_choices_is_refused():
    with pytest.raises(ValueError, match="'toy' has no choices to rank; use --method"):
        evaluate(ToyModel({}), make_task(), [FREE], method="rank")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"method": "guess"}, "--method=guess is not one of auto, generate, rank"),
        ({"choice_score": "mean"}, "--choice_score=mean is not one of sum"),
        ({"road": "air"}, "--road=air is not one of auto"),
        ({"shots": -1}, "--shots=-1 must be at least 0"),
        ({"limit": 0}, "--limit=0 must be at least 1"),
        ({"num_samples": 3, "method": "rank"}, "is for --method generate, not rank"),
        (
            {"num_samples": 3, "decoding": DecodingSettings(num_beams=2)},
            "leave out --num_beams=2",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, line):
    with pytest.raises(ValueError, match=line):
        EvaluationSettings(**fields)


def test_split_that_a_task_lacks_is_refused_with_those_it_has():
    settings = EvaluationSettings(split="test")
    with pytest.raises(ValueError, match="--split=test: task 'toy' has validation"):
        TaskEvaluator(settings, None, no_scores, [make_task()])


def test_missing_data_show_before_anything_is_evaluated():
    def read(name, split, **options):
        if name == "two":
            raise ValueError("download it.")
        return [RED]

    tasks = [make_task("one"), make_task("two")]
    evaluator = TaskEvaluator(EvaluationSettings(), None, read, tasks)
    with pytest.raises(ValueError, match="download it"):
        evaluator.prepare()
    ranking = EvaluationSettings(method="rank")
    evaluator = TaskEvaluator(ranking, None, lambda *a, **k: [FREE], tasks)
    with pytest.raises(ValueError, match="no choices to rank"):
        evaluator.prepare()


@pytest.mark.parametrize(
    ("examples", "line"),
    [([], "no example in split 'validation'"), ([TextExample("q:", "")], "not public")],
)
def test_split_without_examples_or_answers_is_refused(examples, line):
    evaluator = TaskEvaluator(EvaluationSettings(), None, lambda *a, **k: examples)
    with pytest.raises(ValueError, match=line):
        evaluator(ToyModel({}), make_task(), None)


def test_seqio_road_is_taken_for_tfds_where_it_can_be():
    tfds = make_task(source=Tfds("boolq:1.0.0", {"validation": "validation"}))
    auto = EvaluationSettings()
    assert takes_seqio(auto, tfds, "generate")
    assert not takes_seqio(auto, tfds, "rank")
    assert takes_seqio(EvaluationSettings(shots=1), tfds, "generate")
    assert not takes_seqio(EvaluationSettings(calculator=True), tfds, "generate")
    assert not takes_seqio(auto, make_task(), "generate")
    seqio = EvaluationSettings(road="seqio")
    assert takes_seqio(seqio, make_task(), "generate")
    with pytest.raises(ValueError, match="knows no --method rank"):
        takes_seqio(seqio, tfds, "rank")
