"""Parameters in bfloat16: how they are rounded, trained, saved and taken over."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from model_fixtures import make_batch as model_batch
from model_fixtures import pack_examples, tiny_config
from training_toys import NAMES, ToyBatches, ToyModel, make_settings, run_train
from training_toys import make_batch as toy_batch

from ul2 import axes
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES, named_shardings
from ul2.training import precision
from ul2.training.checkpoints import opt_state_shapes, read_opt_state, read_params
from ul2.training.optimizers import adafactor, adamw
from ul2.training.origin import of_run
from ul2.training.schedules import constant
from ul2.training.state import (
    TrainState,
    abstract_state,
    define_model,
    init_state,
    with_shardings,
)
from ul2.training.step import StepSettings, accumulate, make_train_step

BFLOAT16 = ml_dtypes.bfloat16
# Half of the way to a neighbour is at least 2**-9 of a number: smaller updates of it
# are lost. Adafactor's rate is a part of the weights' size, which is about 1/4 here.
SMALL_RATES = {adafactor: 2**-12, adamw: 2**-13}
SETTINGS = StepSettings(0, len(NAMES), 1, "target_tokens", 0.0, 5)


def random_floats(count, seed=0):
    """Any finite float32 numbers at all: subnormals and the largest among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    numbers = bits.view(np.float32)
    return numbers[np.isfinite(numbers)]


def neighbours(x):
    """Returns the bfloat16 numbers around each float32 number, nearer to 0 first."""
    lower = (x.view(np.uint32) >> 16).astype(np.uint16)
    is_exact = (x.view(np.uint32) & 0xFFFF) == 0
    is_last = (lower & 0x7FFF) == 0x7F7F
    upper = lower + np.where(is_exact | is_last, 0, 1).astype(np.uint16)
    return lower.view(BFLOAT16), upper.view(BFLOAT16)


def test_stochastic_rounding_goes_up_as_often_as_the_number_is_near_the_upper():
    draws = 40_000
    for index, x in enumerate(
        np.float32([0.3, -0.3, 1.0001, -255.01, 3e-39, -1e-40, 2.5e38])
    ):
        rounded = precision.stochastic_round(jnp.full(draws, x), jax.random.key(index))
        lower, upper = neighbours(np.float32([x]))
        chance = float(np.uint32(x.view(np.uint32)) & 0xFFFF) / 0x10000
        share = np.mean(np.asarray(rounded) == upper[0])
        assert np.all((np.asarray(rounded) == upper[0]) | (rounded == lower[0]))
        deviation = np.sqrt(chance * (1 - chance) / draws)
        assert abs(share - chance) < 4.5 * deviation
        mean = np.mean(np.asarray(rounded, np.float64))
        spacing = abs(float(upper[0]) - float(lower[0]))
        assert abs(mean - float(x)) < 4.5 * deviation * spacing


def test_stochastic_rounding_never_leaves_the_neighbours():
    x = random_floats(200_000)
    rounded = np.asarray(precision.stochastic_round(jnp.asarray(x), jax.random.key(1)))
    lower, upper = neighbours(x)
    bits, low, up = (a.view(np.uint16) for a in (rounded, lower, upper))
    assert np.all((bits == low) | (bits == up))
    # The dropped bits are any, so one of the two is as likely as the other.
    assert 0.4 < np.mean((bits == up)[low != up]) < 0.6


def test_stochastic_rounding_keeps_every_bfloat16_number():
    every = np.arange(2**16, dtype=np.uint16).view(BFLOAT16)
    rounded = precision.stochastic_round(
        jnp.asarray(every.astype(np.float32)), jax.random.key(2)
    )
    is_number = ~np.isnan(every.astype(np.float32))
    np.testing.assert_array_equal(
        np.asarray(rounded).view(np.uint16)[is_number], every.view(np.uint16)[is_number]
    )
    assert np.all(np.isnan(np.asarray(rounded, np.float32)[~is_number]))
    odd_nans = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
    rounded = precision.stochastic_round(
        jnp.asarray(odd_nans.view(np.float32)), jax.random.key(3)
    )
    assert np.all(np.isnan(np.asarray(rounded, np.float32)))


def test_finite_numbers_stay_finite():
    largest = np.finfo(np.float32).max
    x = jnp.asarray([largest, -largest] * 1000, jnp.float32)
    rounded = np.asarray(precision.stochastic_round(x, jax.random.key(4)), np.float32)
    limit = np.float32(ml_dtypes.finfo(BFLOAT16).max)
    np.testing.assert_array_equal(rounded, [limit, -limit] * 1000)


def make_toy(param_dtype, rounding="stochastic", optimizer=adafactor):
    """Returns `make_model` and the optimizer of a run with such parameters."""
    if param_dtype == "float32":
        return ToyModel, optimizer
    return (
        precision.in_bfloat16(ToyModel),
        precision.rounded(optimizer, rounding, seed=0),
    )


class Trainer:
    """A toy, one mesh, and what its updates made of it."""

    def __init__(self, mesh, make_model, optimizer, rate=0.01):
        self.mesh = mesh
        self.model = define_model(make_model)
        transform = optimizer(constant(rate), self.model.param_axes)
        self.state = init_state(make_model, transform, mesh, seed=0)
        _, shardings = abstract_state(make_model, transform, mesh)
        self.shardings = shardings
        self.step = make_train_step(
            self.model,
            transform,
            constant(rate),
            mesh,
            state_shardings=shardings,
            settings=SETTINGS,
        )

    def losses(self, updates):
        batch = place(toy_batch(), self.mesh)
        losses = []
        for _ in range(updates):
            self.state, sums = self.step(self.state, batch)
            losses.append(sums.loss.sum() / sums.tokens.sum())
        return np.asarray(losses)


def to_nearest(optimizer):
    """Returns an optimizer that rounds each update of the parameters to nearest."""

    def make(schedule, param_axes):
        inner = optimizer(schedule, param_axes)

        def update(grads, state, params):
            weights = precision.in_float32(params)
            changes, state = inner.update(grads, state, weights)
            weights = optax.apply_updates(weights, changes)
            nearest = jax.tree.map(precision.round_to_nearest, weights)
            return precision.NewParams(nearest), state

        init = lambda params: inner.init(precision.in_float32(params))  # noqa: E731
        return optax.GradientTransformation(init, update)

    return make


@pytest.mark.parametrize("optimizer", [adafactor, adamw])
def test_small_updates_train_unless_each_is_rounded_to_nearest(one_device, optimizer):
    updates = 400
    train = functools.partial(Trainer, one_device, rate=SMALL_RATES[optimizer])
    first, *_, exact = train(ToyModel, optimizer).losses(updates)
    for rounding, margin in (("stochastic", 0.01), ("master", 0.001)):
        *_, last = train(*make_toy("bfloat16", rounding, optimizer)).losses(updates)
        assert abs(last - exact) < margin * (first - exact)
    plain = train(precision.in_bfloat16(ToyModel), to_nearest(optimizer))
    *_, stalled = plain.losses(updates)
    assert stalled - exact > 0.6 * (first - exact)


@pytest.mark.parametrize("spec", ["data=8", "fsdp=8", "fsdp=2,tensor=4"])
@pytest.mark.parametrize("rounding", precision.ROUNDINGS)
def test_rounding_is_the_same_on_every_mesh_and_moves_nothing(spec, rounding):
    """The weights are given, so nothing but what is drawn could differ."""
    names = {
        "up": (axes.LAYERS, axes.EMBED, axes.MLP),
        "table": (axes.VOCAB, axes.EMBED),
    }
    rng = np.random.default_rng(0)
    shapes = {"up": (3, 16, 32), "table": (64, 16)}
    weights = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}
    grads = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}

    def plain(schedule, param_axes):
        return optax.chain(optax.scale(-0.01))

    rule = precision.rounded(plain, rounding, seed=3)(constant(0.01), names)
    params = jax.tree.map(precision.round_to_nearest, weights)

    @jax.jit
    def update(grads, state, params):
        updates, state = rule.update(grads, state, params)
        return precision.apply_updates(params, updates), state

    whole = update(grads, rule.init(params), params)[0]
    mesh = make_mesh(spec, jax.devices()[:8])
    shardings = named_shardings(weights, names, mesh)
    split = jax.tree.map(jax.device_put, (grads, params), (shardings, shardings))
    state = rule.init(split[1])
    compiled = update.lower(split[0], state, split[1]).compile()
    ours = compiled(split[0], state, split[1])[0]
    jax.tree.map(np.testing.assert_array_equal, ours, whole)
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    again = update(grads, (*rule.init(params)[:-1], _later(rule, params)), params)[0]
    is_chance = rounding == "stochastic"
    assert np.array_equal(again["up"], whole["up"]) != is_chance


def _later(rule, params):
    """Returns the last link as it is one update later."""
    last = rule.init(params)[-1]
    if isinstance(last, precision.StochasticState):
        return precision.StochasticState(last.rounded_updates + 1)
    return last


def test_master_is_the_float32_trajectory_of_weights_used_in_bfloat16(one_device):
    """An optimizer by hand keeps float32 and hands a cast of it to the model."""
    ours = Trainer(one_device, *make_toy("bfloat16", "master"), rate=0.01)
    weights = precision.in_float32(ours.state.params)
    rule = adafactor(constant(0.01), ours.model.param_axes)
    state, batch = rule.init(weights), place(toy_batch(), one_device)

    @jax.jit
    def gradients(params):
        grads, sums = accumulate(
            ours.model, params, batch, jax.random.key(0), one_device, DEFAULT_RULES,
            SETTINGS,
        )  # fmt: skip
        grads = precision.in_float32(grads)
        return jax.tree.map(lambda grad: grad / sums.weights, grads)

    @jax.jit
    def update(grads, state, weights):
        changes, state = rule.update(grads, state, weights)
        return optax.apply_updates(weights, changes), state

    for _ in range(5):
        cast = jax.tree.map(precision.round_to_nearest, weights)
        weights, state = update(gradients(cast), state, weights)
        ours.losses(1)
        master = ours.state.opt_state[-1].master
        jax.tree.map(np.testing.assert_array_equal, master, weights)
        jax.tree.map(
            np.testing.assert_array_equal,
            ours.state.params,
            jax.tree.map(precision.round_to_nearest, master),
        )


def test_gradients_of_tables_are_summed_in_float32(one_device):
    config = tiny_config(dtype="bfloat16", tied_embeddings=True)
    rows = [[[5, 6, 7, 1], [8, 9, 1]], [[6, 6, 5, 5, 1], [7, 1]]]
    packed = pack_examples(rows, 8)
    batch = model_batch(packed, packed)

    def gradients(make_model):
        model = define_model(make_model)
        params = precision.in_bfloat16(
            lambda *, rngs: EncoderDecoder(config, rngs=rngs)
        )
        values = init_state(params, optax.identity(), one_device, seed=0).params
        values = jax.tree.map(
            lambda value, like: value.astype(like.dtype), values, model.abstract_params
        )
        settings = SETTINGS._replace(loss_chunk=1)
        summed = jax.jit(
            lambda values, batch, key: accumulate(
                model, values, batch, key, one_device, DEFAULT_RULES, settings
            )[0]
        )
        return summed(values, batch, jax.random.key(0))

    make = lambda *, rngs: EncoderDecoder(config, rngs=rngs)  # noqa: E731
    exact, ours = gradients(make), gradients(precision.in_bfloat16(make))
    table = ours["embedder"]["embedding"]
    assert table.dtype == jnp.float32
    np.testing.assert_allclose(
        table, exact["embedder"]["embedding"], rtol=1e-6, atol=1e-6
    )
    layer = ours["decoder"]["layers"]["mlp"]["wo"]
    assert layer.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        layer.astype(jnp.float32), exact["decoder"]["layers"]["mlp"]["wo"]
    )


def test_microbatches_are_summed_in_float32(one_device):
    model = define_model(precision.in_bfloat16(ToyModel))
    params = init_state(
        precision.in_bfloat16(ToyModel), optax.identity(), one_device, seed=0
    ).params
    settings = SETTINGS._replace(microbatches=4)
    grads, _ = accumulate(
        model, params, toy_batch(), jax.random.key(0), one_device, DEFAULT_RULES,
        settings,
    )  # fmt: skip
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_parameters_take_half_the_bytes_and_the_master_is_split_like_them():
    mesh = make_mesh("fsdp=4,tensor=2", jax.devices()[:8])
    exact = Trainer(mesh, *make_toy("float32"))
    half = Trainer(mesh, *make_toy("bfloat16"))
    nbytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert nbytes(half.state.params) * 2 == nbytes(exact.state.params)
    assert nbytes(half.state.opt_state) == nbytes(exact.state.opt_state) + 4
    kept = Trainer(mesh, *make_toy("bfloat16", "master"))
    assert kept.shardings.opt_state[-1].master == kept.shardings.params
    assert any(
        not leaf.sharding.is_fully_replicated
        for leaf in jax.tree.leaves(kept.state.opt_state[-1].master)
    )


class StoppedError(Exception):
    """The machine went away."""


def batches_until(stop):
    def on_next(index):
        if index == stop:
            raise StoppedError

    return ToyBatches(on_next=on_next)


def run_toy(path, param_dtype, rounding="stochastic", **changes):
    make_model, optimizer = make_toy(param_dtype, rounding)
    return run_train(path, make_model=make_model, optimizer=optimizer, **changes)


def saved(path, param_dtype="bfloat16", step=6):
    """Returns the parameters of a run as they lie on disk."""
    make_model, optimizer = make_toy(param_dtype)
    rule = optimizer(constant(0.01), define_model(make_model).param_axes)
    mesh = make_mesh("auto", jax.devices()[:1])
    wanted = with_shardings(*abstract_state(make_model, rule, mesh)).params
    return jax.device_get(read_params(path, wanted, step))


def master_of(path, step=6):
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.float32,
            sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        ),
        define_model(ToyModel).abstract_params,
    )
    return jax.device_get(read_opt_state(path, wanted, step, within="2.master"))


@pytest.mark.parametrize("rounding", precision.ROUNDINGS)
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, rounding):
    run_toy(tmp_path / "whole", "bfloat16", rounding)
    with pytest.raises(StoppedError):
        run_toy(tmp_path / "parts", "bfloat16", rounding, batches=batches_until(4))
    run_toy(tmp_path / "parts", "bfloat16", rounding)
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert (parts / "metrics.jsonl").read_text() == (
        whole / "metrics.jsonl"
    ).read_text()
    jax.tree.map(np.testing.assert_array_equal, saved(parts), saved(whole))
    if rounding == "master":
        jax.tree.map(np.testing.assert_array_equal, master_of(parts), master_of(whole))


@pytest.mark.parametrize("keep", [False, True])
def test_runs_of_one_dtype_start_from_runs_of_the_other(tmp_path, keep):
    settings = make_settings(total_steps=1, save_every_steps=1)
    start = functools.partial(
        run_toy, settings=settings, keep_optimizer=keep, schedule=constant(0.0)
    )
    run_toy(tmp_path / "exact", "float32")
    exact = saved(tmp_path / "exact", "float32")
    nearest = jax.tree.map(lambda leaf: leaf.astype(BFLOAT16), exact)
    for rounding in precision.ROUNDINGS:
        path = tmp_path / rounding
        start(path, "bfloat16", rounding, origin=of_run(tmp_path / "exact"))
        jax.tree.map(np.testing.assert_array_equal, saved(path, step=1), nearest)
    # Nothing was lost on the way: the copy has all bits, and gives them back.
    master = tmp_path / "master"
    jax.tree.map(np.testing.assert_array_equal, master_of(master, step=1), exact)
    start(tmp_path / "back", "float32", origin=of_run(master))
    back = saved(tmp_path / "back", "float32", step=1)
    jax.tree.map(np.testing.assert_array_equal, back, exact)
    names = opt_state_shapes(tmp_path / "back", 1)
    assert not any("master" in name for name in names)
    start(tmp_path / "again", "bfloat16", "master", origin=of_run(master))
    jax.tree.map(
        np.testing.assert_array_equal, master_of(tmp_path / "again", step=1), exact
    )
    if keep:
        contract = json.loads(
            (tmp_path / "again/checkpoints/1/contract/metadata").read_text()
        )
        assert contract["prior_steps"] == 6 + 1


def test_unknown_dtypes_and_roundings_name_their_knobs():
    with pytest.raises(
        ValueError,
        match=r"'float16' is not one of float32, bfloat16 .*; set PARAM_DTYPE",
    ):
        precision.check("float16", "master")
    with pytest.raises(
        ValueError, match=r"'nearest'.*stochastic, master; set ROUNDING"
    ):
        precision.check("bfloat16", "nearest")


def test_rounding_of_nothing_leaves_any_optimizer_as_it_was():
    params = {"w": jnp.ones(3)}
    state = TrainState(0, params, (optax.EmptyState(), optax.EmptyState()))
    assert precision.split_state(state.opt_state) == (state.opt_state, ())
    assert precision.split_state(optax.EmptyState()) == (optax.EmptyState(), ())
    new = precision.apply_updates(params, {"w": jnp.full(3, 0.5)})
    np.testing.assert_array_equal(new["w"], np.full(3, 1.5))
