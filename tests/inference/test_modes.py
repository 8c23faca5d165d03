import dataclasses

import pytest
from checkpoint_toys import make_checkpoint

from ul2.inference.modes import misfit, modes_of, trained_modes

UL2 = {"denoisers": [{"mode": "R"}, {"mode": "X"}, {"mode": "R"}], "rates": [1, 1, 1]}


def test_modes_are_those_of_the_denoisers_or_tasks():
    assert modes_of(UL2) == ("R", "X")
    assert modes_of({"denoisers": [{"mode": None}]}) == ()
    row = {"name": "boolq", "rate": 1.0, "mode": "S"}
    assert modes_of({"tasks": [row, {**row, "mode": None}]}) == ("S",)
    assert modes_of(["something else"]) is None
    assert modes_of({"denoisers": "r"}) is None


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("ul2_20b", ("R", "S", "X")),
        ("flan_ul2_20b", ()),
        ("t5_base", ()),
        ("t5_1_1_small", ()),
        ("umt5_small", ()),
        (None, None),
    ],
)
def test_published_models_are_known_by_their_preset(preset, expected):
    checkpoint = dataclasses.replace(make_checkpoint("ul2"), preset=preset)
    assert trained_modes(checkpoint, None) == expected
    # What a run says of itself goes before what its sizes are those of.
    assert trained_modes(checkpoint, UL2) == ("R", "X")


def test_misfit_is_said_in_one_line_that_names_the_flag():
    assert misfit(None, "R") is misfit(None, None) is misfit((), None) is None
    assert misfit(("R", "S"), "S") is None
    for trained, mode, told in (
        (("R", "S", "X"), None, "trained with modes R, S, X, but none is given"),
        ((), "S", "mode S is given, but the checkpoint was trained without modes"),
        (("S",), "R", "mode R is given, but the checkpoint was trained with S"),
    ):
        line = misfit(trained, mode)
        assert told in line
        assert "--mode" in line
        assert "\n" not in line
