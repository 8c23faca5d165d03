"""Planned batches are those that training gets, without the text."""

import jax
import numpy as np
import pytest
from planning_toys import flags, make_vocab, read
from wiring_toys import flags as store_flags
from wiring_toys import make_store

from ul2 import launch
from ul2.planning.shapes import shape_of
from ul2.sharding.mesh import make_mesh
from ul2.starting import Start


@pytest.mark.parametrize("objective", ["ul2", "ul2_moving"])
@pytest.mark.parametrize("model", ["enc_dec_tiny", "dec_only_tiny"])
def test_planned_batch_is_the_one_that_training_gets(tmp_path, model, objective):
    store = make_store(tmp_path)
    recipe, _, steps = read(
        store_flags(store, model=model, objective=objective, MODEL_DIR="unused")
    )
    mesh = make_mesh(recipe.mesh)
    shape = shape_of(recipe, mesh)
    data = launch.open_data(recipe, mesh, Start())
    assert shape.vocab == data.vocab
    assert (shape.assumptions, steps) == ((), 3)
    real, planned = data.source("train")[0], shape.abstract(mesh)
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for array, abstract in zip(
        jax.tree.leaves(real), jax.tree.leaves(planned), strict=True
    ):
        assert (array.shape, array.dtype) == (abstract.shape, abstract.dtype)


def test_plan_needs_neither_data_nor_steps():
    recipe, vocab, steps = read(flags())
    assert (vocab, steps) == (None, None)
    shape = shape_of(recipe, make_mesh("fsdp=8"))
    assert shape.vocab.padded_size == 32128
    assert "no token store" in shape.assumptions[0]
    assert shape.examples == 56
    recipe, _, steps = read(flags(DATA="not/there", TOTAL_STEPS=7))
    assert shape_of(recipe, make_mesh("fsdp=8")).widths == shape.widths
    assert steps == 7


def test_vocabulary_of_a_checkpoint_is_taken():
    recipe, _, _ = read(flags())
    shape = shape_of(recipe, make_mesh("fsdp=8"), make_vocab(2048))
    assert (shape.vocab.padded_size, shape.assumptions) == (2048, ())


@pytest.mark.parametrize(
    ("model", "widths"), [("enc_dec_tiny", (2048, 512)), ("dec_only_tiny", (2560,))]
)
def test_tasks_are_planned_at_their_longest(model, widths):
    recipe, _, _ = read(
        [
            f"--gin_file=configs/models/{model}.gin",
            "--gin_file=configs/runs/finetune_flan.gin",
            "--gin.BATCH_SIZE=16",
        ]
    )
    shape = shape_of(recipe, make_mesh("fsdp=8"))
    assert (shape.rows, shape.examples_per_row) == (16, 1)
    assert shape.widths == shape.views == widths
    assert any("shorter ones share rows" in line for line in shape.assumptions)


def test_batch_that_does_not_divide_is_refused():
    recipe, _, _ = read(flags(BATCH_SIZE=60))
    with pytest.raises(ValueError, match="BATCH_SIZE=60 does not divide"):
        shape_of(recipe, make_mesh("fsdp=8"))
    files = ["--gin_file=configs/models/enc_dec_tiny.gin"]
    files += ["--gin_file=configs/runs/finetune.gin", "--gin.BATCH_SIZE=12"]
    recipe, _, _ = read(files)
    with pytest.raises(ValueError, match="12 rows does not divide"):
        shape_of(recipe, make_mesh("fsdp=8"))


def test_rows_are_split_and_nothing_else():
    recipe, _, _ = read(flags())
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    shape = shape_of(recipe, mesh)
    for leaf in jax.tree.leaves(shape.abstract(mesh)):
        ours = leaf.sharding.shard_shape(leaf.shape)
        assert ours == (shape.rows // 4, *leaf.shape[1:])
        assert leaf.dtype in (np.int32, np.float32)
