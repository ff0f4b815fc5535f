"""The loss equals a plain loop, and its sums add up however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.training.objective import SUMS, loss_and_sums, summarize, zero_sums

B, P, C, V, S = 6, 4, 2, 11, 9
# Float32 sums of some dozens of terms of size one.
RTOL = 2e-6


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    batch = {
        "masked_ids": generator.integers(0, V, (B, P), np.int32),
        "masked_weights": (generator.random((B, P)) < 0.7).astype(np.float32),
        "next_sentence_labels": generator.integers(0, 2, (B, C), np.int32),
        "next_sentence_weights": (generator.random((B, C)) < 0.7).astype(np.float32),
        "sequence_ids": generator.integers(0, 3, (B, S), np.int32),
    }
    mlm, nsp = (generator.normal(0, 3, shape).astype(np.float32) for shape in ((B, P, V), (B, C, 2)))
    return batch, mlm, nsp


def plain_sums(batch, mlm, nsp):
    """One label at a time, in float64."""
    sums = dict.fromkeys(SUMS, 0.0)
    for head, logits, labels, weights in (
        ("mlm", mlm, batch["masked_ids"], batch["masked_weights"]),
        ("nsp", nsp, batch["next_sentence_labels"], batch["next_sentence_weights"]),
    ):
        for place in np.ndindex(labels.shape):
            scores, label, weight = logits[place].astype(np.float64), labels[place], float(weights[place])
            sums[f"{head}_loss"] -= weight * (scores[label] - np.log(np.exp(scores).sum()))
            sums[f"{head}_correct"] += weight * (scores.argmax() == label)
            sums[f"{head}_weight"] += weight
    sums["nsp_random"] = float((batch["next_sentence_labels"] * batch["next_sentence_weights"]).sum())
    sums["tokens"] = float((batch["sequence_ids"] > 0).sum())
    sums["sequences"] = float(sum(max(row) for row in batch["sequence_ids"].tolist()))
    return sums


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=RTOL, err_msg=name)


def test_loss_and_sums_equal_a_plain_loop(drawn):
    loss, sums = loss_and_sums(*drawn)
    expected = plain_sums(*drawn)
    assert_equal(sums, expected)
    reference = expected["mlm_loss"] / (expected["mlm_weight"] + 1e-5) + expected["nsp_loss"] / expected["nsp_weight"]
    np.testing.assert_allclose(loss, reference, rtol=RTOL)


def test_slots_of_weight_zero_count_for_nothing(drawn):
    batch, mlm, nsp = drawn
    unused = batch["masked_weights"] == 0
    other = batch | {"masked_ids": np.where(unused, 3, batch["masked_ids"])}
    changed = np.where(unused[..., None], np.float32(1e4), mlm)
    assert jax.tree.leaves(loss_and_sums(other, changed, nsp)) == jax.tree.leaves(loss_and_sums(*drawn))
    gradient = jax.grad(lambda mlm: loss_and_sums(batch, mlm, nsp)[0])(mlm)
    assert (np.asarray(gradient)[unused] == 0).all()
    assert np.abs(np.asarray(gradient)[~unused]).max(-1).min() > 0


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 3, 4, 5), (5,)])
def test_sums_add_up_over_any_split_of_the_batch(drawn, cuts):
    parts = zip(*(np.split(x, cuts) for x in jax.tree.leaves(drawn)))
    whole, total = loss_and_sums(*drawn)[1], zero_sums()
    for part in parts:
        total = jax.tree.map(jnp.add, total, loss_and_sums(*jax.tree.unflatten(jax.tree.structure(drawn), part))[1])
    assert_equal(total, whole)


def test_empty_rows_add_nothing(drawn):
    loss, sums = loss_and_sums(*drawn)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros((3, *x.shape[1:]), x.dtype)]), drawn)
    padded_loss, padded_sums = loss_and_sums(*padded)
    assert_equal(padded_sums, sums)
    np.testing.assert_allclose(padded_loss, loss, rtol=RTOL)


def test_a_batch_without_a_single_weight_has_loss_zero_and_no_gradient(drawn):
    batch, mlm, nsp = drawn
    empty = batch | {name: np.zeros_like(batch[name]) for name in ("masked_weights", "next_sentence_weights")}
    loss, gradient = jax.value_and_grad(lambda mlm: loss_and_sums(empty, mlm, nsp)[0])(mlm)
    assert loss == 0
    assert (np.asarray(gradient) == 0).all()
    assert summarize(loss_and_sums(empty, mlm, nsp)[1]) == {"loss": 0.0}


def test_large_logits_stay_finite(drawn):
    batch, mlm, nsp = drawn
    mlm = np.where(np.arange(V) == V - 1, np.finfo(np.float32).min, mlm * 1e4)
    loss, gradient = jax.value_and_grad(lambda mlm: loss_and_sums(batch, mlm, nsp)[0])(mlm)
    assert np.isfinite(gradient).all() and np.isfinite(loss) | (batch["masked_ids"] == V - 1).any()


def test_the_summary_is_made_of_means(drawn):
    expected = plain_sums(*drawn)
    summary = summarize(loss_and_sums(*drawn)[1])
    mlm, nsp = (expected[f"{head}_loss"] / expected[f"{head}_weight"] for head in ("mlm", "nsp"))
    assert_equal(summary, {
        "loss": mlm + nsp, "mlm_loss": mlm, "perplexity": np.exp(mlm), "nsp_loss": nsp,
        "mlm_accuracy": expected["mlm_correct"] / expected["mlm_weight"],
        "nsp_accuracy": expected["nsp_correct"] / expected["nsp_weight"],
        "nsp_random": expected["nsp_random"] / expected["nsp_weight"],
    })  # fmt: skip
    assert all(isinstance(value, float) for value in summary.values())
