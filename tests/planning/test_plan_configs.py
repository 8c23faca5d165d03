"""Every model that ships, on the meshes that ship, compiles and splits as it should."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import xla_flags
from planning_toys import read

from ul2.planning.plan import lay_out
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
    "--gin.INPUTS_LENGTH=40",
    "--gin.TARGETS_LENGTH=40",
    "--gin.BATCH_SIZE=56",
    "--gin.LOSS_CHUNK=16",
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


def devices_of(recipe):
    """Returns how many devices the mesh of a recipe has."""
    text = recipe.read_text()
    if "v5p_64" in text:
        return 64
    (mesh,) = re.findall(r"^MESH = '(.*)'$", text, re.MULTILINE)
    return math.prod(int(size) for size in re.findall(r"=(\d+)", mesh))


RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.gin"))


@pytest.mark.slow
@pytest.mark.parametrize("devices", sorted({devices_of(path) for path in RECIPES}))
def test_every_recipe_is_split_over_its_mesh(devices):
    ours = [path for path in RECIPES if devices_of(path) == devices]
    # A process of its own: this one has eight devices.
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import ul2.cli, sys; sys.exit(ul2.cli.main())"),
            *("plan", "--json", "--depth=2", f"--topology=cpu:{devices}"),
            *(f"--config=configs/recipes/{path.name}" for path in ours),
            *SHORT,
            "--gin.BATCH_SIZE=896",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": xla_flags()},
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])["plans"]
    assert [report["devices"] for report in reports] == [devices] * len(ours)
    for report in reports:
        assert_is_split(report)
