"""The first thing that went bad is named right; every fault is put there by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_fixtures import make_batch, pack_examples, tiny_config
from tolerances import REORDERED_SUM_RTOL
from training_toys import ToyModel
from training_toys import make_batch as make_toy_batch

from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES
from ul2.training.diagnosis import Diagnoser, Site, backward_order
from ul2.training.optimizers import adafactor
from ul2.training.schedules import constant
from ul2.training.state import abstract_state, define_model, init_state
from ul2.training.step import StepSettings

ROWS, COLUMNS = 8, 12
DEPTH = 3
MODELS = {
    "encoder_decoder": (EncoderDecoder, {"num_encoder_layers": DEPTH}),
    "decoder_only": (DecoderOnly, {"num_encoder_layers": 0}),
}


class Patient:
    """A model whose updates can be looked at."""

    def __init__(self, architecture, mesh):
        kind, fields = MODELS[architecture]
        config = tiny_config(
            vocab_size=64, num_heads=8, num_decoder_layers=DEPTH, **fields
        )
        self.mesh = mesh

        def make_model(*, rngs):
            return kind(config, rngs=rngs)

        model = define_model(make_model)
        rule = adafactor(constant(0.01), model.param_axes)
        self.state = init_state(make_model, rule, mesh, seed=0)
        _, shardings = abstract_state(make_model, rule, mesh)
        self._shardings = shardings.params
        self.diagnose = Diagnoser(
            model,
            mesh,
            DEFAULT_RULES,
            param_shardings=shardings.params,
            settings=StepSettings(0, 1, 1, "target_tokens", 1e-4, 8),
        )

    def look(self, batch, poison=None):
        params = self.state.params
        if poison:
            path, *place_of, value = poison
            params = put(params, path.split("."), tuple(place_of), value)
            params = jax.device_put(params, self._shardings)
        placed = place(batch, self.mesh)
        return self.diagnose(self.state._replace(params=params), placed)


def put(tree, path, where, value):
    """Returns parameters with one number changed."""
    if not path:
        return tree.at[where].set(value)
    return {**tree, path[0]: put(tree[path[0]], path[1:], where, value)}


def batch_of(architecture):
    """Rows of two examples; token 7 stands in row 5 alone, on the decoder's side."""
    rng = np.random.default_rng(0)

    def side(rare):
        rows = [[rng.integers(8, 60, n).tolist() for n in (5, 4)] for _ in range(ROWS)]
        if rare:
            rows[5][1][2] = 7
        return pack_examples(rows, COLUMNS, num_examples=2, length=6)

    encoder = side(False) if architecture == "encoder_decoder" else None
    batch = make_batch(encoder, side(True))
    return jax.tree.map(np.array, batch)


@pytest.fixture(scope="module")
def patients():
    meshes = {
        "encoder_decoder": make_mesh("fsdp=4,tensor=2", jax.devices()[:8]),
        "decoder_only": make_mesh("auto", jax.devices()[:1]),
    }
    return {name: Patient(name, meshes[name]) for name in MODELS}


CASES = [
    ("encoder_decoder", "encoder.layers.mlp.wo", 1, "encoder feed-forward"),
    ("encoder_decoder", "decoder.layers.attention.query", 0,
     "decoder self-attention"),
    ("encoder_decoder", "decoder.layers.cross_attention.value", 2,
     "decoder cross-attention"),
    ("decoder_only", "decoder.layers.pre_mlp_norm.scale", 2, "decoder feed-forward"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "path", "layer", "first"), CASES)
def test_layer_with_a_bad_parameter_is_named(
    patients, architecture, path, layer, first
):
    found = patients[architecture].look(
        batch_of(architecture), (path, layer, 0, jnp.nan)
    )
    assert found.first_bad == f"{first}, layer {layer}"
    assert found.parameters == (f"{path}, layer {layer}",)
    assert found.worst_examples == ()


@pytest.mark.parametrize("architecture", MODELS)
def test_bad_row_of_the_table_names_the_embedding_and_the_rows(patients, architecture):
    found = patients[architecture].look(
        batch_of(architecture), ("embedder.embedding", 7, 3, jnp.inf)
    )
    assert (found.first_bad, found.rows) == ("decoder embedding", (5,))
    assert found.parameters == ("embedder.embedding",)


def test_number_that_is_too_large_is_named_where_it_overflows(patients):
    # It is finite; in some rows it is multiplied by more than one.
    found = patients["decoder_only"].look(
        batch_of("decoder_only"), ("decoder.layers.mlp.wo", 1, 3, 4, 3e38)
    )
    assert found.first_bad == "decoder feed-forward, layer 1"
    assert 0 < len(found.rows) < ROWS
    assert found.parameters == ()


def test_bad_weights_and_bad_logits_are_no_layer(patients):
    batch = batch_of("decoder_only")
    batch.loss_weights[2, 1] = np.inf
    found = patients["decoder_only"].look(batch)
    assert (found.first_bad, found.rows) == ("the loss weights of the batch", (2,))
    found = patients["decoder_only"].look(
        batch_of("decoder_only"), ("embedder.logits_kernel", 3, 4, jnp.nan)
    )
    assert found.first_bad == "the logits, or the loss of them"


@pytest.mark.parametrize(
    ("poison", "gradient"),
    [
        # The forward pass is finite; what comes back through these is not.
        (("decoder.final_norm.scale", 1, 1e38), "embedder.logits_kernel"),
        (("embedder.logits_kernel", 1, 1e25), "decoder.final_norm.scale"),
    ],
)
def test_first_gradient_of_the_backward_pass_is_named(patients, poison, gradient):
    found = patients["decoder_only"].look(batch_of("decoder_only"), poison)
    assert found.first_bad == f"the gradient of {gradient}"
    assert found.parameters == ()


def test_parameters_are_met_from_the_loss_downwards():
    order = [
        Site("embedder.logits_kernel", None),
        Site("decoder.final_norm.scale", None),
        Site("decoder.layers.mlp.wo", 1),
        Site("decoder.layers.pre_mlp_norm.scale", 1),
        Site("decoder.layers.cross_attention.key", 1),
        Site("decoder.layers.attention.out", 1),
        Site("decoder.layers.mlp.wo", 0),
        Site("decoder.relative_bias.rel_embedding", None),
        Site("encoder.final_norm.scale", None),
        Site("encoder.layers.mlp.wo", 0),
        Site("encoder.relative_bias.rel_embedding", None),
        Site("embedder.embedding", None),
    ]
    assert sorted(order[::-1], key=backward_order) == order


def test_finite_update_names_the_examples_that_lost_the_most(one_device):
    microbatches = 4
    model = define_model(ToyModel)
    rule = adafactor(constant(0.01), model.param_axes)
    _, shardings = abstract_state(ToyModel, rule, one_device)
    state = init_state(ToyModel, rule, one_device, seed=0)
    diagnose = Diagnoser(
        model,
        one_device,
        DEFAULT_RULES,
        param_shardings=shardings.params,
        settings=StepSettings(0, 3, microbatches, "target_tokens", 1e-4, 5),
    )
    batch = make_toy_batch()
    # The model gives token 95 next to nothing; of another example nothing counts.
    batch.targets[6, :6] = 95
    batch.loss_weights[2] = 0.0
    state.params["table"] = state.params["table"].at[95].multiply(-9.0)
    found = diagnose(state, place(batch, one_device, microbatches=microbatches))
    assert found.first_bad is None and found.rows == () and found.parameters == ()
    losses = [loss for _, _, loss in found.worst_examples]
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)
    assert found.worst_examples[0][:2] == (6, 0)
    assert all(row != 2 for row, _, _ in found.worst_examples)
    hidden = model.merge(state.params)
    logits = np.asarray(hidden.unembed(hidden(batch)))[6, :6]
    expected = jax.nn.logsumexp(logits, axis=-1) - logits[:, 95]
    np.testing.assert_allclose(losses[0], expected.mean(), rtol=REORDERED_SUM_RTOL)
    batch.loss_weights[3, 0] = np.nan
    placed = place(batch, one_device, microbatches=microbatches)
    assert diagnose(state, placed).rows == (3,)
