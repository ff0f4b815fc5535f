"""Products of rounded operands: what they give, and that a CPU's library gets them as they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.model.products import dense_product, einsum, results_dtype
from flaxbert.sharding import make_mesh

DENSE = ("nd,df->nf", (64, 32), (32, 48))
TABLE = ("nd,vd->nv", (64, 32), (96, 32))
VALUES = ("bhqs,bshk->bqhk", (2, 4, 16, 24), (2, 24, 4, 8))
SCORES = ("bqhk,bshk->bhqs", (2, 16, 4, 8), (2, 24, 4, 8))


def drawn(*shapes):
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))


def by_numpy(subscripts, left, right, gradient):
    """(the product, its gradients) in float64 of what is rounded to bfloat16."""
    a, b, c = (rounded(x).astype(np.float64) for x in (left, right, gradient))
    operands, out = subscripts.split("->")
    first, second = operands.split(",")
    return (
        np.einsum(subscripts, a, b), np.einsum(f"{out},{second}->{first}", c, b),
        np.einsum(f"{first},{out}->{second}", a, c),
    )  # fmt: skip


def with_gradients(subscripts, dtype=jnp.bfloat16):
    def function(left, right, gradient):
        product, pull = jax.vjp(lambda left, right: einsum(subscripts, left, right, dtype), left, right)
        return product, *pull(gradient)

    return function


@pytest.mark.parametrize("subscripts, left, right", [DENSE, TABLE, SCORES, VALUES])
def test_operands_are_rounded_and_sums_are_not_in_both_directions(subscripts, left, right):
    left, right = drawn(left, right)
    gradient = drawn(jax.eval_shape(lambda a, b: jnp.einsum(subscripts, a, b), left, right).shape)[0]
    found = jax.jit(with_gradients(subscripts))(left, right, gradient)
    for ours, expected in zip(found, by_numpy(subscripts, left, right, gradient), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_gradients_have_the_type_of_their_operand():
    left, right, gradient = drawn((64, 32), (32, 48), (64, 48))
    _, of_left, of_right = with_gradients("nd,df->nf")(left.astype(jnp.bfloat16), right, gradient)
    assert (of_left.dtype, of_right.dtype) == (jnp.bfloat16, jnp.float32)


def test_float32_is_the_plain_product():
    left, right, gradient = drawn((64, 32), (32, 48), (64, 48))
    found = with_gradients("nd,df->nf", jnp.float32)(left, right, gradient)
    plain, pull = jax.vjp(lambda left, right: left @ right, left, right)
    for ours, theirs in zip(found, (plain, *pull(gradient)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("subscripts, left, right", [DENSE, TABLE])
@pytest.mark.parametrize("turned", ["operands", "results", "neither"])
def test_xla_hands_bfloat16_to_the_library_whatever_is_transposed_around(subscripts, left, right, turned):
    """What the library does not take XLA converts to float32, or, where it has found out too late, fails to run."""
    left, right = drawn(left, right)
    gradient = drawn((64, 48 if subscripts == DENSE[0] else 96))[0]
    expected = by_numpy(subscripts, left, right, gradient)

    def function(left, right, gradient):
        if turned == "operands":
            left, right, gradient = left.T, right.T, gradient.T
        found = with_gradients(subscripts)(left, right, gradient)
        return [x.T for x in found] if turned == "results" else found

    given = [x.T for x in (left, right, gradient)] if turned == "operands" else (left, right, gradient)
    compiled = jax.jit(function).lower(*given).compile()
    for ours, wanted in zip(compiled(*given), expected, strict=True):
        np.testing.assert_allclose(ours.T if turned == "results" else ours, wanted, rtol=1e-5, atol=1e-4)
    text = compiled.as_text()
    assert len(re.findall(r" dot\(", text)) == 3
    assert not re.findall(r"= f32\[\S+ convert\(", text), "an operand has been converted back"


@pytest.mark.parametrize("kernel", [(32, 48), (32, 4, 12), (4, 8, 48)])
def test_a_dense_layer_multiplies_over_the_axes_that_both_have(kernel):
    left_shape = (64, *kernel[:-1]) if kernel[0] == 4 else (64, 32)
    left, right = drawn(left_shape, kernel)
    axes = tuple(range(1, len(left_shape)))
    found = dense_product(jnp.bfloat16, left, right, ((axes, tuple(range(len(axes)))), ((), ())))
    expected = np.tensordot(rounded(left), rounded(right), len(axes))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mesh_divides_the_product():
    left, right, gradient = drawn((64, 32), (32, 48), (64, 48))
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    with jax.set_mesh(mesh):
        specs = ("data",), (None, "tensor"), ("data", "tensor")
        places = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in specs]
        given = [jax.device_put(x, place) for x, place in zip((left, right, gradient), places)]
        function = jax.jit(with_gradients("nd,df->nf"), out_shardings=(places[2], places[0], places[1]))
        compiled = function.lower(*given).compile()
        found = compiled(*given)
    assert "all-gather" not in compiled.as_text(), "sums of parts are sent, and no operand"
    for ours, expected in zip(found, by_numpy("nd,df->nf", left, right, gradient), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)


def test_between_products_a_cpu_works_in_float32():
    assert results_dtype(jnp.bfloat16) == results_dtype(jnp.float32) == jnp.float32
