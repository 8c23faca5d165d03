"""Decoding on a mesh: the tokens of one device, and nothing is held whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import tiny_model
from tolerances import REORDERED_SUM_RTOL
from vocab_toys import toy_vocab

from ul2.batch import Batch, one_per_row
from ul2.decoding import programs
from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings
from ul2.sharding.mesh import make_mesh
from ul2.sharding.rules import logical_axes, named_shardings

VOCAB = toy_vocab(500, 512)
MESH = "data=2,fsdp=2,tensor=2"
PROGRAMS = (programs.begin, programs.insert, programs.go_on, programs.collect)
CHOICES = (
    {},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "num_decodes": 2},
    {"num_beams": 3, "num_decodes": 3},
)


def on_mesh(model, mesh):
    """Splits the parameters as in training."""
    graphdef, state = nnx.split(model)
    names = nnx.get_partition_spec(state)
    shardings = named_shardings(state, jax.tree.map(tuple, names), mesh)
    return nnx.merge(graphdef, jax.device_put(state, shardings))


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_outputs_on_a_mesh_are_those_of_one_device(architecture):
    model = tiny_model(architecture, num_kv_heads=2)
    mesh = make_mesh(MESH)
    rng = np.random.default_rng(0)
    # More than there are rows: some begin where others ended.
    inputs = [rng.integers(3, 500, n).tolist() for n in (5, 7, 3, 6, 4, 5, 2, 7, 6, 7)]
    rooms = [6, 2, 3, 2, 6, 2, 4, 2, 6, 3]
    alone = Generator(model, VOCAB, batch_size=8)
    split = Generator(on_mesh(model, mesh), VOCAB, batch_size=8, mesh=mesh)
    for choices in CHOICES:
        settings = DecodingSettings(max_tokens=6, **choices)
        want = alone.generate(inputs, settings, max_tokens=rooms)
        before = [program._cache_size() for program in PROGRAMS]
        found = split.generate(inputs, settings, max_tokens=rooms)
        # Every program finds the state where it was compiled for.
        compiled = [program._cache_size() for program in PROGRAMS]
        assert compiled == [size + 1 for size in before]
        assert [[one.ids for one in row] for row in found] == [
            [one.ids for one in row] for row in want
        ]
        scores = [
            [[one.score for one in row] for row in rows] for rows in (found, want)
        ]
        np.testing.assert_allclose(*scores, rtol=REORDERED_SUM_RTOL)


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_layers_that_are_cut_apart_are_split_like_their_stack(architecture):
    mesh = make_mesh(MESH)
    model = on_mesh(tiny_model(architecture, num_kv_heads=2), mesh)
    stack = nnx.state(model.decoder.layers)
    layers = Generator(model, VOCAB, mesh=mesh).layers
    assert len(layers) == model.decoder.num_layers
    for layer in layers:
        for whole, part in zip(
            jax.tree.leaves(stack), jax.tree.leaves(layer), strict=True
        ):
            held = whole.addressable_shards[0].data.shape
            assert part.addressable_shards[0].data.shape == held[1:]


def test_cache_is_split_over_batch_and_heads():
    model = tiny_model("encoder_decoder", num_kv_heads=2)
    mesh = make_mesh(MESH)
    prompts = one_per_row([[5, 6, 7]] * 8)
    starts = one_per_row([[0]] * 8)
    zeros = np.zeros((8, 1), np.int32)
    batch = Batch(prompts, starts, zeros, zeros, zeros, zeros)
    graphdef, state = nnx.split(on_mesh(model, mesh))

    @jax.jit
    def step(state, batch):
        model = nnx.merge(graphdef, state)
        _, cache = model.prefill(batch, hypotheses=3, columns=4)
        return model.make_step()(jnp.ones((8, 3), jnp.int32), jnp.zeros(8, int), cache)[
            1
        ]

    with logical_axes(mesh):
        cache = step(state, jax.tree.map(jnp.asarray, batch))
    for array in jax.tree.leaves(cache.layers):
        held = array.addressable_shards[0].data.shape
        assert held[0] == array.shape[0] // 4
        assert held[1] == array.shape[1] // 2
