"""Collectives read from HLO text: of programs compiled here, and of what other compilers write."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.sharding import make_mesh
from flaxbert.tools.collectives import Traffic, read_collectives
from flaxbert.tools.hlo import largest_operand, parse

SIZE = 1024  # floats on one of the four devices


def compiled(body, out_specs=PartitionSpec("data")):
    """The optimised text of `body` on a float32 [SIZE] on each of four devices."""
    mesh = make_mesh(MeshConfig(data=4))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=out_specs, check_vma=False)
    with jax.set_mesh(mesh):
        return jax.jit(mapped).lower(jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32)).compile().as_text()


ring = functools.partial(jax.lax.ppermute, axis_name="data", perm=[(0, 1), (1, 2), (2, 3), (3, 0)])


@pytest.mark.parametrize("body, kind, size", [
    (lambda x: jax.lax.psum(x, "data"), "all-reduce", SIZE),
    (lambda x: jax.lax.all_gather(x, "data", tiled=True), "all-gather", 4 * SIZE),
    (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), "reduce-scatter", SIZE),
    (ring, "collective-permute", SIZE),
    (lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True), "all-to-all", SIZE),
])  # fmt: skip
def test_each_kind_is_counted_with_the_bytes_of_its_whole_array(body, kind, size):
    assert read_collectives(parse(compiled(body))) == ({kind: Traffic(1, 4 * size)}, 0)


def test_a_collective_in_a_scan_counts_as_often_as_the_scan_runs():
    def body(x):
        return jax.lax.scan(lambda carry, _: (ring(carry) * 2, None), x, None, length=5)[0]

    assert read_collectives(parse(compiled(body))).kinds == {"collective-permute": Traffic(5, 5 * 4 * SIZE)}


def test_a_scan_within_a_scan_multiplies():
    def inner(x):
        return jax.lax.scan(lambda carry, _: (ring(carry) * 2, None), x, None, length=3)[0]

    def body(x):
        return jax.lax.scan(lambda carry, _: (inner(carry) + 1, None), x, None, length=7)[0]

    assert read_collectives(parse(compiled(body))).kinds["collective-permute"].count == 21


def test_a_loop_of_unknown_length_is_counted_once_and_told_of():
    def body(x):
        return jax.lax.while_loop(lambda carry: carry.sum() < 100, lambda carry: ring(carry) + 1, x)

    found = read_collectives(parse(compiled(body)))
    assert (found.kinds["collective-permute"].count, found.loops_counted_once) == (1, 1)


def test_a_program_on_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile().as_text()
    assert read_collectives(parse(text)) == ({}, 0)


# As libtpu writes them: a loop whose length stands in its condition alone, a pair of start and done, and an all-gather
# that is spread over a chain of fusions, each of which repeats it.
TPU = """
HloModule jit_train, is_scheduled=true

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (q: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %q = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%q), index=1
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%start)
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%j, %done)
}

%begin (a: bf16[4,128]) -> (bf16[4,128], bf16[8,128]) {
  %a = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=2, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %begun = (bf16[4,128]{1,0}, bf16[8,128]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (b: bf16[4,128]) -> bf16[8,128] {
  %b = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %gather.2 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%b), channel_id=2, dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (y: bf16[8,128], z: bf16[4,128]) -> bf16[8,128] {
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %z = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(1)
  %two = s32[]{:T(128)} constant(2)
  %fusion.1 = (bf16[4,128]{1,0}, bf16[8,128]{1,0}) fusion(%z), kind=kCustom, calls=%begin
  %fusion.2 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%z), kind=kOutput, calls=%async_collective_fusion.1
  %given = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%two, %y)
  %while = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) while(%given), condition=%cond, body=%body
  ROOT %r = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_a_tpus_loops_pairs_and_chains_are_counted_as_what_they_are():
    whole = 8 * 128 * 2
    assert read_collectives(parse(TPU)).kinds == {
        "collective-permute": Traffic(5, 5 * whole), "all-gather": Traffic(1, whole)
    }  # fmt: skip


def test_the_largest_operand_of_a_product_is_found_whatever_else_is_large():
    def product(x, y):
        return jnp.sin(x) @ y + jnp.ones((8, 4096)) @ jnp.ones((4096, 2))

    text = jax.jit(product).lower(jnp.ones((8, 64)), jnp.ones((64, 2))).compile().as_text()
    assert 8 * 64 * 4 <= largest_operand(parse(text)) <= 4096 * 8 * 4
    assert largest_operand(parse(jax.jit(jnp.sin).lower(jnp.ones((64, 64))).compile().as_text())) == 0
