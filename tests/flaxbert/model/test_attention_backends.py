"""Every backend of attention gives what the plain one gives, keeps sequences apart, and refuses what it cannot do."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import MeshConfig
from flaxbert.model import fused_gpu
from flaxbert.model.attention import Request, attention, refusal
from flaxbert.model.dropout import row_seeds
from flaxbert.model.fused_blocks import Inputs
from flaxbert.model.library_attention import cudnn_attention, splash_attention
from flaxbert.sharding import make_mesh

B, S, H, K = 4, 128, 4, 32
PACKED, PADDED, EMPTY, FULL = range(B)

# Of numbers of size one, sums of 128 of them in another order: 128 roundings at worst, their square root as a rule.
FLOAT32 = dict(rtol=2e-5, atol=5e-6)
# Both round inputs, probabilities and results to 8 bits of mantissa; the plain one, which XLA differentiates, rounds
# the gradients of probabilities and of scores too. A rounding is 2^-9 of its number, and gradients here reach 4.
BFLOAT16 = dict(rtol=2**-6, atol=2**-5)


@pytest.fixture(scope="module")
def inputs():
    """Query, key, value and the gradient of the output."""
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=(B, S, H, K)), jnp.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def ids():
    ids = np.ones((B, S), np.int32)
    ids[PACKED] = np.repeat([1, 2, 3, 0], [50, 7, 41, 30])
    ids[PADDED, 77:] = 0
    ids[EMPTY] = 0
    return jnp.asarray(ids)


def output_and_gradients(function, inputs, dtype=jnp.float32):
    """The output, and the gradients of query, key and value, as float32."""
    *arrays, above = (x.astype(dtype) for x in inputs)

    def both(*arrays):
        output, back = jax.vjp(function, *arrays)
        return output, *back(above)

    return [np.asarray(x, np.float32) for x in jax.jit(both)(*arrays)]


def by(backend, ids, rate, rows=None, **named):
    """Attention of query, key and value, whose first axis has the rows of those numbers; None: 0, 1, …"""
    def function(query, *others):
        numbers = jnp.arange(len(query)) if rows is None else rows
        seeds = row_seeds(jax.random.key(5), numbers) if rate else None
        return attention(query, *others, ids, rate, seeds, backend=backend, **named)

    return function


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, FLOAT32), (jnp.bfloat16, BFLOAT16)])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_fused_attention_equals_the_plain_one(inputs, ids, rate, dtype, tolerance):
    expected = output_and_gradients(by("xla", ids, rate), inputs, dtype)
    for found, plain in zip(output_and_gradients(by("fused", ids, rate), inputs, dtype), expected, strict=True):
        np.testing.assert_allclose(found, plain, **tolerance)


def test_fused_dropout_drops_the_very_same_probabilities(inputs):
    """Values that are parts of the identity let the probabilities through: what is zero in one is zero in the other."""
    query, key, _, _ = inputs
    whole, rows = jnp.ones((B, S), jnp.int32), jnp.asarray([3, 1, 4, 159])
    functions = [jax.jit(by(backend, whole, 0.3, rows)) for backend in ("xla", "fused")]
    for part in range(S // K):
        value = np.zeros((B, S, H, K), np.float32)
        value[:, part * K:(part + 1) * K] = np.eye(K)[None, :, None]
        plain, fused = (np.asarray(function(query, key, value)) for function in functions)
        np.testing.assert_array_equal(fused == 0, plain == 0)
        assert 0.28 < (fused == 0).mean() < 0.32


@pytest.mark.parametrize("size, heads", [(64, 2), (128, 1), (96, 4), (64, 3)])
def test_fused_attention_takes_heads_of_other_sizes(size, heads):
    """Two of 64 fill the lanes, three do not and go together. Blocks of 256 queries, and two of them."""
    generator = np.random.default_rng(1)
    inputs = [jnp.asarray(generator.normal(size=(1, 512, heads, size)), jnp.float32) for _ in range(4)]
    ids = jnp.asarray(np.repeat([1, 2, 0], [300, 200, 12])[None], jnp.int32)
    expected = output_and_gradients(by("xla", ids, 0.1), inputs)
    for found, plain in zip(output_and_gradients(by("fused", ids, 0.1), inputs), expected, strict=True):
        np.testing.assert_allclose(found, plain, **FLOAT32)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, FLOAT32), (jnp.bfloat16, BFLOAT16)])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_kernels_for_gpu_equal_the_plain_attention(inputs, ids, rate, dtype, tolerance):
    """Interpreted: two blocks of queries against two of keys. The very same dropout: another mask would be far off."""
    *arrays, above = (x.astype(dtype) for x in inputs)
    key = jax.random.key(5)
    words = jax.lax.bitcast_convert_type(row_seeds(key, jnp.arange(B)), jnp.int32).reshape(-1)
    asked = Inputs(*arrays, ids, jnp.concatenate([jnp.zeros(1, jnp.int32), words]))
    found = [fused_gpu.forward(rate, True, asked), *fused_gpu.backward(rate, True, asked, above)]
    for one, plain in zip(found, output_and_gradients(by("xla", ids, rate), inputs, dtype), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), plain, **tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernels_for_gpu_can_be_lowered_and_write_no_scores(dtype):
    """To Triton's language, on a machine without a GPU: what its compiler makes of it is not seen."""
    def gradients(ids, rows, above, *arrays):
        output, back = jax.vjp(by("fused", ids, 0.1, rows), *arrays)
        return output, back(above)

    arrays = [jax.ShapeDtypeStruct((2, 512, 12, 64), dtype)] * 4
    ids, rows = jax.ShapeDtypeStruct((2, 512), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
    device = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        exported = jax.export.export(jax.jit(gradients), platforms=["cuda"], disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
        ])(ids, rows, *arrays)  # fmt: skip
    text = exported.mlir_module()
    assert text.count("triton") >= 3 and "512x512" not in text


@pytest.mark.parametrize("backend, rate", [("fused", 0.1), ("splash", 0.0)])
def test_what_one_sequence_holds_changes_no_bit_of_another(inputs, ids, backend, rate):
    """Outputs and gradients, of padding too."""
    function = by(backend, ids, rate) if backend == "fused" else lambda *x: splash_attention(*x, ids, interpret=True)
    before = output_and_gradients(function, inputs)
    for asked in range(4):
        chosen = np.asarray(ids == asked)[:, :, None, None] & (np.arange(B) == PACKED)[:, None, None, None]
        after = output_and_gradients(function, [jnp.where(chosen, 3 - 2 * x, x) for x in inputs])
        for one, other in zip(before, after, strict=True):
            own = np.broadcast_to(chosen, one.shape)
            np.testing.assert_array_equal(one[~own], other[~own])
            assert (one != other)[own].mean() > 0.9


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, FLOAT32), (jnp.bfloat16, BFLOAT16)])
def test_splash_attention_equals_the_plain_one(inputs, ids, dtype, tolerance):
    expected = output_and_gradients(by("xla", ids, 0.0), inputs, dtype)
    found = output_and_gradients(lambda *x: splash_attention(*x, ids, interpret=True), inputs, dtype)
    for one, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, plain, **tolerance)


def test_attention_by_lengths_equals_the_plain_one_at_every_token(inputs, ids):
    """What is given to cuDNN, computed by XLA: the lengths and the zeros at padding are ours. Not of packed rows."""
    *arrays, above = (x[PADDED:] for x in inputs)
    ids = ids[PADDED:]
    real = np.asarray(ids > 0)[:, :, None, None]
    inputs = [*arrays, jnp.where(real, above, 0)]
    expected = output_and_gradients(by("xla", ids, 0.0), inputs)
    found = output_and_gradients(lambda *x: cudnn_attention(*x, ids, implementation="xla"), inputs)
    np.testing.assert_allclose(found[0], np.where(real, expected[0], 0), **FLOAT32)
    for one, plain in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, plain, **FLOAT32)


@pytest.mark.parametrize("mesh", [dict(data=4), dict(data=2, tensor=2), dict(fsdp=2, tensor=2)])
def test_a_mesh_changes_nothing_of_fused_attention(inputs, ids, mesh):
    """Not a bit: each device computes its rows and heads as one device alone does, and drops what it would drop."""
    rows = jnp.asarray([9, 8, 7, 6])
    heads = [jnp.tile(x, (1, 1, 2, 1)) for x in inputs]  # 8 of 32: two devices have whole lanes of them
    expected = output_and_gradients(by("fused", ids, 0.1, rows), heads)
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        found = output_and_gradients(by("fused", ids, 0.1, rows), heads)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


ABLE = Request(rows=8, length=512, heads=12, head_size=64, dtype=jnp.dtype("bfloat16"), dropout_rate=0.0, packed=False)


@pytest.mark.parametrize("backend, platform, change, words", [
    ("fused", "tpu", dict(length=520), "multiple of 128 and at most 1024, found 520"),
    ("fused", "tpu", dict(length=1152), "multiple of 128 and at most 1024, found 1152"),
    ("fused", "tpu", dict(heads=9, head_size=80), "cannot put 9 heads of size 80 together"),
    ("fused", "gpu", dict(heads=4, head_size=96), "needs a head size of 32, 64, 128 on gpu, found 96"),
    ("splash", "tpu", dict(dropout_rate=0.1), "has no dropout, and model.attention_dropout is 0.1"),
    ("splash", "tpu", dict(length=64), "multiple of 128, found 64"),
    ("splash", "cpu", {}, "does not run on cpu"),
    ("cudnn", "gpu", dict(dropout_rate=0.1), "has no dropout"),
    ("cudnn", "gpu", dict(packed=True), "takes rows of one sequence each, and these are packed"),
    ("cudnn", "gpu", dict(dtype=jnp.dtype("float32")), "needs bfloat16, found float32"),
    ("cudnn", "gpu", dict(head_size=60), "multiple of 8 and at most 256, found 60"),
    ("cudnn", "tpu", {}, "does not run on tpu"),
    ("flash", "gpu", {}, "is not one of xla, fused, splash, cudnn"),
])  # fmt: skip
def test_a_backend_refuses_what_it_cannot_do_and_nothing_else(backend, platform, change, words):
    assert words in refusal(backend, ABLE._replace(**change), platform)
    if change:
        assert refusal(backend, ABLE, platform) is None


@pytest.mark.parametrize("backend, rate, words", [
    ("splash", 0.1, "attention backend splash has no dropout"), ("cudnn", 0.0, "cudnn takes rows of one sequence each"),
    ("flash", 0.0, "attention backend flash is not one of"),
])  # fmt: skip
def test_attention_itself_refuses(inputs, ids, backend, rate, words):
    with pytest.raises(ValueError, match=words):
        by(backend, ids, rate)(*inputs[:3])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed")
@pytest.mark.parametrize("backend, rate", [("fused", 0.1), ("splash", 0.0)])
@pytest.mark.parametrize("length, heads, size, dtype", [
    (512, 12, 64, "bfloat16"), (1024, 12, 64, "float32"), (256, 4, 32, "bfloat16"), (512, 3, 64, "bfloat16"),
    (384, 4, 96, "bfloat16"), (256, 1, 128, "bfloat16"),
])  # fmt: skip
def test_the_tpu_compiler_takes_the_kernels_and_writes_no_scores(backend, rate, length, heads, size, dtype):
    from flaxbert.tools.topologies import open_topology

    def gradients(ids, rows, above, *arrays):
        return jax.vjp(by(backend, ids, rate, rows), *arrays)[1](above)

    arrays = [jax.ShapeDtypeStruct((2, length, heads, size), dtype)] * 4
    with jax.set_mesh(make_mesh(MeshConfig(), open_topology("v5e:1x1"))):
        ids, rows = jax.ShapeDtypeStruct((2, length), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
        compiled = jax.jit(gradients).lower(ids, rows, *arrays).compile()
    text = compiled.as_text()
    assert "tpu_custom_call" in text and f"[2,{heads},{length},{length}]" not in text
