"""`ul2 plan` from flags to report, on fake devices; with libtpu where it is there."""

import json
import math

import jax
import pytest
from planning_toys import flags, read
from test_topology import needs_libtpu

from ul2 import cli
from ul2.planning import compilation
from ul2.planning.plan import knobs, lay_out, plan, with_depth
from ul2.planning.topology import open_topologies
from ul2.training.state import define_model

MESH = "fsdp=4,tensor=2"
NEEDED = {
    "params",
    "mesh",
    "bytes_per_device",
    "fits",
    "flops_per_step",
    "compile_seconds",
    "step_seconds",
    "mfu",
    "checkpoint_bytes",
    "communication",
    "assumptions",
}


def report_of(capfd, *arguments, code=0):
    assert cli.main(["plan", *arguments, "--json"]) == code
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_plan_on_fake_devices(capfd):
    # Lengths that make no activation look like a kernel.
    arguments = flags(MESH=MESH, INPUTS_LENGTH=40, TARGETS_LENGTH=40)
    report = report_of(capfd, *arguments, "--topology=cpu:8")
    assert report.keys() >= NEEDED
    recipe, _, _ = read(arguments)
    model = define_model(recipe.make_model(lay_out_tiny(recipe).shape.vocab))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params)]
    assert report["params"] == sum(sizes)
    assert report["checkpoint_bytes"] > 4 * sum(sizes)
    assert {name for name, size in report["mesh"].items() if size > 1} == {
        "fsdp",
        "tensor",
    }
    used = report["bytes_per_device"]
    assert used["parameters"] == pytest.approx(4 * sum(sizes) / 8, rel=0.01)
    assert used["total"] <= report["memory_bytes_per_device"]
    assert report["fits"] is True
    axes = {one["axis"] for one in report["communication"]}
    assert {"fsdp", "tensor"} <= axes
    assert report["unread_loops"] == 0
    assert report["step_seconds"] is None
    assert report["whole_parameters"] == []


def lay_out_tiny(recipe, topology="cpu:8"):
    return lay_out(recipe, *open_topologies([topology]))


def test_chip_gives_time_and_its_memory_the_verdict(monkeypatch):
    setting = lay_out_tiny(read(flags(MESH=MESH))[0], "h200:8")
    report = plan(setting, total_steps=3600)
    assert report["fits"]
    assert report["hours"] == pytest.approx(report["step_seconds"])
    time = report["time"]
    longest = max(time["compute"], time["memory"], time["hidden"])
    assert report["step_seconds"] == pytest.approx(longest + time["exposed"])
    peak = setting.topology.chip.peak_flops * 8
    mfu = report["flops_per_step"] / report["step_seconds"] / peak
    assert report["mfu"] == pytest.approx(mfu)
    assert 0 < report["mfu"] < 1
    assert report["tokens_per_second"] > report["examples_per_second"] > 0


def test_refused_program_is_a_plan_that_does_not_fit(capfd, monkeypatch):
    def refuse(*arguments):
        raise compilation.OutOfMemoryError("out of memory", 97 * 2**30)

    monkeypatch.setattr("ul2.planning.plan.compile_step", refuse)
    arguments = flags(MESH="data=2,fsdp=4", REMAT="none", BATCH_SIZE=112)
    report = report_of(capfd, *arguments, "--topology=h200:8")
    assert report["fits"] is False
    assert report["bytes_per_device"]["total"] == 97 * 2**30
    assert report["compile_seconds"] is None
    text = " ".join(report["knobs"])
    assert all(knob in text for knob in ("REMAT=full", "MESH"))


def test_program_that_a_compiler_cannot_make_is_a_plan_that_does_not_fit(
    capfd, monkeypatch
):
    def refuse(self, *args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such layout\n and a trace")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    report = report_of(capfd, *flags(), "--topology=h200:8")
    assert (report["fits"], report["refused"]) == (False, "INTERNAL: no such layout")
    assert "--search" in " ".join(report["knobs"])


def test_knobs_name_what_is_large():
    setting = lay_out_tiny(read(flags(MESH="fsdp=8", REMAT="full"))[0], "h200:8")
    large_state = setting.held
    assert "more devices" in knobs(setting, large_state)[-1]
    assert not any("REMAT" in line for line in knobs(setting, large_state))
    several = lay_out_tiny(
        read(flags(MESH="fsdp=2,tensor=4", REMAT="dots", EXAMPLES_PER_ROW=7))[0]
    )
    lines = knobs(several, several.held)
    assert lines[0].startswith("REMAT=full")
    assert lines[1].startswith("MICROBATCHES=2: 4 rows")


def test_depth_is_that_of_every_stack():
    recipe, _, _ = read(flags(NUM_ENCODER_LAYERS=6, NUM_DECODER_LAYERS=2))
    config = lay_out_tiny(with_depth(recipe, 3)).config
    assert (config.num_encoder_layers, config.num_decoder_layers) == (3, 2)


def test_several_configs_and_topologies_are_one_table(capfd, monkeypatch):
    planned = []

    def remember(setting, total_steps):
        planned.append((setting.recipe.mesh, len(setting.topology.devices)))
        return {"config": None, **FAKE}

    monkeypatch.setattr("ul2.planning.from_gin.plan", remember)
    arguments = [
        *flags(),
        "--config=configs/meshes/h200x8_fsdp.gin",
        "--config=configs/meshes/h200x8_tensor2.gin",
        "--topology=h200:8",
        "--topology=cpu:8",
    ]
    report = report_of(capfd, *arguments)
    fsdp, tensor = "data=1,fsdp=8,tensor=1", "data=1,fsdp=4,tensor=2"
    assert planned == [(fsdp, 8)] * 2 + [(tensor, 8)] * 2
    assert [one["config"] for one in report["plans"]] == [
        "configs/meshes/h200x8_fsdp.gin",
        "configs/meshes/h200x8_tensor2.gin",
    ] * 2
    assert cli.main(["plan", *arguments]) == 0
    assert capfd.readouterr().out.count("h200x8_tensor2") == 2


FAKE = {
    "topology": "h200:8",
    "MESH": "fsdp=8",
    "REMAT": "full",
    "MICROBATCHES": 1,
    "params": 10,
    "bytes_per_device": {"total": 2**31},
    "memory_bytes_per_device": 2**33,
    "fits": True,
    "assumptions": ["a is b"],
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v9:2x2"], "is not a TPU slice"),
        (["--topology=cpu:8", "--depth=0"], "--depth=0 must be at least 1"),
        (["--topology=cpu:8", "--gin.MESH=fsdp=3"], "must multiply to 8: set MESH"),
        (
            ["--topology=cpu:8", "--gin.MESH=fsdp=8", "--gin.BATCH_SIZE=9"],
            "BATCH_SIZE=9 does not divide",
        ),
        (["--topology=cpu:8", "--gin.MISSPELT=9"], "nothing reads MISSPELT"),
    ],
)
def test_wrong_input_is_one_line_and_code_two(capfd, arguments, said):
    assert cli.main(["plan", *flags(), *arguments]) == 2
    error = capfd.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


@needs_libtpu
@pytest.mark.slow
def test_plan_on_a_slice(capfd):
    arguments = flags(MESH=MESH, DTYPE="bfloat16", REMAT="full")
    report = report_of(capfd, *arguments, "--topology=v5e:2x4")
    assert report["compiler"] == "libtpu"
    used = report["bytes_per_device"]
    parts = ("parameters", "optimizer", "batch", "padding", "temporaries", "program")
    assert used["total"] == sum(used[name] for name in parts)
    assert 0 < used["activations"] < used["temporaries"]
    assert report["unread_loops"] == 0
    assert {"fsdp", "tensor"} <= {one["axis"] for one in report["communication"]}
    assert report["step_seconds"] > 0


@needs_libtpu
@pytest.mark.slow
def test_step_that_a_slice_has_no_memory_for_is_reported(capfd):
    arguments = flags(
        MESH="auto", REMAT="none", BATCH_SIZE=3584, EMBED_DIM=1024, MLP_DIM=8192
    )
    report = report_of(capfd, *arguments, "--topology=v5e:1x1")
    assert report["fits"] is False
    assert report["bytes_per_device"]["total"] > report["memory_bytes_per_device"]
    assert any("MICROBATCHES=2" in line for line in report["knobs"])
