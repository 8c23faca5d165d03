"""What a step holds in memory, read from the compiled program."""

import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_fixtures import tiny_config
from training_toys import NAMES

from ul2.batch import Batch, Packed
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import batch_sharding
from ul2.training import precision
from ul2.training.optimizers import adafactor, adamw
from ul2.training.schedules import constant
from ul2.training.state import (
    abstract_state,
    define_model,
    guarded,
    init_state,
    with_shardings,
)
from ul2.training.step import StepSettings, make_train_step

# No two of the sizes, nor their products, are alike.
LENGTH, ROWS, DEPTH, WIDTH = 12, 32, 4, 64
SETTINGS = StepSettings(0, len(NAMES), 1, "target_tokens", 0.0, 8)


def make_config(**changes):
    fields = {"embed_dim": WIDTH, "mlp_dim": 256, "num_encoder_layers": DEPTH}
    return tiny_config(**{**fields, "num_decoder_layers": DEPTH, **changes})


def lowered(mesh, config, rounding=None, rows=ROWS, **settings):
    """Returns the abstract state, and the train step of a model, not compiled yet."""

    def make_model(*, rngs):
        return EncoderDecoder(config, rngs=rngs)

    optimizer = adafactor
    if rounding:
        make_model = precision.in_bfloat16(make_model)
        optimizer = precision.rounded(adafactor, rounding, seed=0)
    model = define_model(make_model)
    rule = optimizer(constant(0.01), model.param_axes)
    abstract, shardings = abstract_state(make_model, rule, mesh)
    step = make_train_step(
        model,
        rule,
        constant(0.01),
        mesh,
        state_shardings=shardings,
        settings=SETTINGS._replace(**settings),
    )
    wanted = with_shardings(abstract, shardings)
    return wanted, step.lower(wanted, make_batch(mesh, rows)), (make_model, rule, step)


def make_batch(mesh, num_rows=ROWS):
    """Returns the shapes of one example per row."""
    sharding = batch_sharding(mesh)

    def array(shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows, one = (num_rows, LENGTH), (num_rows, 1)
    packed = Packed(array(rows), array(rows), array(rows), array((*one, LENGTH)))
    weights = array(rows, jnp.float32)
    return Batch(packed, packed, array(rows), weights, array(rows), array(one))


def bytes_on_one_device(tree):
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def buffers(text):
    """Returns every (dtype, shape) that a compiled program names."""
    found = re.findall(r"\b(f32|bf16)\[([\d,]+)\]", text)
    return {(dtype, tuple(map(int, dims.split(",")))) for dtype, dims in found}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("fsdp=4,tensor=2", jax.devices()[:8])


@pytest.mark.parametrize("rounding", [None, *precision.ROUNDINGS])
def test_new_state_takes_the_place_of_the_old(mesh, rounding):
    state, program, _ = lowered(mesh, make_config(), rounding)
    memory = program.compile().memory_analysis()
    # Not the zeros that stand where Adafactor has no moments: nobody reads them.
    read = [leaf for leaf in jax.tree.leaves(state) if leaf.shape[-1:] != (1,)]
    assert memory.alias_size_in_bytes >= bytes_on_one_device(read)
    rest = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert rest < 4096  # those zeros, and what the step measured


def test_judged_update_needs_no_second_copy_of_anything(one_device):
    """Of AdamW's moments: the new ones are read by the update of the parameters."""
    config = make_config(num_encoder_layers=1, num_decoder_layers=1)

    def make_model(*, rngs):
        return EncoderDecoder(config, rngs=rngs)

    model = define_model(make_model)
    rule = adamw(constant(0.01), model.param_axes)
    plain = abstract_state(make_model, rule, one_device)
    needed = []
    for abstract, shardings in (plain, guarded(*plain, len(NAMES), one_device)):
        step = make_train_step(
            model, rule, constant(0.01), one_device,
            state_shardings=shardings, settings=SETTINGS,
        )  # fmt: skip
        state = with_shardings(abstract, shardings)
        memory = step.lower(state, make_batch(one_device)).compile().memory_analysis()
        assert memory.argument_size_in_bytes - memory.alias_size_in_bytes < 1e5
        needed.append(memory.temp_size_in_bytes)
    params = with_shardings(*plain).params
    assert needed[1] - needed[0] < bytes_on_one_device(params) / 20


@pytest.mark.parametrize("microbatches", [1, 4])
def test_no_gradient_of_a_stack_is_ever_whole(mesh, microbatches):
    """On each device the sums over microbatches are as small as the parameters."""
    state, program, _ = lowered(mesh, make_config(), microbatches=microbatches)
    text = program.compile().as_text()
    shapes = {shape for _, shape in buffers(text)}
    for leaf in jax.tree.leaves(state.params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        if leaf.ndim == 3 and shard != leaf.shape:
            assert leaf.shape not in shapes
            assert ("f32", shard) in buffers(text)


def values_like(abstract, seed=0):
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.integers(1, 8, leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    batch = jax.tree.map(draw, abstract)
    columns = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    packed = batch.encoder._replace(
        segment_ids=np.ones_like(columns),
        positions=columns,
        columns=columns[:, None],
    )
    placed = jax.tree.map(
        lambda value, leaf: jax.device_put(value, leaf.sharding),
        batch._replace(encoder=packed, decoder=packed),
        abstract,
    )
    return placed._replace(denoiser_ids=placed.denoiser_ids % len(NAMES))


@pytest.mark.parametrize("spec", ["fsdp=1", "fsdp=4,tensor=2"])
def test_offloaded_inputs_of_layers_come_back_as_they_were(spec):
    """Updates are to the last bit those of inputs that stayed on the device."""
    mesh = make_mesh(spec, jax.devices()[: 8 if "tensor" in spec else 1])

    def updated(remat):
        _, _, (make_model, rule, step) = lowered(mesh, make_config(remat=remat))
        state = init_state(make_model, rule, mesh, seed=0)
        return jax.device_get(step(state, values_like(make_batch(mesh))))

    jax.tree.map(np.testing.assert_array_equal, updated("offload"), updated("full"))


def test_offloading_moves_each_layer_input_to_host_memory_once(mesh):
    """Looks before compiling: to a CPU, its memory and the host's are one."""

    def moves(remat):
        config = make_config(remat=remat)
        model = define_model(lambda *, rngs: EncoderDecoder(config, rngs=rngs))
        gradient = jax.grad(lambda params, batch: model.merge(params)(batch).sum())
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), make_batch(mesh)
        )
        program = str(jax.make_jaxpr(gradient)(model.abstract_params, batch))
        return program.count("MemorySpace.Host")

    assert moves("full") == 0
    assert moves("offload") == 2  # once for every layer of either stack


def _tpus(topology):
    """Returns the chips of a slice that nobody has, to compile for."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


@pytest.mark.slow
def test_offloaded_inputs_of_layers_take_no_memory_of_a_tpu():
    mesh, depth, width, rows = make_mesh("fsdp=4", _tpus("v5e:2x2")), 48, 256, 2048

    def memory(remat):
        sizes = {"embed_dim": width, "mlp_dim": 512, "dtype": "bfloat16"}
        layers = {"num_encoder_layers": depth, "num_decoder_layers": depth}
        config = make_config(remat=remat, **sizes, **layers)
        _, program, _ = lowered(mesh, config, rows=rows)
        return program.compile().memory_analysis()

    full, offload = map(memory, ("full", "offload"))
    layer_inputs = 2 * depth * rows // 4 * LENGTH * width * 2
    assert full.host_temp_size_in_bytes == 0
    assert offload.host_temp_size_in_bytes >= layer_inputs
    saved = full.temp_size_in_bytes - offload.temp_size_in_bytes
    assert saved > layer_inputs / 2
