import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ul2.axes import EMBED, MLP
from ul2.models.constraints import keep_what_is_computed
from ul2.models.parallel_projection import (
    gather,
    gather_and_project,
    project_and_scatter,
)
from ul2.models.parameters import DENSE_INIT, make_parameter
from ul2.planning.collectives import collectives
from ul2.planning.hlo import Module
from ul2.sharding.mesh import make_mesh
from ul2.sharding.rules import logical_axes

ROWS, WIDTH, HIDDEN = 4, 8, 16
MESHES = ["fsdp=2,sequence=2,tensor=2", "data=2,tensor=4", "fsdp=4,tensor=2"]


class Sublayer(nnx.Module):
    """Two kernels in, one out: what a feed-forward sublayer is."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        into, out = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
        self.gate = make_parameter(DENSE_INIT, into, (EMBED, MLP), rngs=rngs)
        self.up = make_parameter(DENSE_INIT, into, (EMBED, MLP), rngs=rngs)
        self.down = make_parameter(DENSE_INIT, out, (MLP, EMBED), rngs=rngs)

    def __call__(self, x):
        gate, up = gather_and_project(x, self.gate, self.up)
        return project_and_scatter(jnp.tanh(gate) * up, self.down)


def make_function(*, read_often=False, policy=None):
    """Returns parameters and [B, T, D] to a loss and its gradients, and parameters."""
    graphdef, parameters = nnx.split(Sublayer())

    def run(parameters, x):
        source = gather(x) if read_often else x
        return nnx.merge(graphdef, parameters)(source)

    if policy is not None:
        run = jax.checkpoint(run, policy=policy)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def function(parameters, x):
        return jnp.sum(jnp.sin(run(parameters, x)))

    return function, parameters


def make_input(length):
    return jax.random.normal(jax.random.key(1), (ROWS, length, WIDTH))


# Columns that all axes divide, only some, and none.
@pytest.mark.parametrize("length", [8, 6, 3])
@pytest.mark.parametrize("read_often", [False, True])
@pytest.mark.parametrize("mesh", MESHES)
def test_split_or_whole_the_result_is_the_same(mesh, read_often, length):
    function, parameters = make_function(read_often=read_often)
    whole = function(parameters, make_input(length))
    with logical_axes(make_mesh(mesh, jax.devices()[:8])):
        split = function(parameters, make_input(length))
    for ours, theirs in zip(
        jax.tree.leaves(split), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_columns_are_scattered_and_never_summed_on_every_device(mesh):
    function, parameters = make_function()
    devices = make_mesh(mesh, jax.devices()[:8])
    with logical_axes(devices):
        compiled = function.lower(parameters, make_input(8)).compile()
    sent = collectives(Module(compiled.as_text()), devices)
    over_tensor = {one.kind: one for one in sent if one.axes == ("tensor",)}
    # In and out, and the same the other way back.
    assert over_tensor["all-gather"].count == 2
    assert over_tensor["reduce-scatter"].count == 2
    loss = over_tensor.pop("all-reduce", None)
    assert loss is None or loss.sent_bytes < 8
    assert set(over_tensor) == {"all-gather", "reduce-scatter"}


def test_the_backward_pass_gathers_anew():
    gathers = []
    for policy in (None, keep_what_is_computed):
        function, parameters = make_function(policy=policy)
        with logical_axes(make_mesh(MESHES[0], jax.devices()[:8])):
            program = function.lower(parameters, make_input(8)).as_text()
        gathers.append(program.count("stablehlo.all_gather"))
    assert gathers == [2, 3]
