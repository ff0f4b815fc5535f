"""A run in phases is one run: its border is a step like any other, and wherever it is interrupted it ends the same."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flaxbert.phases import Phase
from flaxbert.training.checkpoint import restore_params
from flaxbert.training.loop import Outcome, train
from flaxbert.training.part import Streams
from flaxbert.training.profile import is_missed

TIMES = {"seconds", "save_seconds", "sequences_per_second", "tokens_per_second", "mfu"}
LENGTHS, ROWS = (16, 12), (8, 4)
BORDER = 6


class Crash(Exception):
    """The power fails."""


@pytest.fixture(scope="module")
def phased(experiment):
    """Twelve steps: six of 8 rows of 16 tokens, then six of 4 rows of 12 in two parts each, warmed up anew."""
    second = Phase(
        sequence_length=12, max_predictions=3, batch_size=4, microbatches=2, learning_rate=5e-3, warmup_steps=1
    )
    return dataclasses.replace(experiment, phases=(Phase(steps=BORDER), second))


@pytest.fixture(scope="module")
def streams_of(batch_of):
    def streams(crash_at=None):
        def train(phase, position):
            number = (position or {"batch": 0})["batch"]
            while True:
                if number == crash_at:
                    raise Crash
                yield batch_of(number, ROWS[phase], LENGTHS[phase]), {"batch": number + 1}
                number += 1

        def validation(phase):
            return (batch_of(1_000_000 + number, ROWS[phase], LENGTHS[phase]) for number in range(2))

        return Streams(train, validation)

    return streams


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


@pytest.fixture(scope="module")
def uninterrupted(phased, streams_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert train(phased, str(workdir), streams_of()) == Outcome(12, False)
    return workdir


def test_each_phase_ends_with_its_lines_and_a_checkpoint(uninterrupted):
    """Lines every 4 steps, evaluations every 6, checkpoints every 3; and all of them at the border."""
    found = lines(uninterrupted)
    assert [(line["step"], line["split"]) for line in found] == [
        (4, "train"), (6, "train"), (6, "validation"), (8, "train"), (12, "train"), (12, "validation"),
    ]  # fmt: skip
    assert [line["phase"] for line in found] == [0, 0, 0, 1, 1, 1]
    rates = {line["step"]: line["learning_rate"] for line in found if line["split"] == "train"}
    assert rates[6] == pytest.approx(1e-2 * (1 - 5 / 6)), "the first curve ends at the border"
    assert [rates[8], rates[12]] == pytest.approx([5e-3 * (1 - 1 / 6), 5e-3 * (1 - 5 / 6)]), "the second begins at it"


def test_the_second_phase_has_its_own_rows_and_length(uninterrupted, batch_of):
    last = lines(uninterrupted)[-2]
    tokens = np.stack([batch_of(number, 4, 12)["sequence_ids"] for number in range(8, 12)])
    assert last["fill"] == pytest.approx((tokens > 0).mean())


@pytest.mark.parametrize("moments", [(3,), (BORDER,), (BORDER + 1,), (5, 7, 8, 10, 12)], ids=str)
def test_a_run_in_phases_ends_as_if_nothing_had_interrupted_it(uninterrupted, phased, streams_of, tmp_path, moments):
    """In the first phase, at the border and just behind it, and many times."""
    for moment in moments:
        with pytest.raises(Crash):
            train(phased, str(tmp_path), streams_of(moment))
    assert train(phased, str(tmp_path), streams_of()) == Outcome(12, False)
    (found, step), (wanted, last) = restore_params(str(tmp_path)), restore_params(str(uninterrupted))
    assert step == last == 12
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert lines(tmp_path) == lines(uninterrupted)


def test_a_run_stopped_at_the_border_goes_on_in_the_next_phase(phased, streams_of, tmp_path, uninterrupted, capsys):
    asked = iter([False] * (BORDER + 10))  # evaluations ask too

    def stop():
        return (tmp_path / "checkpoints" / str(BORDER)).exists() or next(asked, True)

    outcome = train(phased, str(tmp_path), streams_of(), stop)
    assert outcome == Outcome(BORDER, True)
    assert train(phased, str(tmp_path), streams_of()) == Outcome(12, False)
    assert "phase 2 of 2 from step 6 on: 4 rows of 12 tokens" in capsys.readouterr().err
    assert lines(tmp_path) == lines(uninterrupted)


def test_steps_are_profiled_on_request(with_train, streams_of, tmp_path):
    experiment = with_train(profile_steps="3:5", steps=6)
    train(experiment, str(tmp_path), streams_of())
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))


def test_a_profile_of_steps_that_are_past_is_told_of_unless_it_was_made(tmp_path):
    assert not is_missed(range(0), str(tmp_path), 9)
    assert not is_missed(range(3, 5), str(tmp_path), 3), "step 4 is still to come"
    assert is_missed(range(3, 5), str(tmp_path), 4)
    (tmp_path / "tensorboard" / "plugins" / "profile" / "then").mkdir(parents=True)
    assert not is_missed(range(3, 5), str(tmp_path), 4)
