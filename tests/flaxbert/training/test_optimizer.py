"""The optimizers are the published ones: plain ports of them, tensor by tensor, take the same hundred steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.config import PRESETS, MeshConfig, OptimizerConfig
from flaxbert.model.pretraining import BertForPreTraining, initialize
from flaxbert.sharding import make_mesh, path_name, state_shardings
from flaxbert.training.objective import loss_and_sums
from flaxbert.training.optimizer import NOT_DECAYED, clip_to_norm, make_optimizer
from flaxbert.training.schedule import learning_rate_schedule

NAMES = ("adam", "adamw", "lamb")
STEPS = 100
# A hundred float32 updates, each of at most a hundredth of a parameter of size one or less, round it by some 1e-7 each.
TOLERANCE = 1e-5


def plain_update(config, step, params, moments, gradients):
    """One step in float64 on a dictionary of tensors, those of each layer apart: optimization.py of the reference,
    Loshchilov and Hutter (2019) Algorithm 2, You et al. (2020) Algorithm 2. Returns the norm of the gradients.
    """
    warming = step < config.warmup_steps
    rate = config.learning_rate * (step / config.warmup_steps if warming else 1 - step / STEPS)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    for name, g in gradients.items():
        g = g.astype(np.float64) * min(1.0, config.clip_norm / norm)
        m, v = moments[name]
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g**2
        moments[name] = m, v
        if config.name != "adam":
            m, v = m / (1 - config.b1 ** (step + 1)), v / (1 - config.b2 ** (step + 1))
        update = m / (np.sqrt(v) + config.epsilon)
        if not name.endswith(("bias", "norm/scale")):
            update = update + config.weight_decay * params[name]
            if config.name == "lamb":
                update = update * np.linalg.norm(params[name]) / np.linalg.norm(update)
        params[name] = params[name] - rate * update
    return norm


def flat(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def tensors(tree):
    """Flat names, each layer a tensor of its own: `encoder/layers/mlp/up/kernel` becomes `encoder/0/mlp/up/kernel`."""
    found = {}
    for name, leaf in flat(tree).items():
        before, stacked, after = name.partition("/layers/")
        layers = enumerate(leaf) if stacked else [("", leaf)]
        found |= {f"{before}/{layer}/{after}" if stacked else name: part for layer, part in layers}
    return found


def updater(optimizer):
    """(gradients, state, params) → params and state after the update."""

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return update


@pytest.fixture(scope="module")
def gradients_of(experiment, batch_of):
    """(params, seed) → the gradients of the objective on a batch, without dropout, times `scale`."""
    model = BertForPreTraining(experiment.model)

    @jax.jit
    def gradients(params, batch, scale):
        return jax.grad(lambda params: scale * loss_and_sums(batch, *model.apply({"params": params}, batch))[0])(params)

    return lambda params, seed, scale=1.0: gradients(params, batch_of(seed), scale)


@pytest.fixture(scope="module")
def initial(experiment):
    """Parameters whose biases and scales are drawn too, and whose layers differ in size: at zero there is no decay to
    see, and among equal norms no trust ratio.
    """

    def draw(path, leaf):
        name = path_name(path)
        if NOT_DECAYED.search(name):
            return leaf + generator.normal(0, 0.3, leaf.shape).astype(np.float32)
        return leaf * np.float32([1, 30]).reshape(-1, *[1] * (leaf.ndim - 1)) if "/layers/" in name else leaf

    generator = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(draw, initialize(experiment.model, jax.random.key(0)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [
    {}, dict(warmup_steps=0, weight_decay=0.3, b1=0.8, b2=0.98, epsilon=1e-3, clip_norm=0.1),
])  # fmt: skip
def test_a_hundred_steps_equal_a_plain_port(name, settings, gradients_of, initial, assert_parity):
    """On the gradients of a model, scaled to lie far below and far above the clipping norm."""
    config = OptimizerConfig(name=name, **(dict(learning_rate=1e-2, warmup_steps=10) | settings))
    optimizer = make_optimizer(config, learning_rate_schedule(config, STEPS))
    params, worst, clipped = initial, 0.0, set()
    state, update = optimizer.init(params), updater(optimizer)
    expected = {name: leaf.astype(np.float64) for name, leaf in tensors(params).items()}
    moments = {name: (np.zeros(leaf.shape), np.zeros(leaf.shape)) for name, leaf in expected.items()}
    for step in range(STEPS):
        gradients = gradients_of(params, step, scale=10.0 ** (step % 5 - 3))
        params, state = update(gradients, state, params)
        norm = plain_update(config, step, expected, moments, tensors(gradients))
        clipped.add(norm > config.clip_norm)
        for name, leaf in tensors(params).items():
            worst = max(worst, abs(leaf - expected[name]).max() / max(1, abs(expected[name]).max()))
    assert clipped == {True, False}
    what = f"parameters in {STEPS} steps of {config.name}, over the tensor's largest entry or one"
    assert_parity(what, "a plain port of the published update, layer by layer", worst, TOLERANCE)
    m, v = tensors(state[1].m), tensors(state[1].v)
    for name, (first, second) in moments.items():
        np.testing.assert_allclose(m[name], first, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(v[name], second, rtol=1e-4, atol=1e-10)


def test_adamw_equals_that_of_optax(gradients_of, initial, assert_parity):
    """optax takes 1 - b ** updates in float32, where b2 = 0.999 leaves 3e-5 of an early update of 1e-2 unsaid."""
    config = OptimizerConfig(name="adamw", learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, clip_norm=1.0)
    decayed = jax.tree_util.tree_map_with_path(lambda path, _: not NOT_DECAYED.search(path_name(path)), initial)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(
        learning_rate_schedule(config, STEPS), b1=config.b1, b2=config.b2, eps=config.epsilon, weight_decay=0.1,
        mask=decayed,
    ))  # fmt: skip
    ours = make_optimizer(config, learning_rate_schedule(config, STEPS))
    params, states, worst = initial, [ours.init(initial), theirs.init(initial)], 0.0
    step_ours, step_theirs = jax.jit(ours.update), jax.jit(theirs.update)
    for step in range(STEPS):
        gradients = gradients_of(params, step)
        found, states[0] = step_ours(gradients, states[0], params)
        expected, states[1] = step_theirs(gradients, states[1], params)
        difference = jax.tree.map(lambda a, b: float(abs(a - b).max()), found, expected)
        worst = max(worst, *jax.tree.leaves(difference))
        params = optax.apply_updates(params, found)
    assert_parity(f"updates in {STEPS} steps of adamw", "optax.adamw", worst, 1e-6)


def test_lamb_moves_each_tensor_of_each_layer_by_the_rate_times_its_norm(gradients_of, initial):
    """But not biases and LayerNorm, which move as AdamW moves them."""
    lamb, adamw = (OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=0) for name in ("lamb", "adamw"))
    gradients, moved = gradients_of(initial, 0), {}
    for config in (lamb, adamw):
        optimizer = make_optimizer(config, learning_rate_schedule(config, STEPS))
        moved[config.name] = tensors(jax.jit(optimizer.update)(gradients, optimizer.init(initial), initial)[0])
    for name, param in tensors(initial).items():
        if NOT_DECAYED.search(name):
            np.testing.assert_array_equal(moved["lamb"][name], moved["adamw"][name])
        else:
            assert np.linalg.norm(moved["lamb"][name]) == pytest.approx(0.01 * np.linalg.norm(param), rel=1e-5), name


def test_lamb_leaves_an_update_as_it_is_where_a_norm_is_zero():
    """Of the parameter: it would never move. Of the update: 0 / 0."""
    config = OptimizerConfig(name="lamb", learning_rate=0.1, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(config, learning_rate_schedule(config, STEPS))
    params = {"layers": {"kernel": jnp.stack([jnp.zeros(3), jnp.ones(3), jnp.ones(3)])}}
    gradients = {"layers": {"kernel": jnp.float32([[0.1, -0.1, 0.1], [0, 0, 0], [0.1, 0.1, 0.1]])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    expected = -0.1 * np.array([[1, -1, 1], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(updates["layers"]["kernel"], expected, rtol=1e-4)


def test_the_padding_of_the_vocabulary_stays_zero(gradients_of, experiment):
    """So it adds nothing to the norms that LAMB takes of the table."""
    config = OptimizerConfig(name="lamb", learning_rate=0.1, warmup_steps=0)
    optimizer = make_optimizer(config, learning_rate_schedule(config, STEPS))
    params = initialize(experiment.model, jax.random.key(0))
    state, update = optimizer.init(params), updater(optimizer)
    for step in range(3):
        params, state = update(gradients_of(params, step), state, params)
    table = np.asarray(params["encoder"]["embeddings"]["word"]["embedding"])
    assert (table[90:] == 0).all() and (params["mlm"]["bias"][90:] == 0).all()
    assert (abs(table[:90]).max(-1) > 0).all()


def test_lamb_takes_the_norm_of_whole_tensors_wherever_their_parts_lie(gradients_of, initial):
    config = OptimizerConfig(name="lamb", learning_rate=0.1, warmup_steps=0)
    optimizer = make_optimizer(config, learning_rate_schedule(config, STEPS))
    arguments = gradients_of(initial, 0), optimizer.init(initial), initial
    expected = jax.jit(optimizer.update)(*arguments)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    placed = tuple(state_shardings(argument, mesh) for argument in arguments)
    with jax.set_mesh(mesh):
        update = jax.jit(optimizer.update, in_shardings=placed, out_shardings=placed[:2])
        found = update(*jax.device_put(arguments, placed))
    assert not found[0]["encoder"]["layers"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), found, expected)


def test_no_bias_correction_and_epsilon_outside_the_root():
    """On the first update m = 0.1 g and v = 0.001 g^2: the step is far from the lr * sign(g) of a corrected Adam."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=100.0, epsilon=1e-2)
    optimizer, params = make_optimizer(config, learning_rate_schedule(config, 10)), {"kernel": jnp.zeros(3)}
    gradient = np.array([0.5, -2.0, 1e-3], np.float32)
    updates, _ = optimizer.update({"kernel": jnp.asarray(gradient)}, optimizer.init(params), params)
    expected = -0.1 * gradient / (np.sqrt(0.001) * np.abs(gradient) + 1e-2)
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


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
    optimizer = make_optimizer(config, learning_rate_schedule(config, 10))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.01 * 2.0, rtol=1e-6)
    assert (updates["bias"] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_float32(name):
    config = OptimizerConfig(name=name)
    state = make_optimizer(config, learning_rate_schedule(config, 10)).init({"kernel": jnp.zeros(3, jnp.bfloat16)})
    assert state[1].m["kernel"].dtype == state[1].v["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("most, norm, expected", [(2.0, 5.0, 2.0), (7.0, 5.0, 5.0), (1e39, 5.0, 5.0), (1.0, 0.0, 0.0)])
def test_clipping_scales_to_the_norm_and_never_makes_a_number_none(most, norm, expected):
    """1e39, which turns clipping off, is beyond float32."""
    gradients = {"a": jnp.float32([0.6, 0.0]) * norm, "b": jnp.float32([[-0.8]]) * norm}
    found, _ = clip_to_norm(most).update(gradients, optax.EmptyState())
    assert float(optax.tree.norm(found)) == pytest.approx(expected)
