"""What devices send: every notation of groups, and a program whose traffic is known."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from ul2.planning.collectives import Collective, by_axis, collectives
from ul2.planning.hlo import Module

AXES = ("data", "fsdp", "tensor")


class FakeMesh:
    """Eight devices, of which only the places matter."""

    axis_names, size = AXES, 8
    devices = np.arange(8).reshape(1, 2, 4)


def module_of(line, name="main"):
    return Module(
        f"HloModule m\n\nENTRY %{name} (x: f32[8]) -> f32[8] {{\n"
        f"  %x = f32[8]{{0}} parameter(0)\n  ROOT %c = {line}\n}}\n"
    )


def read(line):
    (one,) = collectives(module_of(line), FakeMesh)
    return one


@pytest.mark.parametrize(
    ("groups", "axis", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", "tensor", 4),
        ("{{0,4},{1,5},{2,6},{3,7}}", "fsdp", 2),
        ("{{0,1},{2,3},{4,5},{6,7}}", "tensor", 2),  # half of an axis
        ("{}", "fsdp+tensor", 8),
        ("[2,4]<=[8]", "tensor", 4),
        ("[4,2]<=[2,4]T(1,0)", "fsdp", 2),
        ("[1,8]<=[8]", "fsdp+tensor", 8),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", "tensor", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", "fsdp", 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", "fsdp+tensor", 8),
        (
            "mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}",
            "tensor",
            4,
        ),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", "tensor", 2),
        ("mesh['a'=8] {'a':(1)2}", "fsdp", 2),
    ],
)
def test_groups_of_every_notation_are_named_by_axis(groups, axis, size):
    one = read(f"f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add")
    assert (one.kind, one.axis, one.group_size) == ("all-reduce", axis, size)


def test_group_of_one_sends_nothing():
    line = "f32[8]{0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add"
    assert collectives(module_of(line), FakeMesh) == []


def test_groups_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="no replica groups can be read"):
        read("f32[8]{0} all-reduce(%x), replica_groups=other, to_apply=%add")


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        ("f32[8]{0} all-gather(%x), replica_groups=[2,4]<=[8]", "all-gather", 24),
        (
            "(f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8]",
            "all-gather",
            24,
        ),
        (
            "((f32[2]{0}, f32[1]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%x, %x),"
            " replica_groups=[2,4]<=[8]",
            "all-gather",
            36,
        ),
        ("f32[8]{0} all-reduce(%x), replica_groups=[2,4]<=[8]", "all-reduce", 48),
        ("f32[8]{0} all-reduce-start(%x), replica_groups=[2,4]<=[8]", "all-reduce", 48),
        (
            "(f32[8]{0}, bf16[8]{0}) all-reduce(%x, %x), replica_groups=[2,4]<=[8]",
            "all-reduce",
            72,
        ),
        (
            "f32[2]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8]",
            "reduce-scatter",
            24,
        ),
        ("f32[8]{0} all-to-all(%x), replica_groups=[2,4]<=[8]", "all-to-all", 24),
        (
            "(f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x),"
            " source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
            "collective-permute",
            32,
        ),
    ],
)
def test_bytes_are_those_of_a_ring(line, kind, sent):
    one = read(line)
    assert (one.kind, one.axis, one.sent_bytes) == (kind, "tensor", sent)


def test_reduction_that_a_slice_is_fused_to_is_a_scatter():
    line = "f32[8]{0} all-reduce(%x), replica_groups=[2,4]<=[8]"
    (one,) = collectives(module_of(line, "all-reduce-scatter.3"), FakeMesh)
    assert (one.kind, one.sent_bytes) == ("reduce-scatter", 24)


def test_what_ends_a_collective_sends_nothing():
    assert collectives(module_of("f32[8]{0} all-gather-done(%x)"), FakeMesh) == []


def test_bytes_are_added_up_by_axis():
    one = partial(Collective, group_size=2, count=1)
    found = [
        one("all-gather", ("fsdp",), sent_bytes=3.0),
        one("all-reduce", ("tensor",), sent_bytes=9.0),
        one("reduce-scatter", ("fsdp",), sent_bytes=2.0),
    ]
    assert list(by_axis(found)) == [("tensor", 9.0), ("fsdp", 5.0)]


def test_compiled_program_sends_what_it_was_told_to():
    mesh = Mesh(
        np.array(jax.devices()[:8]).reshape(1, 2, 4),
        AXES,
        axis_types=(AxisType.Auto,) * 3,
    )

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("fsdp", "tensor"),
        out_specs=PartitionSpec("fsdp", "tensor"),
        check_vma=False,
    )
    def step(x):  # [8, 16] on each device
        def turn(x, _):
            whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
            back = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)
            return jax.lax.psum(jnp.sin(back), "tensor"), None

        x, _ = jax.lax.scan(turn, x, length=6)
        ring = [(i, (i + 1) % 4) for i in range(4)]
        return jax.lax.ppermute(x, "tensor", ring)

    shape = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    text = jax.jit(step).lower(shape).compile().as_text()
    found = {
        (one.kind, one.axis): (one.group_size, one.count, one.sent_bytes)
        for one in collectives(Module(text), mesh)
    }
    assert re.search(r"while\(", text)
    shard = 8 * 16 * 4
    assert found == {
        ("all-gather", "fsdp"): (2, 6, 6 * shard),
        ("reduce-scatter", "fsdp"): (2, 6, 6 * shard),
        ("all-reduce", "tensor"): (4, 6, 6 * shard * 1.5),
        ("collective-permute", "tensor"): (2, 1, shard),
    }
