"""A checkpoint as a model: its shapes without memory, or its values on a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from ul2.interop.checkpoint import Checkpoint
from ul2.interop.tensors import Tensor
from ul2.models import architectures
from ul2.models.config import ModelConfig
from ul2.sharding.rules import DEFAULT_RULES, Rules, named_shardings
from ul2.training.state import ModelDef, Params, define_model


def define(architecture: str, config: ModelConfig) -> ModelDef:
    """Returns the structure of a model, without memory."""
    return define_model(architectures.make_model(architecture, config))


# Readers ask several times, of one model.
@functools.lru_cache(maxsize=8)
def param_shapes(architecture: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter, by its dotted path."""
    params = define(architecture, config).abstract_params
    return {
        path: leaf.shape
        for path, leaf in traverse_util.flatten_dict(params, sep=".").items()
    }


def build(checkpoint: Checkpoint, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """Returns the model with its parameters, in float32, split over a mesh.

    Every process reads what its devices hold, and nothing else.
    """
    model = define(checkpoint.architecture, checkpoint.config)
    shardings = named_shardings(model.abstract_params, model.param_axes, mesh, rules)
    flat = traverse_util.flatten_dict(shardings, sep=".")
    params: Params = traverse_util.unflatten_dict(
        {path: read(checkpoint.params[path], flat[path]) for path in flat}, sep="."
    )
    return model.merge(params)


def read(tensor: Tensor, sharding: jax.sharding.Sharding) -> jax.Array:
    """Reads a tensor into the shards of a mesh, in float32."""
    return jax.make_array_from_callback(
        tensor.shape,
        sharding,
        lambda region: tensor.read(region).astype(jnp.float32),
    )
