"""What somebody may have meant, and what T5X calls it."""

import re
from pathlib import Path

import pytest

from ul2 import t5x_names
from ul2.spelling import did_you_mean, nearest

CONFIGS = Path(__file__).parents[1] / "configs"
TASKS = ["glue_cola", "super_glue", "super_glue_boolq", "super_glue_cb", "xsum"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("boolQ", ["super_glue_boolq"]),
        ("superglue", ["super_glue"]),
        ("glue-cola", ["glue_cola"]),
        ("xsun", ["xsum"]),
        ("translation", []),
        ("", []),
    ],
)
def test_nearest_name_comes_first(typed, meant):
    assert nearest(typed, TASKS) == meant


def test_nothing_is_asked_where_nothing_is_near():
    assert did_you_mean("xsun", TASKS) == " (did you mean 'xsum'?)"
    assert did_you_mean("qqqq", TASKS) == ""


def test_what_stands_for_a_name_of_t5x_is_there():
    texts = [file.read_text() for file in CONFIGS.rglob("*.gin")]
    macros = {name for text in texts for name in re.findall(r"%([A-Z_0-9]+)", text)}
    instead = [*t5x_names._MACROS.values(), *t5x_names._PARAMETERS.values()]
    assert len(instead) > 40
    for text in instead:
        for name in re.findall(r"\b[A-Z][A-Z_]{3,}\b", re.sub(r"NAME|T5X", "", text)):
            assert name in macros, text
        for file in re.findall(r"configs/runs/\w+\.gin", text.replace("NAME", "run")):
            assert (CONFIGS.parent / file).is_file()


def test_parameter_of_t5x_is_known_in_any_scope():
    name = "train_eval/t5x.utils.DatasetConfig.batch_size"
    assert t5x_names.instead_of_parameter(name) == "BATCH_SIZE"
    assert t5x_names.instead_of_parameter("adafactor.decay_rate") is None
