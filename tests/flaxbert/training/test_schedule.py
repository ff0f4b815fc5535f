"""The learning rate is the reference's at every step, and that of the recipes which depart from it."""

import numpy as np
import pytest

from flaxbert.config import OptimizerConfig
from flaxbert.training.schedule import learning_rate_schedule

TOLERANCE = 1e-6  # of the peak: a few roundings of float32


def rate(config, steps, step):
    """The reference's curve, tf.train.polynomial_decay under a warm-up, and the departures that recipes ask for."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    start = config.warmup_steps if config.decay_from == "warmup" else 0
    done = (min(step, steps) - start) / (steps - start) if steps > start else 1
    end = config.learning_rate * config.final_fraction
    return (config.learning_rate - end) * (1 - done) ** config.decay_power + end


@pytest.mark.parametrize("steps, warmup", [(100, 10), (100, 0), (100, 1), (100, 100), (7, 3), (1, 0), (1, 1)])
@pytest.mark.parametrize("settings", [
    {}, dict(decay_power=0.5), dict(decay_from="warmup"),
    dict(decay_from="warmup", decay_power=2.0, final_fraction=0.02), dict(final_fraction=1.0),
], ids=str)  # fmt: skip
def test_the_learning_rate_at_every_step(steps, warmup, settings, assert_parity):
    config = OptimizerConfig(learning_rate=1e-4, warmup_steps=warmup, **settings)
    found = np.asarray(learning_rate_schedule(config, steps)(np.arange(steps + 3)))
    expected = [rate(config, steps, step) for step in range(steps + 3)]
    worst = max(abs(found - expected)) / config.learning_rate
    assert_parity("learning rate at every step, over its peak", "a plain port of the published curve", worst, TOLERANCE)
    assert found[-1] == found[steps] == np.float32(1e-4) * np.float32(config.final_fraction)


def test_a_decay_from_the_end_of_warm_up_goes_on_from_the_peak():
    config = OptimizerConfig(learning_rate=1e-4, warmup_steps=100, decay_from="warmup", final_fraction=0.1)
    curve = learning_rate_schedule(config, 1000)
    assert [float(curve(step)) for step in (0, 50, 100, 550, 1000, 1001)] == pytest.approx(
        [0, 0.5e-4, 1e-4, 0.55e-4, 0.1e-4, 0.1e-4]
    )


def test_the_power_of_nvidias_lamb_recipe():
    """PolyWarmUpScheduler with degree 0.5: `(1 - progress) ** 0.5`, progress measured from step 0."""
    config = OptimizerConfig(name="lamb", learning_rate=6e-3, warmup_steps=2001, decay_power=0.5)
    curve = learning_rate_schedule(config, 7038)
    for step in (2001, 4000, 7000):
        assert float(curve(step)) == pytest.approx(6e-3 * (1 - step / 7038) ** 0.5, rel=1e-5)


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
        assert float(curve(step)) == pytest.approx(rate(config, 1_000_000, step), rel=1e-6)
