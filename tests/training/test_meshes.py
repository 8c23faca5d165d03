"""The same training on every mesh of eight devices, and programs that split it."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_fixtures import make_batch, pack_examples, tiny_config
from tolerances import GRADIENT_ATOL, REORDERED_SUM_RTOL

from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import AXES, make_mesh
from ul2.sharding.placement import place
from ul2.training.optimizers import adafactor
from ul2.training.schedules import constant
from ul2.training.state import abstract_state, define_model, init_state
from ul2.training.step import StepSettings, make_train_step

ROWS, COLUMNS = 8, 16
# All ways to write 8 as data x fsdp x sequence x tensor.
MESHES = [
    ",".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    for sizes in itertools.product((1, 2, 4, 8), repeat=len(AXES))
    if math.prod(sizes) == 8
]
MODELS = {
    "encoder_decoder": (EncoderDecoder, {"num_heads": 8, "tied_embeddings": True}),
    # Two key heads are less than `tensor` may be.
    "decoder_only": (
        DecoderOnly,
        {"num_encoder_layers": 0, "num_heads": 8, "num_kv_heads": 2,
         "positions": "rope"},
    ),
}  # fmt: skip


def make_model(architecture, **changes):
    model, fields = MODELS[architecture]
    config = tiny_config(**{"vocab_size": 64, "remat": "full", **fields, **changes})
    return lambda *, rngs: model(config, rngs=rngs)


def random_batch(architecture, seed):
    """Rows of two or three examples and some padding."""
    rng = np.random.default_rng(seed)

    def side():
        lengths = [rng.permutation([4, 5, 6])[: rng.integers(2, 4)] for _ in range(ROWS)]
        rows = [[rng.integers(3, 60, n).tolist() for n in row] for row in lengths]
        return pack_examples(rows, COLUMNS, num_examples=3, length=6)

    prefixes = rng.integers(0, 4, (ROWS, 3))
    if architecture == "decoder_only":
        return make_batch(None, side(), prefix_lengths=prefixes)
    return make_batch(side(), side())


def keeping_gradients(schedule, param_axes):
    """Adafactor that shows what it was given."""
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )
    rule = adafactor(schedule, param_axes, min_dim_size_to_factor=4)
    return optax.chain(keep, rule)


class Program:
    """The train step of one model on one mesh."""

    def __init__(self, architecture, mesh, **changes):
        self.architecture, self.mesh = architecture, mesh
        self.make_model = make_model(architecture, **changes)
        self.model = define_model(self.make_model)
        schedule = constant(0.01)
        self.optimizer = keeping_gradients(schedule, self.model.param_axes)
        self.abstract, self.shardings = abstract_state(
            self.make_model, self.optimizer, mesh
        )
        self.step = make_train_step(
            self.model, self.optimizer, schedule, mesh,
            state_shardings=self.shardings,
            settings=StepSettings(0, 1, 1, "target_tokens", 1e-4, 8),
        )  # fmt: skip

    def run(self, updates=3):
        """Returns losses, gradients and parameters after each update."""
        state = init_state(self.make_model, self.optimizer, self.mesh, seed=0)
        seen = []
        for index in range(updates):
            batch = place(random_batch(self.architecture, index), self.mesh)
            state, sums = self.step(state, batch)
            seen.append(jax.device_get((sums.loss, state.opt_state[0], state.params)))
        return seen

    def text(self):
        """Returns the compiled program of one device."""
        state = init_state(self.make_model, self.optimizer, self.mesh, seed=0)
        batch = place(random_batch(self.architecture, 0), self.mesh)
        return self.step.lower(state, batch).compile().as_text()


@pytest.fixture(scope="module")
def alone():
    one = make_mesh("auto", jax.devices()[:1])
    return {architecture: Program(architecture, one).run() for architecture in MODELS}


def close(found, expected):
    """To a share of the greatest entry: small ones are differences of large ones."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=GRADIENT_ATOL * np.abs(b).max())


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("spec", MESHES)
def test_three_updates_are_those_of_one_device(spec, architecture, alone):
    found = Program(architecture, make_mesh(spec, jax.devices()[:8])).run()
    for (loss, *arrays), (expected_loss, *expected) in zip(
        found, alone[architecture], strict=True
    ):
        np.testing.assert_allclose(loss, expected_loss, rtol=REORDERED_SUM_RTOL)
        close(arrays, expected)


def shapes(text):
    """Returns the shape of every array of a program."""
    found = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return {tuple(map(int, dims.split(","))) for dims in found}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(
    "spec", ["fsdp=8", "fsdp=4,tensor=2", "tensor=8", "data=2,fsdp=2,sequence=2"]
)
def test_no_device_ever_holds_a_whole_stack_or_all_logits(spec, architecture):
    # Sizes that occur nowhere else; 56 columns in chunks of 8.
    program = Program(
        architecture,
        make_mesh(spec, jax.devices()[:8]),
        embed_dim=48, mlp_dim=176, head_dim=24, vocab_size=1136, num_decoder_layers=3,
        num_kv_heads=None, **({"num_encoder_layers": 5} if architecture != "decoder_only" else {}),
    )  # fmt: skip
    found = shapes(program.text())
    whole = {
        leaf.shape
        for leaf, sharding in zip(
            jax.tree.leaves(program.abstract.params),
            jax.tree.leaves(program.shardings.params),
            strict=True,
        )
        if not sharding.is_fully_replicated and leaf.ndim == 3
    }
    assert whole and not {tuple(sorted(s)) for s in whole} & {
        tuple(sorted(s)) for s in found
    }
    logits = ROWS * COLUMNS * 1136 // 8
    with_vocabulary = [s for s in found if any(d % 142 == 0 for d in s)]
    assert with_vocabulary
    assert max(map(math.prod, with_vocabulary)) <= max(logits // 2 * 8, 48 * 1136)
