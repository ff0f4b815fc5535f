"""A run in phases: where each begins, what it changes, and what cannot be."""

import dataclasses

import pytest

from flaxbert.config import DataConfig, Experiment, OptimizerConfig, TrainConfig
from flaxbert.phases import Phase, curves, part_of, parts, without_effect
from flaxbert.training.schedule import learning_rate_schedule, run_schedule

WHOLE = Experiment(
    data=DataConfig(sequence_length=128), optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
    train=TrainConfig(steps=100, batch_size=64),
)  # fmt: skip


def phased(*phases, **changes):
    return dataclasses.replace(WHOLE, phases=phases, **changes)


def test_an_experiment_without_phases_is_one_part():
    assert parts(WHOLE) == [(0, 100, WHOLE)]
    assert curves(WHOLE) == [(0, 100, WHOLE.optimizer)]


def test_each_phase_changes_what_it_names_and_nothing_else():
    first, second = parts(phased(Phase(steps=90), Phase(sequence_length=512, batch_size=16, max_predictions=76)))
    assert first == (0, 90, WHOLE)
    assert second[:2] == (90, 100)
    assert second.experiment == dataclasses.replace(
        WHOLE, data=dataclasses.replace(WHOLE.data, sequence_length=512, max_predictions=76),
        train=dataclasses.replace(WHOLE.train, batch_size=16),
    )  # fmt: skip


def test_the_last_phase_takes_what_is_left_when_a_run_is_made_longer():
    experiment = phased(Phase(steps=90), Phase(), train=dataclasses.replace(WHOLE.train, steps=150))
    assert [part[:2] for part in parts(experiment)] == [(0, 90), (90, 150)]


def test_the_learning_rate_goes_on_over_phases_that_name_none():
    found, expected = run_schedule(phased(Phase(steps=90), Phase(batch_size=32))), run_schedule(WHOLE)
    for step in (0, 5, 10, 89, 90, 99):
        assert found(step) == expected(step)


def test_a_phase_may_begin_a_curve_of_its_own():
    """Over its own steps and those of the phases behind it that have none; the one before ends where it begins."""
    experiment = phased(Phase(steps=60), Phase(steps=20, learning_rate=5e-4, warmup_steps=4), Phase(batch_size=32))
    found = run_schedule(experiment)
    before = learning_rate_schedule(WHOLE.optimizer, 60)
    own = learning_rate_schedule(dataclasses.replace(WHOLE.optimizer, learning_rate=5e-4, warmup_steps=4), 40)
    for step in range(100):
        assert float(found(step)) == pytest.approx(float(before(step) if step < 60 else own(step - 60))), step
    assert found(60) == 0 and float(found(64)) > float(found(79)) > float(found(80)) > 0


def test_either_half_of_a_curve_begins_one():
    (_, peak), (_, warm) = (curves(phased(Phase(steps=50), phase)) for phase in (
        Phase(learning_rate=5e-4), Phase(warmup_steps=3)
    ))  # fmt: skip
    assert (peak.optimizer.learning_rate, peak.optimizer.warmup_steps) == (5e-4, 10)
    assert (warm.optimizer.learning_rate, warm.optimizer.warmup_steps) == (1e-3, 3)


def test_a_warm_up_that_no_curve_has_is_no_fault():
    """Ten thousand steps, the default, where every phase has its own."""
    experiment = Experiment(
        train=TrainConfig(steps=100), phases=(Phase(steps=90, warmup_steps=10), Phase(warmup_steps=2))
    )
    assert [part.experiment.optimizer.warmup_steps for part in parts(experiment)] == [10, 2]


def test_a_checkpoint_at_a_border_is_the_last_of_the_phase_before_it():
    experiment = phased(Phase(steps=60), Phase(sequence_length=512), train=TrainConfig(steps=100))
    lengths = [part_of(experiment, step).experiment.data.sequence_length for step in (0, 60, 61, 100, 120)]
    assert lengths == [128, 128, 512, 512, 512]


@pytest.mark.parametrize("change, vain", [
    ({"data": DataConfig(sequence_length=64)}, ["data.sequence_length"]),
    ({"train": TrainConfig(steps=100, batch_size=8)}, []),
    ({"optimizer": OptimizerConfig(warmup_steps=5, learning_rate=2e-3)}, ["optimizer.warmup_steps"]),
    ({"data": DataConfig(masking="span")}, []),
])  # fmt: skip
def test_a_setting_that_every_phase_has_for_itself_is_changed_in_vain(change, vain):
    whole = dataclasses.replace(WHOLE, optimizer=OptimizerConfig(warmup_steps=10, learning_rate=1e-3))
    phases = (
        Phase(steps=60, sequence_length=32, batch_size=16, warmup_steps=4),
        Phase(sequence_length=48, warmup_steps=2),
    )
    before = dataclasses.replace(whole, phases=phases)
    assert without_effect(before, before) == []
    assert without_effect(dataclasses.replace(before, **change), before) == vain


def test_a_length_that_no_phase_has_is_no_fault():
    model = dataclasses.replace(WHOLE.model, max_length=64)
    phases = (Phase(steps=60, sequence_length=32), Phase(sequence_length=64))
    experiment = dataclasses.replace(WHOLE, model=model, phases=phases)
    assert [part.experiment.data.sequence_length for part in parts(experiment)] == [32, 64]


@pytest.mark.parametrize("phases, words", [
    ((Phase(), Phase(steps=10)), ["phases.0.steps is not set"]),
    ((Phase(steps=0), Phase()), ["phases.0.steps 0"]),
    ((Phase(steps=60), Phase(steps=60)), ["60 + 60", "train.steps 100"]),
    ((Phase(steps=60), Phase(steps=30)), ["60 + 30", "train.steps 100"]),
    ((Phase(steps=100), Phase()), ["100 + ...", "train.steps 100"]),
    ((Phase(steps=120), Phase()), ["120 + ...", "train.steps 100"]),
    ((Phase(steps=90), Phase(sequence_length=600)), ["phases.1", "600", "max_length 512"]),
    ((Phase(steps=90), Phase(max_predictions=600)), ["phases.1", "max_predictions 600"]),
    ((Phase(steps=90), Phase(batch_size=0)), ["phases.1", "train.batch_size 0"]),
    ((Phase(steps=90), Phase(learning_rate=-1.0)), ["phases.1", "learning_rate -1"]),
    ((Phase(steps=90), Phase(warmup_steps=11)), ["warmup_steps 11", "10 steps"]),
    ((Phase(steps=5), Phase(warmup_steps=2)), ["warmup_steps 10", "5 steps"]),
])  # fmt: skip
def test_phases_that_contradict_are_refused_by_name(phases, words):
    with pytest.raises(ValueError) as refusal:
        phased(*phases)
    assert [word for word in words if word not in str(refusal.value)] == []
