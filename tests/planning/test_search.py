"""Ways to run a recipe: all that divide, the promising first, the best by compiling."""

import dataclasses
import json

import pytest
from planning_toys import flags, read

from ul2 import cli
from ul2.planning.collectives import collectives
from ul2.planning.compilation import compile_step
from ul2.planning.plan import lay_out
from ul2.planning.predict import Sizes, predicted_sent, predicted_use, roles
from ul2.planning.search import apply, candidates, meshes, search
from ul2.planning.topology import open_topologies
from ul2.sharding.mesh import AXES, make_mesh


@pytest.fixture(scope="module")
def topology():
    return open_topologies(["h200:8"])[0]


@pytest.fixture(scope="module")
def recipe():
    return read(flags(REMAT="full", DTYPE="bfloat16"))[0]


def sizes_of(mesh):
    sizes = dict.fromkeys(AXES, 1)
    return sizes | {k: int(v) for k, v in (p.split("=") for p in mesh.split(","))}


def test_every_mesh_that_divides_the_heads_is_tried(recipe, topology):
    config = lay_out(recipe, topology).config
    found = [sizes_of(mesh) for mesh in meshes(config, topology)]
    assert len({tuple(one.values()) for one in found}) == len(found)
    assert {one["tensor"] for one in found} == {1, 2, 4}  # of four heads
    by_size = {(one["data"], one["fsdp"], one["tensor"]) for one in found}
    assert {(1, 8, 1), (1, 4, 2), (2, 1, 4), (8, 1, 1)} <= by_size
    shared = dataclasses.replace(config, num_kv_heads=1)
    assert {sizes_of(mesh)["tensor"] for mesh in meshes(shared, topology)} == {1}


def test_candidates_divide_and_the_first_fit(recipe, topology):
    found = candidates(recipe, topology, None)
    assert len({one[:3] for one in found}) == len(found)
    assert {one.remat for one in found} >= {"none", "dots", "full"}
    splits = {one.inside for one in found}
    assert {one.inside for one in found[: len(splits)]} == splits
    for one in found[:20]:
        lay_out(apply(recipe, one), topology)
    # 56 examples do not divide into sixteen parts.
    assert not any(
        one.microbatches == 16 and sizes_of(one.mesh)["tensor"] == 1 for one in found
    )
    small = dataclasses.replace(
        topology,
        chip=dataclasses.replace(
            topology.chip, memory_bytes=int(found[0].needed_bytes / 2)
        ),
    )
    tight = candidates(recipe, small, None)
    assert tight[0].needed_bytes < found[0].needed_bytes
    assert len(tight) == len(found)


def test_prediction_is_near_what_is_compiled(topology):
    # The CPU's compiler sends float32 whatever the dtype.
    recipe = read(flags(REMAT="full", MESH="data=2,fsdp=2,tensor=2"))[0]
    setting = lay_out(recipe, topology)
    held = setting.held
    whole = lay_out(
        dataclasses.replace(recipe, mesh="auto"),
        dataclasses.replace(topology, devices=topology.devices[:1]),
    ).held
    sizes = Sizes(setting.params, whole.parameters, whole.optimizer)
    use = predicted_use(setting.work, setting.mesh, sizes)
    assert use.parameters == pytest.approx(held.parameters, rel=0.02)
    assert use.batch == pytest.approx(held.batch, rel=0.2)
    step = compile_step(setting.recipe, setting.mesh, setting.shape)
    sent = collectives(step.module, setting.mesh)
    predicted = predicted_sent(setting.work, setting.mesh)
    assert {one.axes for one in predicted} == {("data",), ("fsdp",), ("tensor",)}
    total = sum(one.sent_bytes for one in sent)
    assert 0.5 < sum(one.sent_bytes for one in predicted) / total < 1.5


def test_axes_of_size_one_do_nothing():
    assert roles(make_mesh("fsdp=8")).rows == ("fsdp",)
    assert roles(make_mesh("fsdp=8")).insides == ()
    found = roles(make_mesh("data=2,fsdp=2,tensor=2"))
    assert found[:3] == (("data", "fsdp"), ("fsdp",), ("tensor",))


def test_less_is_kept_by_stronger_policies(recipe, topology):
    setting = lay_out(dataclasses.replace(recipe, mesh="fsdp=8"), topology)
    sizes = Sizes(1000, 4000, 4000)
    kept = []
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(setting.config, remat=remat)
        work = setting.work._replace(config=config)
        kept.append(predicted_use(work, setting.mesh, sizes).activations)
    assert kept[0] > kept[1] > kept[2] > 0


@pytest.mark.slow
def test_search_reports_the_best_and_all_that_were_compiled(capfd):
    arguments = [*flags(), "--topology=h200:8", "--search", "--candidates=2", "--json"]
    assert cli.main(["plan", *arguments]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    tried = report["search"]["compiled"]
    assert len(tried) == 2
    assert report["search"]["considered"] > 20
    assert [one["step_seconds"] for one in tried] == sorted(
        one["step_seconds"] for one in tried
    )
    assert report["MESH"] == tried[0]["MESH"]
    assert report["fits"] and all(one["fits"] for one in tried)
    assert "compiling 2 of 2: MESH=" in captured.err
    # What is reported can be set.
    knobs = {name: tried[0][name] for name in ("MESH", "REMAT", "MICROBATCHES")}
    setting = lay_out(read(flags(**knobs))[0], *open_topologies(["h200:8"]))
    assert dict(setting.mesh.shape) == report["mesh"]


def test_search_of_what_cannot_divide_is_refused(topology):
    two_slices = dataclasses.replace(topology, slices=2)
    one_example = read(flags(BATCH_SIZE=1))[0]
    with pytest.raises(ValueError, match="no mesh of 8 devices divides BATCH_SIZE=1"):
        search(
            one_example, two_slices, None, count=1, total_steps=None, say=pytest.fail
        )
