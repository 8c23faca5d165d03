import dataclasses

import pytest

from ul2.tasks import registry


@pytest.fixture
def own_tasks(monkeypatch):
    """Forgets the tasks that a test registers."""
    monkeypatch.setattr(registry, "_registered", {})


def test_every_task_is_found_by_its_name():
    assert len(set(registry.names())) == len(registry.names())
    for name in registry.names():
        assert registry.find(name).name == name


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("boolq", "'boolq' is no task; did you mean super_glue_boolq (TASK, --task)."),
        ("xsun", "'xsun' is no task; did you mean xsum (TASK, --task)."),
        ("", "'' is no task; there are super_glue_boolq, super_glue_cb"),
        ("glue", "'glue' is a mixture, not a task; its tasks are glue_cola, glue_sst2"),
    ],
)
def test_unknown_name_gets_one_line_that_helps(name, answer):
    with pytest.raises(ValueError) as error:
        registry.find(name)
    assert str(error.value).startswith(answer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", registry.MIXTURES)
def test_mixtures_are_made_of_tasks_with_training_rows(name):
    for task, rate in registry.find_mixture(name):
        assert "train" in registry.find(task).source.splits
        assert rate > 0


def test_ablation_is_super_glue_and_three_of_generation():
    super_glue = dict(registry.find_mixture("super_glue"))
    ablation = dict(registry.find_mixture("ul2_ablation"))
    assert len(super_glue) == 8
    assert ablation.keys() - super_glue.keys() == {
        "xsum",
        "totto",
        "schema_guided_dialogue",
    }


def test_rates_are_sizes_up_to_a_limit_or_equal():
    rates = dict(registry.find_mixture("super_glue"))
    assert (rates["super_glue_boolq"], rates["super_glue_record"]) == (9427, 138854)
    limited = dict(registry.find_mixture("super_glue", size_limit=10_000))
    assert (limited["super_glue_boolq"], limited["super_glue_record"]) == (9427, 10_000)
    equal = registry.find_mixture("super_glue", rates="equal")
    assert {rate for _, rate in equal} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("superglue",), "'superglue' is no mixture; did you mean super_glue or glue."),
        (("glue", "size"), "rates='size' is not one of ['examples', 'equal']."),
        (("glue", "equal", 0), "size_limit=0 must be at least 1."),
    ],
)
def test_wrong_mixture_gets_one_line(arguments, problem):
    with pytest.raises(ValueError) as error:
        registry.find_mixture(*arguments)
    assert str(error.value) == problem


def test_own_task_is_found_and_its_name_taken(own_tasks):
    task = dataclasses.replace(registry.find("xsum"), name="ours")
    registry.register(task)
    registry.register(task)  # importing a module again changes nothing
    assert registry.find("ours") is task
    assert registry.names()[-1] == "ours"
    for name in ("ours", "xsum", "glue"):
        other = dataclasses.replace(task, name=name, targets_length=1)
        with pytest.raises(ValueError, match=rf"'{name}' exists already"):
            registry.register(other)
