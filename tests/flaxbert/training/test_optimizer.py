"""The optimizer is the reference's: a plain port of it takes the same hundred steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.config import PRESETS, OptimizerConfig
from flaxbert.model.pretraining import initialize
from flaxbert.sharding import path_name
from flaxbert.training.optimizer import NOT_DECAYED, learning_rate_schedule, make_optimizer

SHAPES = {
    "layers": {"query": {"kernel": (3, 4, 2), "bias": (3, 2)}, "mlp_norm": {"scale": (3, 4), "bias": (3, 4)}},
    "word": {"embedding": (7, 4)},
    "nsp": {"kernel": (4, 2), "bias": (2,)},
}
DECAYED = {"layers/query/kernel", "word/embedding", "nsp/kernel"}


def rate(config, steps, step):
    """The reference's curve, spec section 4."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    return config.learning_rate * (1 - min(step, steps) / steps)


def plain_update(config, steps, step, params, moments, gradients):
    """optimization.py of the reference for one step, in float64, on dictionaries of flat names."""
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    for name, g in gradients.items():
        g = g.astype(np.float64) * min(1.0, config.clip_norm / norm)
        m, v = moments[name]
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g**2
        moments[name] = m, v
        update = m / (np.sqrt(v) + config.epsilon)
        if name in DECAYED:
            update = update + config.weight_decay * params[name]
        params[name] = params[name] - rate(config, steps, step) * update


def flat(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("config", [
    OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.3, b1=0.8, b2=0.98, epsilon=1e-3, clip_norm=0.1),
])  # fmt: skip
def test_a_hundred_steps_equal_a_plain_port_of_the_reference(config):
    """Gradients from far below to far above the clipping norm. A hundred float32 updates of at most 0.05 each round
    parameters of size one by some 1e-7 each.
    """
    generator = np.random.default_rng(0)
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))

    def draw(scale):
        return jax.tree.unflatten(structure, [generator.normal(0, scale, s).astype(np.float32) for s in shapes])

    params = draw(1.0)
    expected = {name: leaf.astype(np.float64) for name, leaf in flat(params).items()}
    moments = {name: (np.zeros(leaf.shape), np.zeros(leaf.shape)) for name, leaf in expected.items()}
    optimizer = make_optimizer(config, steps=100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    clipped = set()
    for step in range(100):
        gradients = draw(10.0 ** generator.uniform(-5, 2))
        clipped.add(bool(optax.tree.norm(gradients) > config.clip_norm))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        plain_update(config, 100, step, expected, moments, flat(gradients))
        for name, leaf in flat(params).items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{name}, step {step}")
    assert clipped == {True, False}
    for name, (m, v) in moments.items():
        np.testing.assert_allclose(flat(state[1].m)[name], m, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(flat(state[1].v)[name], v, rtol=1e-4, atol=1e-10)


def test_no_bias_correction_and_epsilon_outside_the_root():
    """On the first update m = 0.1 g and v = 0.001 g^2: the step is far from the lr * sign(g) of a corrected Adam."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=100.0, epsilon=1e-2)
    optimizer, params = make_optimizer(config, steps=10), {"kernel": jnp.zeros(3)}
    gradient = np.array([0.5, -2.0, 1e-3], np.float32)
    updates, _ = optimizer.update({"kernel": jnp.asarray(gradient)}, optimizer.init(params), params)
    expected = -0.1 * gradient / (np.sqrt(0.001) * np.abs(gradient) + 1e-2)
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("steps, warmup", [(100, 10), (100, 0), (100, 1), (100, 100), (7, 3), (1, 0), (1, 1)])
def test_the_learning_rate_at_every_step(steps, warmup):
    config = OptimizerConfig(learning_rate=1e-4, warmup_steps=warmup)
    found = [float(learning_rate_schedule(config, steps)(step)) for step in range(steps + 3)]
    np.testing.assert_allclose(found, [rate(config, steps, step) for step in range(steps + 3)], rtol=1e-5, atol=1e-11)
    assert found[-1] == found[steps] == 0


def test_the_learning_rate_starts_at_zero_and_drops_where_warm_up_ends():
    curve = learning_rate_schedule(OptimizerConfig(learning_rate=1e-4, warmup_steps=100), 1000)
    assert curve(0) == 0
    assert curve(99) == pytest.approx(0.99e-4)
    assert curve(100) == pytest.approx(0.9e-4), "by the factor 1 - warmup / steps"
    assert learning_rate_schedule(OptimizerConfig(learning_rate=1e-4, warmup_steps=0), 1000)(0) == pytest.approx(1e-4)


def test_the_learning_rate_of_a_million_steps_is_exact_enough():
    curve = learning_rate_schedule(OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000), 1_000_000)
    for step in (9_999, 10_000, 123_457, 999_999):
        config = OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000)
        assert float(curve(step)) == pytest.approx(rate(config, 1_000_000, step), rel=1e-4, abs=1e-11)


def test_biases_and_layer_norms_of_the_model_are_not_decayed_and_all_else_is():
    """By name: under scanned layers every one of them has two axes."""
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=90)
    names = flat(jax.eval_shape(lambda: initialize(config, jax.random.key(0))))
    spared = {name for name in names if NOT_DECAYED.search(name)}
    assert spared == {name for name in names if name.endswith(("/bias", "/scale"))}
    assert names.keys() - spared == {name for name in names if name.endswith(("/kernel", "/embedding"))}
    assert {"nsp/kernel", "encoder/embeddings/word/embedding"} <= names.keys() - spared


def test_decay_is_decoupled_and_inside_the_learning_rate():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.01)
    params = {"kernel": jnp.full(3, 2.0), "bias": jnp.full(3, 2.0)}
    optimizer = make_optimizer(config, steps=10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.01 * 2.0, rtol=1e-6)
    assert (updates["bias"] == 0).all()


def test_moments_are_float32():
    state = make_optimizer(OptimizerConfig(), 10).init({"kernel": jnp.zeros(3, jnp.bfloat16)})
    assert state[1].m["kernel"].dtype == state[1].v["kernel"].dtype == jnp.float32
