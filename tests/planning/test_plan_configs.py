"""Every model that ships, on the meshes that ship, compiles and splits as it should."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planning_toys import read

from ul2.planning.plan import lay_out, plan, with_depth
from ul2.planning.topology import open_topologies

ROOT = Path(__file__).parents[2]
WIRING = {"encoder_decoder", "decoder_only"}
MODELS = sorted(
    path.stem
    for path in (ROOT / "configs" / "models").glob("*.gin")
    if path.stem not in WIRING
)
OBJECTIVE = "--gin_file=configs/objectives/ul2.gin"
# Short examples, so that a plan takes seconds; widths and vocabulary are whole.
SHORT = [
    "--gin.INPUTS_LENGTH=32",
    "--gin.TARGETS_LENGTH=32",
    "--gin.BATCH_SIZE=56",
    "--gin.LOSS_CHUNK=64",
]
SHARE = 1.02


def recipe_of(model, mesh, run="pretrain", objective=OBJECTIVE):
    files = (f"models/{model}", f"runs/{run}", f"meshes/{mesh}")
    names = [f"--gin_file=configs/{name}.gin" for name in files]
    return read([names[0], *filter(None, [objective]), *names[1:], *SHORT])[0]


def assert_is_split(report):
    used, devices = report["bytes_per_device"], report["devices"]
    whole = 4 * report["params"]
    assert whole / devices <= used["parameters"] <= SHARE * whole / devices
    assert report["whole_parameters"] == []
    assert not report["whole_logits"]
    assert report["unread_loops"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh"),
    list(zip(MODELS, itertools.cycle(["h200x8_fsdp", "h200x8_tensor2"]), strict=False)),
)
def test_model_is_split_over_a_node(model, mesh):
    recipe = with_depth(recipe_of(model, mesh), 2)
    (topology,) = open_topologies(["h200:8"])
    assert_is_split(plan(lay_out(recipe, topology)))


@pytest.mark.parametrize("model", MODELS)
def test_model_is_laid_out_on_a_node(model):
    (topology,) = open_topologies(["h200:8"])
    setting = lay_out(recipe_of(model, "h200x8_fsdp"), topology)
    held = setting.held.parameters
    assert setting.params / 2 <= held <= SHARE * setting.params / 2


@pytest.mark.parametrize("run", ["finetune_flan", "ul2r"])
def test_run_is_laid_out_without_its_data_and_checkpoint(run):
    model = "enc_dec_base" if run == "finetune_flan" else "dec_only_base"
    setting = lay_out(
        recipe_of(model, "h200x8_fsdp", run, objective=None),
        *open_topologies(["h200:8"]),
    )
    assert setting.shape.examples == 56
    assert setting.work.flops.model > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "devices"),
    [("ul2_20b", "v5p_64", 64), ("dec_only_xxl", "h200x32_fsdp8", 32)],
)
def test_model_is_split_over_its_mesh(model, mesh, devices):
    files = (f"models/{model}", "objectives/ul2", "runs/pretrain", f"meshes/{mesh}")
    # A process of its own: this one has eight devices.
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import ul2.cli, sys; sys.exit(ul2.cli.main())"),
            *("plan", "--json", "--depth=2", f"--topology=cpu:{devices}"),
            *(f"--gin_file=configs/{name}.gin" for name in files),
            *SHORT,
            "--gin.BATCH_SIZE=224",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["devices"] == devices
    # The mesh of four nodes copies parameters between them.
    report["devices"] //= report["mesh"]["data"]
    assert_is_split(report)
