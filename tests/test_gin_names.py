"""A gin file is data: it reaches registered names, and no others."""

import sys

import pytest

from ul2 import cli, gin_config, launch

FILES = (
    "configs/models/enc_dec_tiny.gin",
    "configs/objectives/ul2.gin",
    "configs/runs/pretrain.gin",
)
BINDINGS = [("DATA", "x"), ("MODEL_DIR", "m"), ("TOTAL_STEPS", "3")]
REGISTERING = "from __gin__ import dynamic_registration\n"


@pytest.fixture
def refuse(tmp_path):
    """Returns what a gin file, or a binding, is refused with."""

    def error_of(text="", *bindings):
        (tmp_path / "own.gin").write_text(text)
        with pytest.raises(gin_config.ConfigError) as caught:
            launch.read([*FILES, str(tmp_path / "own.gin")], [*BINDINGS, *bindings])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return error_of


@pytest.mark.parametrize(
    "statement",
    ["import antigravity", "import os", "from ul2.cli import command as recipe"],
)
@pytest.mark.parametrize("first", ["", REGISTERING])
def test_module_that_is_not_registered_is_not_imported(statement, first, refuse):
    assert f"may not import {statement.split()[1]}" in refuse(f"{first}{statement}\n")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "recipe.make_mesh",
        "recipe.jax.devices",
        "recipe.dataclasses.inspect.os.system",
        "recipe.Recipe.open_data",
        "gin.macro.__globals__.get",
        "gin.singleton",
    ],
)
def test_what_a_module_merely_imports_cannot_be_named(name, refuse):
    text = f"{REGISTERING}from ul2 import recipe\nrecipe.Recipe.schedule = @{name}()\n"
    assert f"may not name {name}: not registered" in refuse(text)


def test_module_of_ones_own_is_registered_by_hand(tmp_path, monkeypatch, refuse):
    (tmp_path / "my_schedules.py").write_text(
        "import os\ndef flat(rate): return lambda step: rate\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gin_config, "_trusted", set())
    text = f"{REGISTERING}import my_schedules\nfrom ul2 import recipe\n"
    text += "recipe.Recipe.schedule = @my_schedules.flat()\n"
    text += "my_schedules.flat.rate = 0.25\n"
    assert "may not import my_schedules" in refuse(text)
    options = cli._parser().parse_args(["train", "--import_module=my_schedules"])
    cli.command.import_modules(options)
    (tmp_path / "own.gin").write_text(text)
    recipe = launch.read([*FILES, str(tmp_path / "own.gin")], BINDINGS)
    assert recipe.schedule(7) == 0.25
    system = text.replace("my_schedules.flat()", "my_schedules.os.system()")
    assert "may not name my_schedules.os.system" in refuse(system)


def test_binding_is_one_statement(refuse):
    assert "no name of gin" in refuse("", ("A = 1\nimport os\nB", "2"))
    assert "No configurable matching" in refuse("", ("SEED", "@os.system\nimport os"))


def test_files_that_include_themselves_are_refused(tmp_path, refuse):
    text = f"include '{tmp_path / 'own.gin'}'\n"
    assert "does " in refuse(text) and "include itself?" in refuse(text)


def test_file_that_is_too_large_is_not_read(refuse):
    assert "too large to be a gin file" in refuse("# " + "x" * 2**20)


def test_macro_that_comes_back_to_itself_is_named(refuse):
    error = refuse("", ("SEED", "%BATCH_SIZE"), ("BATCH_SIZE", "%SEED"))
    assert "BATCH_SIZE refers to itself" in error
    assert "SEED refers to itself" in error


@pytest.mark.parametrize("value", ["(" * 5000, "9" * 5000, "[" * 200, "\x00", "{"])
def test_value_that_python_cannot_read_is_a_text(value, refuse):
    assert "is no int" in refuse("", ("SEED", value))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("mixture", "3", "a mixture"),
        ("settings", "@mixture.named()", "settings"),
        ("schedule", "@loop.TrainSettings()", "a schedule"),
        ("optimizer", "1.5", "an optimizer"),
    ],
)
def test_part_of_another_kind_is_refused_by_name(name, value, what, refuse):
    text = f"{REGISTERING}from ul2 import recipe\nfrom ul2.training import loop\n"
    text += "from ul2.denoising import mixture\n"
    error = refuse(f"{text}recipe.Recipe.{name} = {value}\n")
    assert error.startswith(f"recipe.Recipe.{name} = ")
    assert f"is not {what}; " in error
