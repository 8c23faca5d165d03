"""Memory by cause: exact where shardings say it, the compiler's word otherwise."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from planning_toys import flags, read

from ul2.planning import memory
from ul2.planning.compilation import OutOfMemoryError, compile_step, plan_state
from ul2.planning.hlo import Module
from ul2.planning.memory import MemoryUse
from ul2.planning.shapes import shape_of
from ul2.sharding.mesh import make_mesh
from ul2.training.guard import Guard
from ul2.training.state import TrainState, define_model, init_state

MESH = "data=1,fsdp=4,tensor=2"


@pytest.fixture(scope="module")
def recipe():
    # Lengths that make no activation look like a kernel.
    lengths = {"INPUTS_LENGTH": 40, "TARGETS_LENGTH": 40}
    return read(flags(MESH=MESH, REMAT="full", **lengths))[0]


@pytest.fixture(scope="module")
def laid_out(recipe):
    mesh = make_mesh(MESH)
    shape = shape_of(recipe, mesh)
    return mesh, shape, plan_state(recipe, mesh, shape)


@pytest.fixture(scope="module")
def step(recipe, laid_out):
    mesh, shape, _ = laid_out
    return compile_step(recipe, mesh, shape)


def test_state_takes_what_its_shards_take(recipe, laid_out):
    mesh, shape, abstract = laid_out
    held = memory.held(abstract, shape.abstract(mesh))
    make = recipe.make_model(shape.vocab)
    axes = define_model(make).param_axes
    state = init_state(make, recipe.optimizer(recipe.schedule, axes), mesh, seed=0)

    def on_first(tree):
        first = mesh.devices.flat[0]
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == first
        )

    assert held.parameters == on_first(state.params)
    guard = Guard.fresh(shape.num_denoisers)
    judged_by = sum(array.nbytes for array in guard)
    assert held.optimizer == on_first(state.opt_state) + judged_by
    # All that matters is split over all eight.
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert whole / 8 <= held.parameters < whole / 8 * 1.01


def test_causes_add_up(laid_out, step):
    mesh, shape, abstract = laid_out
    held = memory.held(abstract, shape.abstract(mesh))
    use = memory.memory_use(held, step.stats, step.module, is_tpu=False)
    # jit leaves out what a step does not read of its batch.
    read_at_least = held.parameters + held.optimizer
    assert read_at_least < step.stats.argument_size_in_bytes <= held.total + 4
    assert use.temporaries == step.stats.temp_size_in_bytes
    assert use.total == held.total + use.temporaries + use.program
    assert use.to_json()["total"] == use.total
    assert 0 < use.activations + use.gradients < use.temporaries


def test_what_loops_collect_is_kept_inputs_and_gradients(laid_out, step):
    mesh, shape, abstract = laid_out
    use = memory.memory_use(
        memory.held(abstract, shape.abstract(mesh)),
        step.stats,
        step.module,
        is_tpu=False,
    )
    # Two layers each keep their input, of a fourth of the rows and half of the columns.
    layer_inputs = 2 * shape.rows // 4 * sum(shape.widths) // 2 * 64 * 4
    # The loss, where the backward pass begins, leaves gradients of the hidden states.
    chunks = -(-shape.widths[-1] // 64)
    head_columns = chunks * shape.rows // 4 * 64 * 64 * 4
    assert use.activations == pytest.approx(layer_inputs + head_columns, rel=0.1)
    stacked = [
        leaf for leaf in jax.tree.leaves(abstract.params) if len(leaf.shape) == 3
    ]
    assert use.gradients == pytest.approx(memory.shard_bytes(stacked), rel=0.1)


class Stats(NamedTuple):
    """Of a compiled program."""

    argument_size_in_bytes: int = 120
    temp_size_in_bytes: int = 900
    peak_memory_in_bytes: int = 620
    generated_code_size_in_bytes: int = 7


def test_peak_is_the_memory_of_a_chip():
    known = MemoryUse(parameters=80, optimizer=10, batch=10)
    use = memory.memory_use(known, Stats(), Module(""), is_tpu=True)
    assert (use.padding, use.temporaries, use.total) == (20, 500, 627)
    assert use.allocated_temporaries == 900


def module_of(shape):
    return Module(
        "HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {\n"
        f"  %x = f32[8]{{0}} parameter(0)\n  %y = {shape} broadcast(%x)\n"
        "  ROOT %z = f32[8]{0} negate(%x)\n}\n"
    )


@pytest.mark.parametrize(
    ("shape", "whole"),
    [
        ("f32[4,96,1024]{2,1,0}", True),
        ("f32[384,512]{1,0}", True),  # this device's half of the vocabulary
        ("f32[4,32,1024]{2,1,0}", False),  # a chunk
        ("f32[1024,256]{1,0}", False),  # the table
    ],
)
def test_whole_logits_are_seen(shape, whole):
    assert memory.makes_whole_logits(module_of(shape), {1024, 512}, 4 * 96) is whole


def test_parameter_that_is_made_whole_is_named():
    mesh = make_mesh(MESH)

    def leaf(*spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct((3, 8, 16), np.float32, sharding=sharding)

    state = TrainState(
        None,
        {"split": {"kernel": leaf(None, "fsdp")}, "whole": leaf()},
        None,
    )
    gathered = module_of("bf16[3,16,8]{2,1,0}")
    assert memory.whole_parameters(gathered, state) == ["split.kernel"]
    assert memory.whole_parameters(module_of("f32[3,16,2]{2,1,0}"), state) == []
    alone = state._replace(params={"whole": leaf()})
    assert memory.whole_parameters(gathered, alone) == []


def test_step_makes_nothing_whole(recipe, laid_out, step):
    _, shape, abstract = laid_out
    assert memory.whole_parameters(step.module, abstract) == []
    columns = shape.rows // 4 * shape.widths[-1]
    assert not memory.makes_whole_logits(step.module, {32128, 16064}, columns)
    largest = memory.largest_buffers(step.module, 3)
    sizes = [buffer.array.size for buffer in largest]
    assert sizes == sorted(sizes, reverse=True)


def test_refusal_of_a_compiler_says_how_much_is_needed(recipe, laid_out, monkeypatch):
    def refuse(self, *args, **options):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (97.04G) exceeds available HBM (95.74G)."
        )

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    mesh, shape, _ = laid_out
    with pytest.raises(OutOfMemoryError) as raised:
        compile_step(recipe, mesh, shape)
    assert raised.value.needed_bytes == int(97.04 * 2**30)
