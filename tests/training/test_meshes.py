"""The same training on every mesh of eight devices, and programs that split it."""

import functools
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

from ul2 import axes
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import AXES, make_mesh
from ul2.sharding.placement import place
from ul2.training.optimizers import adafactor
from ul2.training.schedules import constant
from ul2.training.state import (
    abstract_state,
    define_model,
    init_state,
    with_shardings,
)
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
    config = tiny_config(**{"vocab_size": 64, **fields, **changes})
    return lambda *, rngs: model(config, rngs=rngs)


def random_batch(architecture, seed):
    """Rows of two or three examples and some padding."""
    rng = np.random.default_rng(seed)

    def side():
        lengths = [
            rng.permutation([4, 5, 6])[: rng.integers(2, 4)] for _ in range(ROWS)
        ]
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
        state = jax.device_put(first_state(self.architecture), self.shardings)
        seen = []
        for index in range(updates):
            batch = place(random_batch(self.architecture, index), self.mesh)
            state, sums = self.step(state, batch)
            seen.append(jax.device_get((sums.loss, state.opt_state[0], state.params)))
        return seen

    def text(self):
        """Returns the compiled program of one device."""
        state = with_shardings(self.abstract, self.shardings)
        batch = place(random_batch(self.architecture, 0), self.mesh)
        return self.step.lower(state, batch).compile().as_text()


@functools.cache
def first_state(architecture):
    """Draws the numbers once: other tests say that every mesh draws the same."""
    program = Program(architecture, make_mesh("auto", jax.devices()[:1]))
    return jax.device_get(
        init_state(program.make_model, program.optimizer, program.mesh, seed=0)
    )


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


def gathered_stacks(program):
    """Returns the shapes that stacks of kernels have once `embed` is gathered."""
    leaves = jax.tree.leaves_with_path(program.abstract.params)
    names = jax.tree.leaves(
        program.model.param_axes, is_leaf=lambda n: isinstance(n, tuple)
    )
    kept = {axes.LAYERS: 1, axes.EMBED: 1}
    tensor = program.mesh.shape["tensor"]
    return {
        tuple(
            sorted(
                d // kept.get(n, tensor) for d, n in zip(leaf.shape, dims, strict=True)
            )
        )
        for (_, leaf), dims in zip(leaves, names, strict=True)
        if leaf.ndim == 3
    }


def shapes(text):
    """Returns the shape of every array of a program."""
    found = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
    return {tuple(map(int, dims.split(","))) for dims in found}


@pytest.mark.parametrize(
    ("spec", "architecture", "remat"),
    [
        ("fsdp=8", "encoder_decoder", "none"),
        ("fsdp=8", "decoder_only", "full"),
        ("fsdp=2,sequence=2,tensor=2", "encoder_decoder", "full"),
        ("fsdp=2,sequence=2,tensor=2", "decoder_only", "none"),
    ],
)
def test_no_device_ever_holds_a_whole_stack_or_all_logits(spec, architecture, remat):
    # Sizes that mean nothing else; three layers, for two are unrolled.
    depth = {"num_decoder_layers": 3}
    if architecture == "encoder_decoder":
        depth["num_encoder_layers"] = 5
    mesh = make_mesh(spec, jax.devices()[:8])
    program = Program(
        architecture,
        mesh,
        remat=remat,
        embed_dim=48,
        mlp_dim=176,
        vocab_size=1136,
        **depth,
    )
    found = {tuple(sorted(shape)) for shape in shapes(program.text())}
    assert not found & gathered_stacks(program)
    # The loss sees 8 of 16 columns at once, in parts of rows, columns or vocabulary.
    sizes = [
        math.prod(shape)
        for shape in found
        if any(dim % (1136 // mesh.shape["tensor"]) == 0 for dim in shape)
    ]
    table = 1136 * 48 // mesh.shape["tensor"]
    logits = ROWS * COLUMNS * 1136
    assert sizes and max(sizes) <= max(table, logits // 2 // 8)


def test_parameters_and_optimizer_of_20b_are_split_evenly():
    config = {
        "vocab_size": 32128, "embed_dim": 4096, "head_dim": 256, "mlp_dim": 16384,
        "num_heads": 16, "num_encoder_layers": 32, "num_decoder_layers": 32,
    }  # fmt: skip
    for spec in ("fsdp=8", "fsdp=4,tensor=2", "fsdp=2,sequence=2,tensor=2", "tensor=8"):
        make = make_model("encoder_decoder", **config)
        mesh = make_mesh(spec, jax.devices()[:8])
        optimizer = adafactor(constant(0.01), define_model(make).param_axes)
        abstract, shardings = abstract_state(make, optimizer, mesh)
        leaves = jax.tree.leaves(abstract.params)
        total = sum(math.prod(leaf.shape) for leaf in leaves)
        assert total == 19_459_613_696
        here = sum(
            math.prod(sharding.shard_shape(leaf.shape))
            for leaf, sharding in zip(
                leaves, jax.tree.leaves(shardings.params), strict=True
            )
        )
        assert here / (total / 8) < 1.001
        state = sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.opt_state)
        )
        assert state / total < 0.001
