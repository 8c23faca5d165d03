"""Every gin file composes, and says nothing that nothing reads."""

from pathlib import Path

import pytest
from wiring_toys import flags, make_store

from ul2 import launch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# Files that others include, and that make no run by themselves.
WIRING = {"encoder_decoder", "decoder_only", "run", "loop", "adafactor"}
# On tasks, not on text under an objective: tests/test_finetuning.py
FINETUNING = {"finetune", "finetune_flan"}
MODELS = sorted(
    p.stem for p in (CONFIGS / "models").glob("*.gin") if p.stem not in WIRING
)
OBJECTIVES = sorted(p.stem for p in (CONFIGS / "objectives").glob("*.gin"))
RUNS = sorted(
    p.stem
    for p in (CONFIGS / "runs").glob("*.gin")
    if p.stem not in WIRING | FINETUNING
)
MESHES = sorted(p.stem for p in (CONFIGS / "meshes").glob("*.gin"))
RECIPES = sorted(
    p.stem
    for p in (CONFIGS / "recipes").glob("*.gin")
    if not p.stem.endswith("_flan")  # a recipe of tasks
)
# These would change what a size file says.
SIZES = ("EMBED_DIM", "NUM_HEADS", "HEAD_DIM", "MLP_DIM", "NUM_DECODER_LAYERS")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("configs"))


def check(arguments):
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    bindings = [
        tuple(a.removeprefix("--gin.").split("=", 1))
        for a in arguments
        if a.startswith("--gin.")
    ]
    return launch.check(files, bindings)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", ["enc_dec_tiny", "dec_only_tiny"])
def test_objective_composes_with_every_architecture(store, objective, model):
    recipe = flags(store, model=model, objective=objective, MODEL_DIR="unused")
    report = check(recipe)
    assert report["errors"] == []
    for row in report["denoisers"]:
        # A stretch of a way begins and ends with an example that is still due.
        off = 2 / 2048 if "step" in row else 1e-12
        assert row["measured_share"] == pytest.approx(row["rate"], abs=off)


@pytest.mark.parametrize("run", RUNS)
def test_run_composes_and_has_no_dead_binding(store, run):
    report = check(flags(store, run=run, MODEL_DIR="unused", TOTAL_STEPS=1000))
    assert report["errors"] == []


@pytest.mark.parametrize("model", MODELS)
def test_model_composes_and_has_no_dead_binding(store, model):
    own = dict.fromkeys((*SIZES, "NUM_ENCODER_LAYERS"), "-")
    report = check(flags(store, model=model, MODEL_DIR="unused", **own))
    assert report["errors"] == []


@pytest.mark.parametrize("mesh", MESHES)
def test_mesh_file_sets_the_mesh_alone(store, mesh):
    recipe = [f for f in flags(store, MODEL_DIR="unused") if "gin.MESH" not in f]
    files = [a.removeprefix("--gin_file=") for a in recipe if "gin_file" in a]
    bindings = [
        tuple(a.removeprefix("--gin.").split("=", 1))
        for a in recipe
        if a.startswith("--gin.")
    ]
    read = launch.read([*files, f"configs/meshes/{mesh}.gin"], bindings)
    text = (CONFIGS / "meshes" / f"{mesh}.gin").read_text()
    assert f"MESH = {read.mesh!r}" in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_whole_but_for_paths(store, recipe):
    given = {"MODEL_DIR": "unused", "DATA": str(store), "MESH": "auto"}
    files = [f"configs/recipes/{recipe}.gin"]
    # Its own lengths want more text than the toy has.
    given |= {"INPUTS_LENGTH": "64", "TARGETS_LENGTH": "64", "BATCH_SIZE": "112"}
    report = launch.check(files, [*given.items(), ("INITIAL_CHECKPOINT", "None")])
    assert report["errors"] == []


def test_quickstart_names_files_that_are_there():
    script = (ROOT / "scripts" / "quickstart.sh").read_text()
    assert "configs/runs/quickstart.gin" in script
    assert {"enc_dec_tiny", "dec_only_tiny"} <= set(MODELS)
    assert all(name in script for name in ("enc_dec_tiny", "dec_only_tiny"))
