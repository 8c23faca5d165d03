r"""UL2 20B on 64 chips: our step against a plain JAX one, compiled ahead of time.

    python benchmarks/sketch_20b.py

Needs libtpu (the `plan` extra), and 4 GB of memory. The sketch is an encoder-decoder of
the same sizes as one writes it in an afternoon: scanned layers that are computed again
in the backward pass, parameters split over both axes of the mesh as T5X splits them,
rows of activations over `fsdp`, all logits and `jax.nn.log_softmax`, optax's Adafactor.
Both are compiled by libtpu for the same v5p slice, mesh (fsdp=8, tensor=8), batch (256
examples of 512 and 512 tokens, one per row) and remat; memory and what a chip sends are
read from both programs by the same functions.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ul2.planning.collectives import by_axis, collectives
from ul2.planning.compilation import compile_step
from ul2.planning.from_gin import read_recipe
from ul2.planning.hlo import Module
from ul2.planning.plan import lay_out
from ul2.planning.topology import open_topologies
from ul2.sharding.mesh import make_mesh

TOPOLOGY, MESH = "v5p:4x4x4", "fsdp=8,tensor=8"
LAYERS, HEADS = 32, 16
WIDTH, FEED_FORWARD, VOCAB_SIZE = 4096, 16384, 32128
ROWS, LENGTH, BUCKETS = 256, 512, 32
INTO, OUT_OF = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")

Tree = dict[str, Any]


def attention_parts(prefix: str) -> Tree:
    """Returns shapes and splits of one attention block of a stack."""
    square = (LAYERS, WIDTH, WIDTH)
    return {
        f"{prefix}_norm": ((LAYERS, WIDTH), P()),
        **{f"{prefix}_{name}": (square, INTO) for name in "qkv"},
        f"{prefix}_o": (square, OUT_OF),
    }


def stack_parts(*attentions: str) -> Tree:
    """Returns shapes and splits of a stack."""
    layers: Tree = {
        "mlp_norm": ((LAYERS, WIDTH), P()),
        "gate": ((LAYERS, WIDTH, FEED_FORWARD), INTO),
        "up": ((LAYERS, WIDTH, FEED_FORWARD), INTO),
        "down": ((LAYERS, FEED_FORWARD, WIDTH), OUT_OF),
    }
    for name in attentions:
        layers |= attention_parts(name)
    return {
        "layers": layers,
        "bias": ((BUCKETS, HEADS), P()),
        "norm": ((WIDTH,), P()),
    }


PARTS: Tree = {
    "embedding": ((VOCAB_SIZE, WIDTH), P("tensor", "fsdp")),
    "head": ((WIDTH, VOCAB_SIZE), P("fsdp", "tensor")),
    "encoder": stack_parts("own"),
    "decoder": stack_parts("own", "cross"),
}


def is_part(value: Any) -> bool:
    """Returns whether a value is a pair of shape and split."""
    return isinstance(value, tuple)


def norm(x: Any, scale: Any) -> Any:
    """Returns T5's root-mean-square norm."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(x.dtype)


def attend(layer: Tree, prefix: str, x: Any, source: Any, bias: Any) -> Any:
    """Returns an attention block's output."""
    q, k, v = (
        (one @ layer[f"{prefix}_{name}"].astype(jnp.bfloat16)).reshape(
            *one.shape[:2], HEADS, -1
        )
        for name, one in (("q", x), ("k", source), ("v", source))
    )
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) + bias
    weights = jax.nn.softmax(logits).astype(jnp.bfloat16)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return out.reshape(x.shape) @ layer[f"{prefix}_o"].astype(jnp.bfloat16)


def stack(params: Tree, x: Any, read: Any, mask: Any, mesh: Mesh) -> Any:
    """Returns what a stack makes of its inputs; a decoder also reads the encoder's."""
    places = jnp.arange(LENGTH)
    buckets = jnp.clip(places[None] - places[:, None], -16, 15) + 16
    bias = params["bias"][buckets].transpose(2, 0, 1)[None] + mask
    rows = NamedSharding(mesh, P("fsdp", None, None))

    def layer(x: Any, one: Tree) -> tuple[Any, None]:
        inner = norm(x, one["own_norm"])
        x = x + attend(one, "own", inner, inner, bias)
        if read is not None:
            x = x + attend(one, "cross", norm(x, one["cross_norm"]), read, 0.0)
        inner = norm(x, one["mlp_norm"])
        gate, up, down = (one[n].astype(jnp.bfloat16) for n in ("gate", "up", "down"))
        x = x + (jax.nn.silu(inner @ gate) * (inner @ up)) @ down
        return jax.lax.with_sharding_constraint(x, rows), None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
    return norm(x, params["norm"])


def loss(params: Tree, batch: Tree, mesh: Mesh) -> Any:
    """Returns the mean cross entropy."""
    causal = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), 0.0, -1e9)
    embedding = params["embedding"].astype(jnp.bfloat16)
    read = stack(params["encoder"], embedding[batch["inputs"]], None, 0.0, mesh)
    x = stack(params["decoder"], embedding[batch["decoder"]], read, causal, mesh)
    logits = (x @ params["head"].astype(jnp.bfloat16)).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(
        jnp.take_along_axis(log_probs, batch["targets"][..., None], axis=-1)
    )


def lower_sketch(mesh: Mesh) -> jax.stages.Lowered:
    """Returns the sketch's update."""
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=128)

    def abstract(shape: Any, dtype: Any, split: P) -> Any:
        sharding = NamedSharding(mesh, split)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = jax.tree.map(
        lambda part: abstract(part[0], jnp.float32, part[1]), PARTS, is_leaf=is_part
    )
    opt_state = jax.tree.map(
        lambda leaf: abstract(leaf.shape, leaf.dtype, P()),
        jax.eval_shape(optimizer.init, params),
    )
    tokens = abstract((ROWS, LENGTH), jnp.int32, P("fsdp", None))
    batch = {name: tokens for name in ("inputs", "decoder", "targets")}

    def update(params: Tree, opt_state: Any, batch: Tree) -> tuple[Tree, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(params, batch, mesh)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, opt_state))
    step = jax.jit(
        update,
        donate_argnums=(0, 1),
        out_shardings=(*shardings, NamedSharding(mesh, P())),
    )
    return step.lower(params, opt_state, batch)


def report(module: Module, stats: Any, mesh: Mesh, seconds: float) -> dict[str, Any]:
    """Returns what a chip holds at most, and what it sends in an update."""
    sent = collectives(module, mesh)
    return {
        "peak GB per chip": stats.peak_memory_in_bytes / 1e9,
        "arguments GB": stats.argument_size_in_bytes / 1e9,
        "sent GB per chip": sum(one.sent_bytes for one in sent) / 1e9,
        "sent GB by axis": {axis: size / 1e9 for axis, size in by_axis(sent)},
        "by kind": [
            [one.kind, one.axis, one.count, round(one.sent_bytes / 1e9, 2)]
            for one in sent
        ],
        "compile seconds": seconds,
    }


def sketch(topology: Any) -> dict[str, Any]:
    """Returns the report of the sketch."""
    mesh = make_mesh(MESH, topology.devices)
    lowered = lower_sketch(mesh)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    module = Module(compiled.as_text() or "")
    return report(module, compiled.memory_analysis(), mesh, seconds)


def ours(topology: Any) -> dict[str, Any]:
    """Returns the report of `configs/recipes/ul2_20b.gin` at the sketch's batch."""
    recipe, vocab, _ = read_recipe(
        ["configs/recipes/ul2_20b.gin"],
        [("BATCH_SIZE", f"{ROWS}"), ("MESH", f"'{MESH}'"),
         ("REMAT", "'full'")],
    )  # fmt: skip
    setting = lay_out(recipe, topology, vocab)
    step = compile_step(setting.recipe, setting.mesh, setting.shape)
    found = report(step.module, step.stats, setting.mesh, step.compile_seconds)
    return {"rows": setting.shape.rows, "widths": setting.shape.widths, **found}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    (topology,) = open_topologies([TOPOLOGY])
    found = {"sketch": sketch(topology), "ul2": ours(topology)}
    ratios = {
        name: found["ul2"][name] / found["sketch"][name]
        for name in ("peak GB per chip", "sent GB per chip")
    }
    print(json.dumps({**found, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
