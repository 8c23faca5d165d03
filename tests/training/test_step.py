import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import REORDERED_SUM_ATOL, REORDERED_SUM_RTOL
from training_toys import NAMES, VOCAB_SIZE, DroppingModel, ToyModel, make_batch

from ul2.sharding.mesh import make_mesh
from ul2.sharding.placement import place
from ul2.sharding.rules import DEFAULT_RULES
from ul2.training.optimizers import adafactor, adamw
from ul2.training.schedules import constant
from ul2.training.state import abstract_state, define_model, init_state
from ul2.training.step import (
    StepSettings,
    accumulate,
    make_eval_step,
    make_train_step,
)


def close(a, b):
    a, b = jax.device_get((a, b))
    np.testing.assert_allclose(a, b, rtol=REORDERED_SUM_RTOL, atol=REORDERED_SUM_ATOL)


def make_settings(**changes):
    fields = {
        "seed": 0,
        "num_denoisers": len(NAMES),
        "microbatches": 1,
        "loss_normalizer": "target_tokens",
        "z_loss": 1e-4,
        "loss_chunk": 5,
    }
    return StepSettings(**{**fields, **changes})


class Trainer:
    """Everything needed to take steps on one mesh."""

    def __init__(self, mesh, make_model=ToyModel, optimizer=adafactor, **settings):
        self.mesh, self.settings = mesh, make_settings(**settings)
        self.model = define_model(make_model)
        schedule = constant(0.1 if optimizer is adafactor else 0.01)
        transform = optimizer(schedule, self.model.param_axes)
        self.state = init_state(make_model, transform, mesh, seed=0)
        _, self.shardings = abstract_state(make_model, transform, mesh)
        self.step = make_train_step(
            self.model,
            transform,
            schedule,
            mesh,
            state_shardings=self.shardings,
            settings=self.settings,
        )

    def update(self, batch):
        placed = place(batch, self.mesh, microbatches=self.settings.microbatches)
        self.state, sums = self.step(self.state, placed)
        return jax.device_get(sums)

    def gradients(self, batch, key=None):
        @jax.jit
        def gradients(params, batch, key):
            return accumulate(
                self.model, params, batch, key, self.mesh, DEFAULT_RULES, self.settings
            )

        placed = place(batch, self.mesh, microbatches=self.settings.microbatches)
        key = jax.random.key(0) if key is None else key
        return jax.device_get(gradients(self.state.params, placed, key))


@pytest.mark.parametrize("normalizer", ["target_tokens", "sum"])
@pytest.mark.parametrize("spec", ["fsdp=1", "data=2,fsdp=1"])
def test_four_microbatches_match_one_batch(spec, normalizer):
    mesh = make_mesh(spec, jax.devices()[: 2 if "2" in spec else 1])
    batch = make_batch()
    # Unequal numbers of targets in the microbatches: a mean of means would differ.
    batch.loss_weights[::4] = 0.0
    one = Trainer(mesh, loss_normalizer=normalizer)
    four = Trainer(mesh, loss_normalizer=normalizer, microbatches=4)
    jax.tree.map(close, four.update(batch), one.update(batch))
    jax.tree.map(close, four.state.params, one.state.params)


def test_loss_normalizer_divides_the_gradients_by_all_target_tokens(one_device):
    batch = make_batch()
    mean = Trainer(one_device).update(batch)
    total = Trainer(one_device, loss_normalizer="sum").update(batch)
    close(mean.grad_norm * batch.loss_weights.sum(), total.grad_norm)


def test_sums_count_what_the_batch_holds(one_device):
    batch = make_batch()
    sums = Trainer(one_device).update(batch)
    counts = np.bincount(batch.denoiser_ids[batch.denoiser_ids >= 0], minlength=3)
    np.testing.assert_array_equal(sums.tokens, counts)
    assert sums.examples == 16
    assert sums.encoder_tokens == sums.decoder_tokens == 80
    assert sums.columns == 2 * 8 * 12


def test_decoder_only_batch_trains(one_device):
    sums = Trainer(one_device).update(make_batch(encoder=False))
    assert (sums.encoder_tokens, sums.columns) == (0, 8 * 12)


@pytest.mark.parametrize("optimizer", [adafactor, adamw])
def test_one_batch_is_learned_by_heart(one_device, optimizer):
    trainer, batch = Trainer(one_device, optimizer=optimizer), make_batch(rows=1)
    for _ in range(300):
        sums = trainer.update(batch)
    assert sums.loss.sum() / sums.tokens.sum() < 0.02


def test_dropout_differs_by_step_but_not_by_mesh(one_device):
    trainer, batch = Trainer(one_device, DroppingModel), make_batch()
    before = jax.tree.map(jnp.copy, trainer.state)
    first = trainer.update(batch).loss
    trainer.state = before._replace(step=before.step + 1)
    assert not np.allclose(trainer.update(batch).loss, first)
    close(Trainer(make_mesh("fsdp=8"), DroppingModel).update(batch).loss, first)


def test_dropout_differs_by_microbatch(one_device):
    batch = make_batch()
    half = jax.tree.map(lambda rows: rows[:4], batch)
    # Both microbatches hold the same rows, so only the keys can tell them apart.
    twice = jax.tree.map(lambda rows: np.repeat(rows, 2, axis=0), half)
    key = jax.random.key(0)
    gradients = Trainer(one_device, DroppingModel).gradients
    first, second = (
        gradients(half, jax.random.fold_in(key, index))[1].loss for index in range(2)
    )
    assert not np.allclose(first, second)
    cut = Trainer(one_device, DroppingModel, microbatches=2)
    close(cut.gradients(twice, key)[1].loss, first + second)


def test_evaluation_counts_exactly_the_targets_it_scores(one_device):
    trainer, batch = Trainer(one_device), make_batch()
    batch.loss_weights[0, :3] = 0.0
    eval_step = make_eval_step(
        trainer.model,
        one_device,
        param_shardings=trainer.shardings.params,
        num_denoisers=len(NAMES),
        vocab_size=VOCAB_SIZE,
        loss_chunk=5,
    )
    sums = jax.device_get(eval_step(trainer.state.params, place(batch, one_device)))
    close(trainer.update(batch).loss, sums.loss)
    for index in range(len(NAMES)):
        scored = (batch.denoiser_ids == index) & (batch.loss_weights > 0)
        counts = np.bincount(batch.targets[scored], minlength=VOCAB_SIZE)
        np.testing.assert_array_equal(sums.target_counts[index], counts)
        assert sums.tokens[index] == counts.sum()


def test_evaluation_counts_the_examples_predicted_right_to_the_end(one_device):
    trainer, batch = Trainer(one_device), make_batch()
    # Of the first row, the first example has no target and the second a single one.
    batch.loss_weights[0, :9] = 0.0
    model = trainer.model.merge(trainer.state.params)
    likeliest = np.asarray(model.unembed(model(batch))).argmax(-1)
    batch.targets[:] = likeliest
    batch.targets[1, 2] += 1  # one of six tokens of one example
    eval_step = make_eval_step(
        trainer.model,
        one_device,
        param_shardings=trainer.shardings.params,
        num_denoisers=len(NAMES),
        vocab_size=VOCAB_SIZE,
        loss_chunk=5,
    )
    sums = jax.device_get(eval_step(trainer.state.params, place(batch, one_device)))
    examples = 2 * np.bincount(batch.denoiser_ids[:, 0], minlength=len(NAMES))
    examples[batch.denoiser_ids[0, 0]] -= 1
    np.testing.assert_array_equal(sums.examples, examples)
    examples[batch.denoiser_ids[1, 0]] -= 1
    np.testing.assert_array_equal(sums.right_examples, examples)


def test_moments_are_sharded_as_their_parameters():
    trainer = Trainer(make_mesh("fsdp=8"), optimizer=adamw)
    params = [leaf.sharding for leaf in jax.tree.leaves(trainer.state.params)]
    moments = [
        leaf.sharding for leaf in jax.tree.leaves(trainer.state.opt_state) if leaf.ndim
    ]
    assert moments == params * 2
    assert any(not sharding.is_fully_replicated for sharding in params)
