"""The encoder is the paper's: a plain numpy BERT gives the same numbers, padding and packing change none of them."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import PRESETS
from flaxbert.model import encoder as encoder_module
from flaxbert.model.encoder import UNROLLED_LAYERS, Encoder, EncoderLayer, activation, gather_positions, layer_norm
from flaxbert.model.pretraining import BertForPreTraining, initialize

# Hidden states are of size one after LayerNorm; sums of some dozens of float32 terms, taken in another order, differ
# by a few units of 1e-7, three layers and small variances under LayerNorm's root make that a few of 1e-6.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@functools.cache
def encoder(config, dtype=jnp.float32):
    """The compiled encoder: (parameters, batch) → hidden states [B, S, D]."""
    model = BertForPreTraining(config, dtype=dtype)
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch, method="encode"))


@pytest.fixture(scope="module")
def encode(small_config, small_params):
    return lambda batch: np.asarray(encoder(small_config)(small_params, batch))


@pytest.fixture(scope="module")
def initial():
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=1024)
    return jax.jit(initialize, static_argnums=0)(config, jax.random.key(0))


def named(tree):
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)) for path, leaf in
            jax.tree_util.tree_leaves_with_path(tree)]  # fmt: skip


def test_initial_weights_are_a_truncated_normal_that_is_not_rescaled(initial):
    """Cut at two sigma without rescaling, 0.02 leaves a deviation of 0.0176 (0.8796 of it). The bound is five standard
    errors of a sample's deviation.
    """
    weights = [(name, leaf) for name, leaf in named(initial) if name.endswith(("kernel", "embedding"))]
    assert len(weights) == 12
    for name, leaf in weights:
        deviation = 0.02 * 0.87963
        assert abs(leaf.std() / deviation - 1) < 5 / np.sqrt(2 * leaf.size), name
        assert abs(leaf.mean()) < 5 * deviation / np.sqrt(leaf.size), name
        assert np.abs(leaf).max() <= 0.04, name
        assert np.abs(leaf).max() > 0.037, name


def test_the_padding_of_the_vocabulary_begins_as_zeros(small_config):
    table = initialize(small_config, jax.random.key(0))["encoder"]["embeddings"]["word"]["embedding"]
    assert table.shape[0] == 128 > small_config.vocab_size == 90
    assert (np.asarray(table[90:]) == 0).all()
    assert (np.abs(table[:90]).max(-1) > 0.02).all(), "a real row has a large weight among its 24"


def test_initial_biases_are_zero_and_scales_one(initial):
    others = [(name, leaf) for name, leaf in named(initial) if not name.endswith(("kernel", "embedding"))]
    assert {name.rpartition("/")[2] for name, _ in others} == {"bias", "scale"}
    for name, leaf in others:
        assert (leaf == name.endswith("scale")).all(), name


def test_no_two_initial_tensors_and_no_two_layers_are_alike(initial):
    parts = []
    for name, leaf in named(initial):
        if name.endswith(("kernel", "embedding")):
            parts += [part.ravel()[:200] for part in (leaf if "/layers/" in name else [leaf])]
    assert len({part.tobytes() for part in parts}) == len(parts) == 18
    correlations = np.corrcoef(np.stack(parts)) - np.eye(len(parts))
    assert np.abs(correlations).max() < 5 / np.sqrt(200)


def test_everything_is_float32(initial):
    assert {leaf.dtype for _, leaf in named(initial)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("form", ["gelu", "gelu_new"])
def test_gelu_is_the_form_that_the_config_names(small_config, form):
    config = dataclasses.replace(small_config, activation=form)
    points = np.linspace(-6, 6, 97)
    np.testing.assert_allclose(activation(config, jnp.asarray(points, jnp.float32)), gelu(form, points), atol=2e-6)


def gelu(form, x):
    if form == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_the_two_forms_of_gelu_differ():
    points = np.linspace(-4, 4, 97)
    assert 1e-4 < np.abs(gelu("gelu", points) - gelu("gelu_new", points)).max() < 1e-3


def test_layer_norm_survives_a_mean_far_larger_than_the_deviation(small_config):
    """In float32 the mean of the squares less the square of the mean would be noise here: 10^2 against 10^-6. What is
    left is the rounding of the mean: each of 24 additions to a sum of up to 240 errs by 8e-6 at most, so the mean by
    8e-6 too, which is 1 % of the deviation.
    """
    x = np.float32(10 + 1e-3 * np.random.default_rng(0).normal(size=(4, 24)))
    found = layer_norm(small_config).apply({"params": {"scale": np.ones(24), "bias": np.zeros(24)}}, x)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(found, exact, atol=0.01)


def plain_bert(config, params, batch):
    """The hidden states of unpacked rows by the page of the paper, in float64 and without a batch."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["encoder"]

    def norm(x, at):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / deviation * at["scale"] + at["bias"]

    def layer(x, real, at):
        y = np.zeros_like(x)
        for head in range(config.num_heads):
            q, k, v = (
                x @ at["attention"][name]["kernel"][:, head] + at["attention"][name]["bias"][head]
                for name in ("query", "key", "value")
            )
            scores = np.where(real, q @ k.T / math.sqrt(config.head_size), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            y += weights / weights.sum(-1, keepdims=True) @ v @ at["attention"]["output"]["kernel"][head]
        x = norm(x + y + at["attention"]["output"]["bias"], at["attention_norm"])
        up, down = at["mlp"]["up"], at["mlp"]["down"]
        y = gelu(config.activation, x @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]
        return norm(x + y, at["mlp_norm"])

    rows, table = [], params["embeddings"]
    for ids, segments, positions, sequence in zip(*(batch[name] for name in (
        "input_ids", "segment_ids", "position_ids", "sequence_ids"
    ))):  # fmt: skip
        x = table["word"]["embedding"][ids] + table["segment"]["embedding"][segments]
        x = norm(x + table["position"]["embedding"][positions], table["norm"])
        for number in range(config.num_layers):
            x = layer(x, sequence == 1, jax.tree.map(lambda leaf: leaf[number], params["layers"]))
        rows.append(x)
    return np.stack(rows)


@pytest.mark.parametrize("form", ["gelu", "gelu_new"])
def test_the_encoder_equals_a_plain_numpy_bert(small_config, small_params, random_batch, form):
    config = dataclasses.replace(small_config, activation=form)
    batch = random_batch([(13,), (20,)])
    found = encoder(config)(small_params, batch)
    real = batch["sequence_ids"] > 0
    np.testing.assert_allclose(np.asarray(found)[real], plain_bert(config, small_params, batch)[real], **TOLERANCE)


def test_padding_does_not_change_the_encoding_of_real_tokens(random_batch, encode):
    """Neither its length nor what stands in it."""
    batch = random_batch([(16,)])
    wide = {name: np.pad(x, ((0, 0), (0, 24 if x.shape == (1, 16) else 0))) for name, x in batch.items()}
    expected = encode(batch)
    np.testing.assert_allclose(encode(wide)[:, :16], expected, **TOLERANCE)
    wide["input_ids"][:, 16:] = 7
    wide["segment_ids"][:, 16:] = 1
    wide["position_ids"][:, 16:] = 3
    np.testing.assert_allclose(encode(wide)[:, :16], expected, **TOLERANCE)


@pytest.mark.parametrize("lengths", [(9, 14), (5, 20, 8), (3, 3, 3)])
def test_packed_sequences_are_encoded_as_they_are_alone(random_batch, encode, lengths):
    packed = random_batch([lengths], row_length=40)
    together = encode(packed)[0]
    start = 0
    for size in lengths:
        alone = {name: np.roll(x, -start, axis=1) for name, x in packed.items() if x.shape == (1, 40)}
        alone["sequence_ids"] = (np.arange(40) < size).astype(np.int32)[None]
        np.testing.assert_allclose(together[start:start + size], encode(alone)[0, :size], **TOLERANCE)
        start += size


def test_a_row_of_padding_gives_finite_states_and_gradients(small_config, small_params, random_batch):
    batch = random_batch([(12,), ()], row_length=20)

    def total(params):
        return jnp.sum(encoder(small_config)(params, batch) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(total))(small_params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_scan_applies_the_layers_one_by_one(small_config, small_params, random_batch, encode):
    batch = random_batch([(13,), (20,)])
    x = BertForPreTraining(small_config).apply(
        {"params": small_params}, batch, jnp.arange(len(batch["input_ids"])),
        method=lambda model, batch, rows: model.encoder.embeddings(batch, rows),
    )  # fmt: skip
    layer = jax.jit(EncoderLayer(small_config, jnp.float32).apply)
    for number in range(small_config.num_layers):
        own = jax.tree.map(lambda leaf: leaf[number], small_params["encoder"]["layers"])
        x, _ = layer({"params": own}, x, None, batch["sequence_ids"])
    np.testing.assert_allclose(encode(batch), x, **TOLERANCE)


@pytest.mark.parametrize("layers", [4, 5])
def test_any_number_of_layers_is_applied_once_each(layers, small_config):
    """Around the number that one round of the scan holds. A layer that only adds one, through its last bias, counts."""
    config = dataclasses.replace(small_config, num_layers=layers)
    shapes = jax.eval_shape(lambda: initialize(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params["encoder"]["layers"]["mlp_norm"]["bias"] = jnp.arange(1.0, layers + 1)[:, None] + jnp.zeros((layers, 24))
    batch = {name: jnp.ones((1, 4), jnp.int32) for name in ("input_ids", "segment_ids", "position_ids", "sequence_ids")}
    x = encoder(config)(params, batch)
    np.testing.assert_array_equal(x, np.full(x.shape, layers))


@pytest.mark.parametrize("layers, options", [
    (1, {}), (3, {}), (6, {}), (3, {"rematerialization": "products"}), (3, {"rematerialization": "layers"}),
    (3, {"backend": "fused"}),
])  # fmt: skip
def test_what_the_last_layer_gives_at_some_positions_is_what_it_gives_there_among_all(
    layers, options, small_config, random_batch, monkeypatch
):
    """With dropout, and the gradients too. A position may come twice, and padding may be read."""
    monkeypatch.setitem(UNROLLED_LAYERS, "cpu", 4)
    config = dataclasses.replace(small_config, num_layers=layers)
    length = 20
    if options.get("backend") == "fused":  # whose blocks are that long and wide
        config, length = dataclasses.replace(config, hidden_size=128, num_heads=2, max_length=128), 128
    model = Encoder(config, False, jnp.float32, **options)
    params = initialize(config, jax.random.key(0))["encoder"]
    batch = random_batch([(7, 12), (13,)], row_length=length)
    positions = np.array([[0, 3, 3, 9, 18], [12, 1, 0, 5, 19]], np.int32)
    weights = np.random.default_rng(1).normal(size=(2, 5, config.hidden_size)).astype(np.float32)

    def of_all(params, **rngs):
        return gather_positions(model.apply({"params": params}, batch, **rngs), positions)

    def of_some(params, **rngs):
        return model.apply({"params": params}, batch, positions, **rngs)

    def pulled(states):
        def total(params):
            found = states(params, rngs={"dropout": jax.random.key(5)})
            return jnp.sum(found * weights), found

        (_, found), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        return found, gradients

    expected, of_expected = pulled(of_all)
    found, gradients = pulled(of_some)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    for (name, ours), (_, theirs) in zip(named(gradients), named(of_expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5 * np.abs(theirs).max() + 1e-5, err_msg=name)


def test_the_last_layer_computes_what_is_read_of_it_alone(small_config, random_batch):
    """Of a layer, by XLA's count: those products alone that make keys and values, a sixth of all, are left whole."""
    config = dataclasses.replace(small_config, num_layers=1, hidden_size=240, feed_forward_size=960, max_length=40)
    params = jax.eval_shape(lambda: initialize(config, jax.random.key(0))["encoder"])
    batch = random_batch([(40,)] * 8)

    def flops(positions):
        run = jax.jit(lambda params: Encoder(config, True, jnp.float32).apply({"params": params}, batch, positions))
        return run.lower(params).cost_analysis()["flops"]

    whole, one = flops(None), flops(np.zeros((8, 1), np.int32))
    assert 2 / 12 < one / whole < 0.25
    assert flops(np.zeros((8, 40), np.int32)) == pytest.approx(whole, rel=0.01), "as many as there are"


def test_bfloat16_products_stay_close_to_float32(small_config, random_batch):
    """As initialised, where states have size one. Every product rounds its inputs to 8 bits (relative 2^-9); three
    layers of four rounded products each, errors adding as a random walk, leave about sqrt(12) 2^-9 = 0.7 %: asked for
    is 2 % of the states' root mean square.
    """
    params = jax.jit(initialize, static_argnums=0)(small_config, jax.random.key(0))
    batch = random_batch([(13,), (20,)])
    exact, low = (np.asarray(encoder(small_config, dtype)(params, batch)) for dtype in (jnp.float32, jnp.bfloat16))
    assert low.dtype == np.float32
    assert 0 < np.sqrt(((low - exact) ** 2).mean() / (exact**2).mean()) < 0.02


def test_dropout_is_off_unless_it_is_asked_for(small_config, small_params, random_batch):
    batch = random_batch([(13,), (20,)])
    model = BertForPreTraining(small_config, deterministic=False)

    @jax.jit
    def encode(key):
        return model.apply({"params": small_params}, batch, rngs={"dropout": key}, method="encode")

    first, again, other = encode(jax.random.key(1)), encode(jax.random.key(1)), encode(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rematerialization_keeps_less_in_memory(dtype, small_config, random_batch):
    """`products` keeps those of the dense layers, `layers` nothing of a layer but its input."""
    config = dataclasses.replace(small_config, num_layers=6)
    params = jax.eval_shape(lambda: initialize(config, jax.random.key(0)))
    batch = {name: jnp.repeat(x, 16, axis=0) for name, x in random_batch([(13,), (20,)]).items()}

    def temporaries(rematerialization):
        model = BertForPreTraining(config, dtype=dtype, rematerialization=rematerialization)

        def loss(params):
            return jnp.sum(model.apply({"params": params}, batch, method="encode") ** 2)

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, products, layers = (temporaries(each) for each in ("none", "products", "layers"))
    assert layers < 0.8 * products and products < 0.75 * none


@pytest.fixture
def gradients_on(small_config, random_batch, monkeypatch):
    """(platform, how to rematerialize) → a function of parameters that gives states and gradients, and parameters."""
    batch, options = random_batch([(7, 12), (13,)], row_length=20), {"rngs": {"dropout": jax.random.key(5)}}
    weights = np.random.default_rng(1).normal(size=(2, 20, small_config.hidden_size)).astype(np.float32)

    def on(platform, rematerialization):
        monkeypatch.setattr(encoder_module, "platform", lambda: platform)
        model = Encoder(small_config, False, jnp.float32, rematerialization)

        def total(params):
            found = model.apply({"params": params}, batch, **options)
            return jnp.sum(found * weights), found

        return total, initialize(small_config, jax.random.key(0))["encoder"]

    return on


@pytest.mark.parametrize("rematerialization", ["none", "products", "layers"])
def test_what_an_accelerator_computes_again_changes_no_number(rematerialization, gradients_on):
    """Nor any mask of dropout. Sums may be taken in another order."""
    results = []
    for platform, what in (("cpu", "none"), ("gpu", rematerialization)):
        total, params = gradients_on(platform, what)
        (_, states), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        results.append(named({"states": states, "gradients": gradients}))
    for (name, expected), (_, found) in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-6, err_msg=name)


@pytest.mark.parametrize("platform, states, wide", [("gpu", 4, {2}), ("cpu", 2, {4, 5})])
def test_what_the_gradient_of_a_layer_keeps(platform, states, wide, gradients_on, small_config):
    """Of its states [B, S, D] both normalised sums, and what the first products read, which is a line of tokens on a
    CPU; of [B, S, F] on an accelerator GELU's input and output, on a CPU what it need not compute again, which is one
    array less in JAX 0.12.
    """
    total, params = gradients_on(platform, "none")
    kept = jax.eval_shape(lambda params: jax.vjp(total, params, has_aux=True)[1], params)
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(kept) if leaf.dtype == jnp.float32]
    assert shapes.count((2, 20, small_config.hidden_size)) == states
    assert shapes.count((2, 20, small_config.mlp_size)) in wide
