"""Operations are those that XLA counts, where it counts right."""

import jax
import pytest
from planning_toys import make_config, make_model, make_shape

from ul2.planning.flops import step_flops
from ul2.sharding.mesh import make_mesh
from ul2.training.optimizers import adafactor
from ul2.training.schedules import constant
from ul2.training.state import abstract_state, define_model, with_shardings
from ul2.training.step import StepSettings, make_train_step

BOTH = ("encoder_decoder", "decoder_only")


def counted_by_xla(config, architecture, shape, loss_chunk):
    """Returns XLA's count of a step whose loops turn once."""
    mesh = make_mesh("auto", jax.devices()[:2])
    make = make_model(config, architecture)
    model, schedule = define_model(make), constant(0.01)
    optimizer = adafactor(schedule, model.param_axes)
    abstract, shardings = abstract_state(make, optimizer, mesh)
    step = make_train_step(
        model,
        optimizer,
        schedule,
        mesh,
        state_shardings=shardings,
        settings=StepSettings(
            seed=0,
            num_denoisers=shape.num_denoisers,
            microbatches=1,
            loss_normalizer="target_tokens",
            z_loss=0.0,
            loss_chunk=loss_chunk,
        ),
    )
    lowered = step.lower(with_shardings(abstract, shardings), shape.abstract(mesh))
    return lowered.cost_analysis()["flops"]


# Beside the products XLA counts softmax, norms and the optimizer: a few percent of so
# small a model, and never less than the products.
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("architecture", BOTH)
def test_operations_are_those_that_xla_counts(architecture, remat):
    config = make_config(architecture, remat=remat)
    shape = make_shape(architecture)
    flops = step_flops(config, shape, 128)
    counted = counted_by_xla(config, architecture, shape, 128)
    assert flops.total <= counted <= 1.06 * flops.total


@pytest.mark.parametrize(
    "changes", [{"num_kv_heads": 1}, {"gated": False}, {"mlp_dim": 1024}]
)
def test_every_size_counts(changes):
    shape, config = make_shape(), make_config(**changes)
    flops = step_flops(config, shape, 128)
    assert flops.total != step_flops(make_config(), shape, 128).total
    counted = counted_by_xla(config, "encoder_decoder", shape, 128)
    assert flops.total <= counted <= 1.06 * flops.total


def test_loops_count_as_often_as_they_turn():
    shape = make_shape()
    one = step_flops(make_config(), shape, 64)
    deep = step_flops(
        make_config(num_encoder_layers=5, num_decoder_layers=5), shape, 64
    )
    head = 2 * shape.rows * 64 * 256 * 1024
    assert deep.forward - head == 5 * (one.forward - head)
    # Two chunks of the loss hold as many columns as one.
    assert step_flops(make_config(), shape, 32).forward == one.forward
    # Three of 24 hold more than the row.
    assert step_flops(make_config(), shape, 24).forward == one.forward + head / 8


def test_backward_is_twice_the_forward_and_remat_is_apart():
    for remat in ("none", "dots", "full"):
        flops = step_flops(make_config(remat=remat), make_shape(), 64)
        assert flops.backward == 2 * flops.forward
        assert flops.model == 3 * flops.forward
    none, dots, full = (
        step_flops(make_config(remat=remat), make_shape(), 64).recompute
        for remat in ("none", "dots", "full")
    )
    assert none < dots < full < step_flops(make_config(), make_shape(), 64).forward
