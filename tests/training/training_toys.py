"""The smallest model, batches and vocabulary that a training loop can run on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ul2 import axes
from ul2.batch import Batch, Packed
from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import PARAMS, TRAIN_STATE, read_item
from ul2.training.loop import TrainSettings, step_settings, train
from ul2.training.optimizers import adafactor
from ul2.training.run import Programs, Run
from ul2.training.schedules import constant
from ul2.training.state import with_shardings
from ul2.vocab import Vocab

VOCAB_SIZE, WIDTH, LENGTH = 128, 16, 12
NAMES = ("R", "S", "X")


class ToyModel(nnx.Module):
    """Embeds, adds the mean of the encoder's row, runs two scanned layers."""

    dropout_rate = 0.0

    def __init__(self, *, rngs: nnx.Rngs):
        def param(shape, names):
            value = jax.random.normal(rngs.params(), shape) / np.sqrt(WIDTH)
            return nnx.Param(value, out_sharding=names, eager_sharding=False)

        self.table = param((VOCAB_SIZE, WIDTH), (axes.VOCAB, axes.EMBED))
        self.places = param((LENGTH, WIDTH), (None, axes.EMBED))
        self.up = param((2, WIDTH, 32), (axes.LAYERS, axes.EMBED, axes.MLP))
        self.down = param((2, 32, WIDTH), (axes.LAYERS, axes.MLP, axes.EMBED))
        self.scale = param((2, WIDTH), (axes.LAYERS, axes.EMBED))
        self.relative_bias = param((4, 8), (axes.BIAS_HEADS, axes.BUCKETS))

    def __call__(self, batch, *, dropout_key=None):
        hidden = self.table[...][batch.decoder.tokens]
        hidden = hidden + self.places[...][batch.decoder.positions]
        if batch.encoder is not None:
            read = self.table[...][batch.encoder.tokens].mean(1, keepdims=True)
            hidden = hidden + read + self.relative_bias[...].sum()
        if dropout_key is not None and self.dropout_rate:
            keep = jax.random.bernoulli(
                dropout_key, 1 - self.dropout_rate, hidden.shape
            )
            hidden = jnp.where(keep, hidden / (1 - self.dropout_rate), 0.0)

        def layer(hidden, weights):
            up, down, scale = weights
            inner = jax.nn.relu((hidden * scale.reshape(1, 1, -1)) @ up)
            return hidden + inner @ down, None

        weights = (self.up[...], self.down[...], self.scale[...])
        return jax.lax.scan(layer, hidden, weights)[0]

    def unembed(self, hidden):
        return (hidden @ self.table[...].T).astype(jnp.float32)


class DroppingModel(ToyModel):
    dropout_rate = 0.5


def make_vocab(**changes):
    fields = {
        "size": 100,
        "padded_size": VOCAB_SIZE,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "start_id": 0,
        "sentinel_ids": (99, 98),
        "mode_ids": {},
        "mode_convention": "paper",
        "tokenizer_sha256": "0" * 64,
    }
    return Vocab(**{**fields, **changes})


def make_batch(rows=8, seed=0, encoder=True):
    """Random rows of two examples, the last columns padding."""
    rng = np.random.default_rng(seed)
    segments = np.tile(np.repeat([1, 2, 0], (6, 4, 2)).astype(np.int32), (rows, 1))
    positions = np.r_[np.arange(6), np.arange(4), 0, 0].astype(np.int32)
    columns = np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, -1, -1]], np.int32)

    def draw():
        tokens = rng.integers(3, 90, (rows, LENGTH)).astype(np.int32)
        return np.where(segments > 0, tokens, 0)

    def packed():
        return Packed(
            draw(),
            segments,
            np.tile(positions, (rows, 1)),
            np.tile(columns, (rows, 1, 1)),
        )

    per_row = rng.integers(0, len(NAMES), (rows, 1)).astype(np.int32)
    return Batch(
        encoder=packed() if encoder else None,
        decoder=packed(),
        targets=draw(),
        loss_weights=(segments > 0).astype(np.float32),
        denoiser_ids=np.where(segments > 0, per_row, -1).astype(np.int32),
        prefix_lengths=np.zeros((rows, 2), np.int32),
    )


class ToyBatches:
    """Batch k is a function of k; `on_next` may watch or interfere."""

    def __init__(self, rows=8, on_next=lambda index: None):
        self.index, self.rows, self.on_next = 0, rows, on_next

    def __next__(self):
        self.on_next(self.index)
        batch = make_batch(self.rows, seed=self.index)
        self.index += 1
        return batch

    def position(self):
        return {"index": self.index}

    def seek(self, position):
        self.index = position["index"]


def make_run(model_dir, mesh=None, **changes):
    fields = {
        "model_dir": model_dir,
        "make_model": ToyModel,
        "optimizer": adafactor,
        "schedule": constant(0.01),
        "mesh": mesh or make_mesh("auto", jax.devices()[:1]),
        "batches": ToyBatches(),
        "denoiser_names": NAMES,
        "vocab": make_vocab(),
        "config_text": "TOTAL_STEPS = 6",
        "eval_batches": lambda: [make_batch(seed=s) for s in (1000, 1001)],
        "mixture": {"denoisers": list(NAMES)},
        "show_progress": False,
    }
    return Run(**{**fields, **changes})


def make_settings(**changes):
    fields = {
        "total_steps": 6,
        "seed": 0,
        "loss_chunk": 5,
        "log_every_steps": 1,
        "eval_every_steps": 3,
        "save_every_steps": 3,
    }
    return TrainSettings(**{**fields, **changes})


def make_programs(run, **changes):
    """Returns what runs that differ in data alone can share."""
    return Programs(run, step_settings(make_settings(**changes), len(NAMES)))


def rewrite_contract(model_dir, step, /, **changes):
    """Changes what a checkpoint says, and makes it one that cannot be verified."""
    folder = model_dir / "checkpoints" / str(step)
    file = folder / "contract" / "metadata"
    fields = json.loads(file.read_text()) | changes
    del fields["checksums"]
    file.write_text(json.dumps({k: v for k, v in fields.items() if v != "absent"}))
    (folder / "checksums.json").unlink()


def read_state(model_dir, programs, step=6):
    """Returns all arrays of a checkpoint, on the host."""
    wanted = with_shardings(programs.abstract, programs.shardings)
    rest = {"step": wanted.step, "opt_state": wanted.opt_state}
    return jax.device_get(
        [
            read_item(model_dir, step, PARAMS, wanted.params),
            read_item(model_dir, step, TRAIN_STATE, rest),
        ]
    )


def run_train(model_dir, *, settings=None, programs=None, **changes):
    """Trains with a clock that stands still, so that two runs write the same."""
    run, settings = make_run(model_dir, **changes), settings or make_settings()
    return train(run, settings, programs=programs, clock=lambda: 0.0)
