"""Five steps of T5X's own trainer, repeated by ours.

`goldens/adafactor_t5x.npz` was written by T5X (commit cc342d4): the parameters before
the first step and five batches, and for three settings of its Adafactor the loss
before each update and every 37th element of each parameter after the last. T5X ran
its unscanned model; ours is scanned, so layers must train as separate matrices.

`goldens/adafactor_t5x_scanned.npz` is the same of T5X's scanned model, from the state
after three updates on: here a run is taken over in the middle.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_batches import GOLDENS, read_batch_at
from model_fixtures import t5x_names, tiny_config
from tolerances import T5X_LOSS_RTOL, T5X_PARAMS_ATOL
from training_toys import make_vocab

from ul2.interop.model import param_shapes
from ul2.interop.t5x_moments import read_moments
from ul2.interop.t5x_names import place
from ul2.interop.t5x_sizes import find_layout
from ul2.interop.tensors import from_array
from ul2.models import architectures
from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import Contract
from ul2.training.optimizers import adafactor
from ul2.training.origin import of_arrays
from ul2.training.schedules import constant
from ul2.training.state import (
    abstract_state,
    define_model,
    init_state,
    state_of,
    with_shardings,
)
from ul2.training.step import StepSettings, make_train_step

GOLDEN = GOLDENS / "adafactor_t5x.npz"
CONFIG = tiny_config()
make_model = architectures.make_model("encoder_decoder", CONFIG)
VARIANTS = {
    "default": {"unscaled_params": ()},
    "factored": {"unscaled_params": (), "min_dim_size_to_factor": 16},
    "ul2": {},
}


def names_of(path):
    """Returns T5X's name of a parameter, or one name per layer of a stack."""
    return list(t5x_names(tuple(key.key for key in path), "encoder_decoder"))


def make_step(make_model, optimizer, mesh):
    _, shardings = abstract_state(make_model, optimizer, mesh)
    settings = StepSettings(
        seed=0,
        num_denoisers=1,
        microbatches=1,
        loss_normalizer="sum",
        z_loss=1e-4,
        loss_chunk=5,
    )
    return make_train_step(
        define_model(make_model),
        optimizer,
        constant(0.01),
        mesh,
        state_shardings=shardings,
        settings=settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_adafactor_repeats_the_trajectory_of_t5x(variant):
    golden = np.load(GOLDEN)
    mesh = make_mesh("auto", jax.devices()[:1])
    model = define_model(make_model)
    optimizer = adafactor(constant(0.01), model.param_axes, **VARIANTS[variant])
    step = make_step(make_model, optimizer, mesh)

    def read_param(path, leaf):
        arrays = [golden[f"initial/{name}"] for name in names_of(path)]
        return jnp.stack(arrays).reshape(leaf.shape)

    params = jax.tree.map_with_path(read_param, model.abstract_params)
    state = init_state(make_model, optimizer, mesh, seed=0)._replace(params=params)
    losses = []
    for index in (0, 1, 2, 3, 4, 0):
        if index == 0 and losses:
            final = jax.device_get(state.params)
        state, sums = step(state, read_batch_at(golden, f"batch{index}/"))
        losses.append(float(sums.loss[0] + sums.z_loss))

    expected = [*golden[f"{variant}/loss"], golden[f"{variant}/loss_after_on_batch0"]]
    np.testing.assert_allclose(losses, expected, rtol=T5X_LOSS_RTOL)
    for path, leaf in jax.tree.leaves_with_path(final):
        names = names_of(path)
        for name, array in zip(names, leaf.reshape(len(names), -1), strict=True):
            np.testing.assert_allclose(
                array[::37],
                golden[f"{variant}/final/{name}"],
                rtol=0,
                atol=T5X_PARAMS_ATOL,
                err_msg=name,
            )


SCANNED = dataclasses.replace(CONFIG, relative_bias="per_layer")


def open_scanned(golden):
    """Returns T5X's scanned model after three updates as what a run starts from."""
    before = np.load(GOLDENS / "t5x_scanned.npz")
    theirs = {name: before[name] for name in before.files if name.startswith("param/")}
    theirs |= {name: golden[name] for name in golden.files if "/" in name}
    # Rows that no batch reads: they count for nothing but the table's RMS, and v.
    for name, rest in (("param", golden["rms_of_other_rows"]), ("state", 0)):
        name = f"{name}/token_embedder/embedding" + ("/v" if name == "state" else "")
        table = np.full((512, 32), rest, np.float32)
        table[golden["rows"]] = golden[name]
        theirs[name] = table
    tensors = {name: from_array(name, array) for name, array in theirs.items()}
    params, states = (
        {
            name.removeprefix(kind): tensor
            for name, tensor in tensors.items()
            if name.startswith(kind)
        }
        for kind in ("param/", "state/")
    )
    for name, slot in itertools.product(params, ("v", "v_row", "v_col")):
        unused = from_array(name, np.zeros(1, np.float32))
        states.setdefault(f"{name}/{slot}", unused)
    layout = find_layout({name: tensor.shape for name, tensor in params.items()})
    shapes = param_shapes("encoder_decoder", SCANNED)
    places = [place(path, SCANNED, layout) for path in shapes]
    contract = Contract(
        step=0,
        data_position=None,
        vocab=make_vocab(padded_size=512),
        config_text="",
        mixture=None,
        model=architectures.to_json("encoder_decoder", SCANNED),
        prior_steps=3,
    )
    return places, of_arrays(
        GOLDENS,
        contract,
        {one.path: one.to_ours(params) for one in places},
        read_moments(places, shapes, states, 3),
        tokenizer=None,
    )


@pytest.mark.slow
def test_adafactor_goes_on_where_t5x_stopped_in_its_scanned_model():
    golden, batches = np.load(GOLDENS / "adafactor_t5x_scanned.npz"), np.load(GOLDEN)
    places, origin = open_scanned(golden)
    mesh = make_mesh("fsdp=2", jax.devices()[:2])
    make_scanned = architectures.make_model("encoder_decoder", SCANNED)
    param_axes = define_model(make_scanned).param_axes
    settings = {"unscaled_params": ()}

    small = adafactor(constant(0.01), param_axes, **settings)
    abstract, _ = abstract_state(make_scanned, small, mesh)
    with pytest.raises(ValueError, match=r"\[2, 32\], not \[2, 1\].*FACTOR_STACKED"):
        origin.check_optimizer(abstract.opt_state)

    optimizer = adafactor(
        constant(0.01), param_axes, factor_stacked="always", **settings
    )
    abstract, shardings = abstract_state(make_scanned, optimizer, mesh)
    wanted = with_shardings(abstract, shardings)
    origin.check_optimizer(abstract.opt_state)
    opt_state = origin.read_opt_state(wanted)
    assert (int(opt_state[0].step), int(opt_state[1].count)) == (3, 3)
    state = state_of(origin.read_params(wanted.params), opt_state, optimizer, wanted)
    step = make_step(make_scanned, optimizer, mesh)
    losses = []
    for index in (3, 4):
        state, sums = step(state, read_batch_at(batches, f"batch{index}/"))
        losses.append(float(sums.loss[0] + sums.z_loss))
    np.testing.assert_allclose(losses, golden["loss"], rtol=T5X_LOSS_RTOL)

    flat = traverse_util.flatten_dict(jax.device_get(state.params), sep=".")
    for one in places:
        theirs = one.to_theirs(from_array(one.path, flat[one.path]))
        (name,) = theirs
        final = theirs[name].read()
        if name == "token_embedder/embedding":
            final = final[golden["rows"]]
        np.testing.assert_allclose(
            final.ravel()[::37],
            golden[f"final/{name}"],
            rtol=0,
            atol=T5X_PARAMS_ATOL,
            err_msg=name,
        )
