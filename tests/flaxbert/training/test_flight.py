"""The loop runs a little ahead of the devices, and hears of every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.training.flight import IN_FLIGHT, Flight, Step
from flaxbert.training.metrics import SILENT
from flaxbert.training.step import StepOutcome, step_sums


def outcome(finite=True, spike=False, not_finite=0, stop=False):
    return StepOutcome(np.float32(1.5), np.float32(0.5), np.float32(1e-3), finite, spike, not_finite, stop)


@pytest.fixture
def flight(experiment):
    """A flight and what it says."""
    said = []
    return Flight(experiment, SILENT._replace(say=said.append), None), said


def test_few_steps_are_in_flight(flight):
    flight, said = flight
    for number in range(1, 6):
        flight.add(Step(number, outcome(finite=False, not_finite=number), None, {}))
        assert len(said) == max(0, number - IN_FLIGHT), "a step is waited for once two others have been begun"
    flight.land()
    assert [sentence.split(":")[0] for sentence in said] == [f"step {number}" for number in range(1, 6)]


def test_a_line_is_written_while_the_next_step_runs(experiment):
    """Were anything of it computed by the device, it would wait for the steps under way, and they for the next one."""
    lines = []
    flight = Flight(experiment, SILENT._replace(record=lines.append), None)
    sums = jax.block_until_ready(step_sums() | {"steps": jnp.float32(1), "mlm_weight": jnp.float32(1)})
    flight.add(Step(1, outcome(), sums, {}))
    square = jnp.ones((1024, 1024))
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y @ y / 1024, x)).lower(square).compile()
    running = long(square)
    flight.land()
    assert not running.is_ready(), "nothing is shown: it was too short"
    assert [line["step"] for line in lines] == [1] and lines[0]["learning_rate"] == pytest.approx(1e-3)
    running.block_until_ready()


def test_what_is_skipped_is_said(flight):
    flight, said = flight
    for number, each in enumerate((outcome(), outcome(spike=True), outcome(finite=False, not_finite=3))):
        flight.add(Step(number, each, None, {}))
    flight.land()
    assert len(said) == 2
    assert "step 1: loss 1.5, gradient norm 0.5: a spike, so its update was skipped" in said[0]
    assert "not finite, so its update was skipped, 3 in a row" in said[1]


def test_ten_in_a_row_are_hopeless_and_the_first_to_be_it_is_kept(flight):
    flight, _ = flight
    for number in range(1, 13):
        flight.add(Step(number, outcome(finite=False, not_finite=number), None, {"input_ids": np.full(2, number)}))
    assert flight.hopeless.number == 10
    assert (flight.hopeless.batch["input_ids"] == 10).all()


def test_a_wish_to_stop_comes_from_the_devices(flight):
    flight, _ = flight
    flight.add(Step(1, outcome(stop=True), None, {}))
    assert not flight.stop
    flight.land()
    assert flight.stop
