"""The sizes in configs/models, as gin reads them; no parameter is ever drawn."""

import math
import pathlib
import re

import gin
import jax
import pytest
from flax import nnx

MODELS = pathlib.Path(__file__).parents[2] / "configs" / "models"
WIRING = {"encoder_decoder", "decoder_only"}
SIZES = sorted({path.stem for path in MODELS.glob("*.gin")} - WIRING)
VOCAB_SIZE = 32128  # of T5 and UL2


@pytest.fixture(autouse=True)
def no_config():
    gin.clear_config()
    yield
    gin.clear_config()


def abstract_model(size):
    gin.add_config_file_search_path(str(MODELS.parents[1]))
    gin.parse_config_file(f"configs/models/{size}.gin")
    model = gin.query_parameter("recipe.Recipe.model").configurable.wrapped
    config = gin.query_parameter("recipe.Recipe.model_config").scoped_configurable_fn
    made = config(vocab_size=VOCAB_SIZE)
    return nnx.eval_shape(lambda: model(made, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("size", SIZES)
def test_size_has_the_parameters_that_its_file_declares(size):
    first_line = (MODELS / f"{size}.gin").read_text().splitlines()[0]
    declared = re.match(r"# ([\d,]+) parameters at vocabulary 32128\.", first_line)
    leaves = jax.tree.leaves(nnx.state(abstract_model(size)))
    counted = sum(math.prod(leaf.shape) for leaf in leaves)
    assert counted == int(declared[1].replace(",", ""))


def test_every_size_of_both_architectures_exists():
    sizes = ("tiny", "small", "base", "large", "xl", "xxl")
    expected = {f"{kind}_{size}" for kind in ("enc_dec", "dec_only") for size in sizes}
    assert set(SIZES) == expected | {"ul2_20b"}


def test_ul2_20b_has_the_shapes_of_the_released_checkpoint():
    state = nnx.state(abstract_model("ul2_20b"))
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    assert sum(math.prod(shape) for shape in shapes.values()) == 19_459_609_600
    assert shapes["embedder", "embedding"] == (32128, 4096)
    for stack in ("encoder", "decoder"):
        assert shapes[stack, "relative_bias", "rel_embedding"] == (16, 32)
        assert shapes[stack, "layers", "attention", "query"] == (32, 4096, 4096)
        assert shapes[stack, "layers", "mlp", "wi_0"] == (32, 4096, 16384)
    assert ("encoder", "final_norm", "scale") in shapes
    assert ("decoder", "final_norm", "scale") not in shapes
    assert ("embedder", "logits_kernel") not in shapes
