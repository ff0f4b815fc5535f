"""The two heads: logits where they are asked for, tied to the embeddings, none for the padding of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model.encoder import activation, gather_positions
from flaxbert.model.pretraining import BertForPreTraining

# See test_encoder.py; logits here reach a size of ten.
TOLERANCE = dict(rtol=1e-5, atol=2e-5)


@pytest.fixture(scope="module")
def model(small_config):
    return BertForPreTraining(small_config)


@pytest.fixture(scope="module")
def logits(model, small_params):
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    return lambda batch, params=small_params: apply(params, batch)


def test_positions_are_gathered_row_by_row():
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    positions = np.array([[0, 6, 6], [3, 0, 1], [2, 2, 2]], np.int32)
    expected = np.stack([[x[b, p] for p in row] for b, row in enumerate(positions)])
    np.testing.assert_array_equal(gather_positions(x, positions), expected)


def test_gathering_gives_the_logits_that_all_positions_would(small_config, random_batch, logits):
    batch = random_batch([(9, 11), (20,)])
    everywhere = batch | {"masked_positions": np.broadcast_to(np.arange(20, dtype=np.int32), (2, 20))}
    mlm, nsp = logits(batch)
    assert mlm.shape == (2, 4, small_config.padded_vocab_size)
    assert nsp.shape == (2, 2, 2)
    assert mlm.dtype == nsp.dtype == jnp.float32
    all_mlm, _ = logits(everywhere)
    np.testing.assert_allclose(mlm, np.take_along_axis(np.asarray(all_mlm), batch["masked_positions"][..., None], 1),
                               **TOLERANCE)  # fmt: skip


def test_the_heads_are_those_of_the_reference(model, small_config, small_params, random_batch, logits):
    """MLM: dense, GELU, LayerNorm, the embeddings, a bias. NSP: dense, tanh, dense, on the [CLS] of each sequence."""
    batch = random_batch([(9, 11), (20,)])
    x = jax.jit(lambda params: model.apply({"params": params}, batch, method="encode"))(small_params)
    x = np.asarray(x, np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_params)
    mlm, nsp = logits(batch)

    y = np.stack([x[b, positions] for b, positions in enumerate(batch["masked_positions"])])
    y = y @ p["mlm"]["transform"]["kernel"] + p["mlm"]["transform"]["bias"]
    y = np.asarray(activation(small_config, jnp.asarray(y, jnp.float32)), np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-12)
    y = y * p["mlm"]["norm"]["scale"] + p["mlm"]["norm"]["bias"]
    expected = y @ p["encoder"]["embeddings"]["word"]["embedding"].T + p["mlm"]["bias"]
    np.testing.assert_allclose(mlm[..., :90], expected[..., :90], **TOLERANCE)

    first = np.stack([x[b, positions] for b, positions in enumerate(batch["cls_positions"])])
    pooled = np.tanh(first @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    np.testing.assert_allclose(nsp, pooled @ p["nsp"]["kernel"] + p["nsp"]["bias"], **TOLERANCE)


def test_packed_sequences_get_the_logits_they_get_alone(random_batch, logits):
    lengths = (9, 14, 12)
    packed = random_batch([lengths])
    packed["masked_positions"] = np.array([[3, 9 + 5, 9 + 14 + 7]], np.int32)
    mlm, nsp = logits(packed)
    starts = np.cumsum([0, *lengths[:-1]])
    for number, (start, size) in enumerate(zip(starts, lengths)):
        alone = {name: np.roll(x, -start, axis=1) for name, x in packed.items() if x.shape[1] == sum(lengths)}
        alone["sequence_ids"] = (np.arange(sum(lengths)) < size).astype(np.int32)[None]
        alone["cls_positions"] = np.zeros((1, 3), np.int32)
        alone["masked_positions"] = packed["masked_positions"] - np.int32(start)
        mlm_alone, nsp_alone = logits(alone)
        np.testing.assert_allclose(mlm[:, number], mlm_alone[:, number], **TOLERANCE)
        np.testing.assert_allclose(nsp[:, number], nsp_alone[:, 0], **TOLERANCE)


def test_the_padding_of_the_vocabulary_never_wins(small_config, small_params, random_batch, logits):
    spoilt = jax.tree.map(np.array, small_params)
    spoilt["mlm"]["bias"][small_config.vocab_size:] = 1e6
    mlm, _ = logits(random_batch([(9, 11), (17,)]), spoilt)
    assert (np.argmax(mlm, -1) < small_config.vocab_size).all()
    assert (np.asarray(jax.nn.softmax(mlm))[..., small_config.vocab_size:] == 0).all()


def test_the_padding_of_the_vocabulary_gets_no_gradient(small_config, small_params, random_batch, logits):
    batch = random_batch([(9, 11), (17,)])

    def loss(params):
        mlm, nsp = logits(batch, params)
        return -jnp.mean(jax.nn.log_softmax(mlm)[..., 3]) + jnp.sum(nsp**2)

    gradients = jax.jit(jax.grad(loss))(small_params)
    table, bias = gradients["encoder"]["embeddings"]["word"]["embedding"], gradients["mlm"]["bias"]
    assert (np.asarray(table)[small_config.vocab_size:] == 0).all()
    assert (np.asarray(bias)[small_config.vocab_size:] == 0).all()
    assert (np.abs(bias[:small_config.vocab_size]) > 0).all()
    unseen = np.setdiff1d(np.arange(small_config.vocab_size), batch["input_ids"])
    assert unseen.size and (np.abs(np.asarray(table)[unseen]).max(-1) > 0).all(), "words get gradients through the head"


def test_a_row_of_padding_gives_finite_logits(random_batch, logits):
    mlm, nsp = logits(random_batch([(5, 7), ()], row_length=20))
    assert np.isfinite(mlm).all() and np.isfinite(nsp).all()


def test_bfloat16_gives_float32_logits_close_to_those_of_float32(small_config, small_params, random_batch, logits):
    """The matrix products round their inputs to 2^-9; the states pass three layers first. The bound is relative to the
    size of the logits: 5 % of their root mean square, for parameters ten times as large as initial ones.
    """
    batch = random_batch([(9, 11), (17,)])
    low = jax.jit(BertForPreTraining(small_config, dtype=jnp.bfloat16).apply)({"params": small_params}, batch)
    for a, b in zip(logits(batch), low, strict=True):
        a, b = (np.asarray(x)[..., :small_config.vocab_size] for x in (a, b))
        assert b.dtype == np.float32
        assert 0 < np.sqrt(((a - b) ** 2).mean() / (a**2).mean()) < 0.05
