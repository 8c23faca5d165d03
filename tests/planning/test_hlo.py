"""Loops are counted as often as they turn, whoever wrote them down."""

import jax
import jax.numpy as jnp
import pytest

from ul2.planning.hlo import Array, Module, dtype_bytes

# As TPU's compiler writes it: no trip count, but a condition; two steps at a time in
# the inner loop, whose start is a copy of a constant.
NESTED = """HloModule jit_f, is_scheduled=true

%turn (p.0: (u32[], f32[8])) -> (u32[], f32[8]) {
  %p.0 = (u32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.0 = u32[]{:T(128)} get-tuple-element(%p.0), index=0
  %x.0 = f32[8]{0:T(128)} get-tuple-element(%p.0), index=1
  %two = u32[]{:T(128)} constant(2)
  %next.0 = u32[]{:T(128)S(6)} add(%i.0, %two), metadata={op_name="a"}
  %y.0 = f32[8]{0:T(128)} negate(%x.0)
  ROOT %t.0 = (u32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%next.0, %y.0)
}

%if (p.1: (u32[], f32[8])) -> pred[] {
  %p.1 = (u32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %seven = u32[]{:T(128)} constant(7)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %seven), direction=LT
}

%outer_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]{0:T(128)}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = f32[8]{0:T(128)} get-tuple-element(%p.2), index=1
  %zero = u32[] constant(0)
  %start = u32[] copy(%zero)
  %state = (u32[], f32[8]{0:T(128)}) tuple(%start, %x.2)
  %loop.2 = (u32[], f32[8]{0:T(128)}) while(%state), condition=%if, body=%turn
  %y.2 = f32[8]{0:T(128)} get-tuple-element(%loop.2), index=1
  %one = s32[] constant(1)
  %next.2 = s32[] add(%i.2, %one)
  ROOT %t.2 = (s32[], f32[8]{0:T(128)}) tuple(%next.2, %y.2)
}

%outer_cond (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[], f32[8]{0:T(128)}) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %limit = s32[] constant(32)
  ROOT %lt.3 = pred[] compare(%i.3, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %begin = s32[] constant(0)
  %all = (s32[], f32[8]{0:T(128)}) tuple(%begin, %x)
  %loop = (s32[], f32[8]{0:T(128)}) while(%all), condition=%outer_cond, body=%outer_body
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def runs_of(module, opcode):
    return [runs for _, one, runs in module.instructions() if one.opcode == opcode]


def test_loops_in_loops_multiply():
    module = Module(NESTED)
    # 7 in steps of 2 is four turns.
    assert module.runs["turn"] == 32 * 4
    assert runs_of(module, "negate") == [32 * 4]
    assert module.unread_loops == []


def test_loop_of_a_written_trip_count_needs_no_condition():
    known = 'body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}'
    module = Module(NESTED.replace("body=%outer_body", known))
    assert module.runs["turn"] == 5 * 4


def test_loop_that_says_nothing_counts_once_and_is_named():
    module = Module(NESTED.replace("direction=LT", "direction=NE"))
    assert module.runs["turn"] == 1
    assert sorted(module.unread_loops) == ["loop", "loop.2"]


def test_loop_that_starts_or_steps_unread_counts_once():
    unread = Module(NESTED.replace("add(%i.2, %one)", "multiply(%i.2, %one)"))
    assert unread.unread_loops == ["loop"]
    unread = Module(NESTED.replace("%zero = u32[] constant(0)", "%zero = u32[] rng()"))
    assert unread.unread_loops == ["loop.2"]


def test_what_is_done_asynchronously_runs_once():
    text = """HloModule m

%wrapped (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%p)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %s = ((f32[4]{0}), f32[4]{0}, u32[]) async-start(%x), calls=%wrapped
  ROOT %d = f32[4]{0} async-done(%s), calls=%wrapped
}
"""
    assert runs_of(Module(text), "negate") == [1]


def test_arrays_of_a_result_are_read_through_layouts_and_comments():
    text = NESTED.replace(
        "%y.0 = f32[8]{0:T(128)} negate(%x.0)",
        "%y.0 = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[]) negate(%x.0)",
    )
    (one,) = [i for _, i, _ in Module(text).instructions() if i.name == "y.0"]
    assert one.arrays == [Array("bf16", (2, 3)), Array("pred", ())]
    assert [array.size for array in one.arrays] == [12, 1]
    assert one.operands == ["x.0"]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("bf16", 2), ("f32", 4), ("pred", 1), ("f8e4m3fn", 1), ("s4", 1), ("token", 0)],
)
def test_bytes_of_a_number(dtype, size):
    assert dtype_bytes(dtype) == size


def test_compiled_scans_are_counted():
    def step(x):
        def outer(x, _):
            inner = jax.lax.scan(lambda y, _: (jnp.sin(y) * 2, None), x, length=3)[0]
            return jnp.cos(inner), None

        return jax.lax.scan(outer, x, length=5)[0]

    text = jax.jit(step).lower(jnp.ones(4)).compile().as_text()
    module = Module(text)
    assert sum(runs_of(module, "sine")) == 15
    assert sum(runs_of(module, "cosine")) == 5
