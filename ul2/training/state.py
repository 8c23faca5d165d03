"""What training moves from step to step, born where it will live.

`TrainState` is a plain tuple of plain dicts: no module object is in it, so it can be
compiled over, donated, saved and compared. `ModelDef` is what is left of the model once
its arrays are taken out; `ModelDef.merge(params)` puts them back for one call.

A large model never exists on one device or host: shapes come from `eval_shape`, the
sharding of every array follows from its logical axes, and one compiled function draws
the numbers directly into those shards.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ul2.sharding.rules import DEFAULT_RULES, Rules, named_shardings, replicated
from ul2.training import precision
from ul2.training.guard import Guard
from ul2.training.optimizers import ParamAxes

Params = dict[str, Any]
MakeModel = Callable[..., nnx.Module]  # called as make_model(rngs=...)


class TrainState(NamedTuple):
    """Everything an update reads and writes."""

    step: Any  # int32 scalar: updates done
    params: Params
    opt_state: Any
    # A `Guard`, as JSON where it is just read; None: every update is made.
    guard: Any = None


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """A model without its arrays.

    Attributes:
        graphdef: the modules and how they are joined.
        param_axes: logical axis names of every parameter.
        abstract_params: shape and dtype of every parameter.
    """

    graphdef: Any
    param_axes: ParamAxes
    abstract_params: Params

    def merge(self, params: Params) -> Any:
        """Returns the model with these parameters."""
        return nnx.merge(self.graphdef, params)


def define_model(make_model: MakeModel) -> ModelDef:
    """Returns the structure of a model; draws no numbers and takes no memory."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert not jax.tree.leaves(rest), f"a model holds parameters only, not {rest}"
    param_axes = jax.tree.map(
        lambda variable: tuple(variable.get_metadata().get("out_sharding") or ()),
        nnx.to_pure_dict(params, extract_fn=lambda variable: variable),
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    return ModelDef(graphdef, param_axes, nnx.to_pure_dict(params))


def init_params(make_model: MakeModel, seed: int | jax.Array) -> Params:
    """Draws the parameters; the same numbers on every mesh."""
    with nnx.use_eager_sharding(False):
        model = make_model(rngs=nnx.Rngs(seed))
    params: Params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return params


def init_state(
    make_model: MakeModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    seed: int,
) -> TrainState:
    """Returns the state before the first update, already split over the mesh."""
    _, shardings = abstract_state(make_model, optimizer, mesh, rules)

    def init() -> TrainState:
        params = init_params(make_model, seed)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    state: TrainState = jax.jit(init, out_shardings=shardings)()
    return state


def abstract_state(
    make_model: MakeModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> tuple[TrainState, TrainState]:
    """Returns the shapes, and the shardings, of every array of the state."""
    model = define_model(make_model)
    abstract = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        model.abstract_params,
        jax.eval_shape(optimizer.init, model.abstract_params),
    )
    params = named_shardings(model.abstract_params, model.param_axes, mesh, rules)
    shardings = TrainState(
        replicated(mesh),
        params,
        _opt_state_shardings(abstract, params, mesh),
    )
    return abstract, shardings


def guarded(
    abstract: TrainState, shardings: TrainState, num_denoisers: int, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Returns the same of a state whose updates are judged before they are made."""
    guard = Guard.fresh(num_denoisers)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), guard)
    places = jax.tree.map(lambda _: replicated(mesh), guard)
    return abstract._replace(guard=shapes), shardings._replace(guard=places)


def state_of(
    params: Params,
    kept: Any,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
) -> TrainState:
    """Returns the state before the first update of parameters that are there already.

    Args:
        params: in float32, where they shall live; they are used up.
        kept: the optimizer's state, without the link that rounds; None for one that
            has seen nothing. It is used up too.
        optimizer: makes what is not kept.
        abstract: the whole state, with shardings.
    """

    def begin(params: Params, kept: Any) -> TrainState:
        opt_state = optimizer.init(params)
        if kept is not None:
            _, rounding = precision.split_state(opt_state)
            opt_state = (*kept, *rounding) if rounding else kept
        params = jax.tree.map(
            lambda param, wanted: precision.rounded_to(param, wanted.dtype),
            params,
            abstract.params,
        )
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(begin, out_shardings=shardings, donate_argnums=(0, 1))
    state: TrainState = init(params, kept)
    return state


def float32_of(abstract: Any) -> Any:
    """Returns the same abstract arrays in float32."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jnp.float32, sharding=leaf.sharding
        ),
        abstract,
    )


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the abstract arrays, each knowing where it shall live."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        shardings,
    )


def _opt_state_shardings(abstract: TrainState, param_shardings: Any, mesh: Mesh) -> Any:
    """Gives each moment the sharding of the parameter it belongs to.

    A leaf belongs to the parameter whose path ends its own. Leaves of another shape
    (counts, factored row and column means) are small and stay whole.
    """
    params = {
        _keys(path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(abstract.params)
    }
    shardings = {
        _keys(path): leaf for path, leaf in jax.tree.leaves_with_path(param_shardings)
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> Any:
        keys = _keys(path)
        for start in range(len(keys)):
            if params.get(keys[start:]) == leaf.shape:
                return shardings[keys[start:]]
        return replicated(mesh)

    return jax.tree.map_with_path(sharding, abstract.opt_state)


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the dict keys of a path."""
    return tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey))
