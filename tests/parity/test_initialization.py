"""Initial parameters are distributed as those of the reference, whose initializer TensorFlow still has."""

import dataclasses

import jax
import numpy as np
import pytest

from flaxbert.config import PRESETS
from flaxbert.interop.huggingface_tensors import to_tensors
from flaxbert.model.pretraining import initialize

pytestmark = pytest.mark.parity

REFERENCE = "tf.truncated_normal_initializer(0.02)"
# Seeds are fixed, so a test passes always or never.
STANDARD_ERRORS = 5.0
# sqrt(n m / (n + m)) times the largest distance of two samples' distribution functions exceeds x with probability
# 2 exp(-2 x^2) (Kolmogorov and Smirnov): one in a million at 2.7, for each of eighteen tensors.
DISTANCE = 2.7


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """One array for each layer, as an export names them."""
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=1000)
    return to_tensors(jax.jit(initialize, static_argnums=0)(config, jax.random.key(0)), config)


def is_weight(name: str) -> bool:
    return name.endswith("weight") and "LayerNorm" not in name


def test_every_kernel_and_table_is_drawn_as_the_reference_draws_it(tensors, assert_parity):
    """modeling.py: tf.truncated_normal_initializer(stddev=0.02) for every kernel and table of embeddings."""
    tf = pytest.importorskip("tensorflow")
    theirs = tf.compat.v1.truncated_normal_initializer(0.0, 0.02, seed=0)((1 << 20,), dtype=tf.float32).numpy()
    weights = {name: x.ravel() for name, x in tensors.items() if is_weight(name)}
    assert len(weights) == 3 + 6 * 2 + 3
    for ours in weights.values():
        for measure, (worst, tolerance) in deviations(ours.astype(np.float64), theirs.astype(np.float64)).items():
            assert_parity(f"initial kernels and tables: {measure}", REFERENCE, worst, tolerance)


def deviations(ours: np.ndarray, theirs: np.ndarray) -> dict[str, tuple[float, float]]:
    """Measure → (deviation, tolerance) of two samples [n] and [m]."""
    n, m = ours.size, theirs.size
    size, deviation = n * m / (n + m), theirs.std()
    kurtosis = ((theirs - theirs.mean()) ** 4).mean() / deviation**4
    error_of_deviation = deviation * np.sqrt((kurtosis - 1) / 4 / size)
    shares = np.searchsorted(np.sort(theirs), np.sort(ours)) / m
    distance = np.abs(shares - (np.arange(n) + 0.5) / n).max()
    return {
        "mean, in standard errors": (abs(ours.mean() - theirs.mean()) / deviation * np.sqrt(size), STANDARD_ERRORS),
        "deviation, in standard errors": (abs(ours.std() - deviation) / error_of_deviation, STANDARD_ERRORS),
        "Kolmogorov-Smirnov distance times the root of the size": (distance * np.sqrt(size), DISTANCE),
    }


def test_every_bias_begins_at_zero_and_every_scale_at_one(tensors, assert_parity):
    others = {name: x for name, x in tensors.items() if not is_weight(name)}
    assert sum(name.endswith("LayerNorm.weight") for name in others) == 1 + 2 * 2 + 1
    wrong = sum((x != name.endswith("LayerNorm.weight")).sum() for name, x in others.items())
    what, peer = "initial biases and LayerNorm scales: how many are not 0 and 1", "modeling.py of google-research/bert"
    assert_parity(what, peer, wrong, 0)
