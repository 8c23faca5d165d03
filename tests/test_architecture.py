"""The tree is what ARCHITECTURE.md says: layers, light imports, no TensorFlow."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from wiring_toys import flags, make_store

import ul2

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(ul2.__path__, "ul2."))


def run_python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_are_kept():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml")) == 0


@pytest.mark.tf
def test_every_module_can_be_imported_first():
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]"
    run_python(code, *MODULES)
    run_python(code, *reversed(MODULES))


def test_help_loads_nothing_heavy():
    code = (
        "import sys, contextlib\n"
        "from ul2.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['train', '--help'])\n"
        "print('loaded', [m for m in ('jax', 'numpy', 'gin') if m in sys.modules])\n"
    )
    assert run_python(code).splitlines()[-1] == "loaded []"


def test_nothing_right_of_tasks_loads_tensorflow(tmp_path):
    store = make_store(tmp_path)
    code = (
        "import sys, json\n"
        "from ul2.cli import main\n"
        "recipe = json.loads(sys.argv[1])\n"
        "for command in ('check', 'inspect', 'train'):\n"
        "    assert main([command, *recipe]) == 0, command\n"
        "heavy = ('tensorflow', 'tensorflow_text', 'seqio', 'clu')\n"
        "print('loaded', [m for m in heavy if m in sys.modules])\n"
    )
    recipe = flags(store, MODEL_DIR=str(tmp_path / "run"), TOTAL_STEPS=2)
    assert run_python(code, json.dumps(recipe)).splitlines()[-1] == "loaded []"
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("name", ["utils", "common", "helpers"])
def test_no_module_is_a_drawer(name):
    assert not [module for module in MODULES if module.split(".")[-1] == name]
