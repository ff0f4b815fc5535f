"""Whole runs that meet a fault of the disk, the numbers or the machine: each ends as one left alone, or says why not.

What the command line makes of faults is tested in tests/flaxbert/test_faults.py.
"""

import contextlib
import errno
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from full_disks import files_may_grow_to
from test_loop import assert_same_run, checkpoints, lines
from test_recovery import empty, everything, flip, half_copy, largest, truncate

from flaxbert.training.checkpoint import restore_params
from flaxbert.training.files import STUDY
from flaxbert.training.loop import Outcome, train
from flaxbert.training.manifest import MANIFEST, find_damage
from flaxbert.training.orbax_manager import UNFINISHED
from flaxbert.training.recovery import saved_steps


def flip_in(name):
    """Flips a bit in a file of a checkpoint."""
    return lambda folder: flip(folder / name, random.Random(name))


DAMAGES = {
    "truncated": truncate,
    "deleted in part": lambda folder: largest(folder).unlink(),
    "half copied": half_copy,
    "an empty folder": empty,
    "a bit flipped in the weights": lambda folder: flip(largest(folder), random.Random(0)),
    "a bit flipped in the position": flip_in("position/metadata"),
    "a bit flipped in the held-out loss": flip_in("metrics/metrics"),
    "a bit flipped in the manifest": flip_in(MANIFEST),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_one_left_alone(
    uninterrupted, tmp_path, experiment, streams_of, capsys, damage
):
    workdir, drawn = shutil.copytree(uninterrupted, tmp_path / "run"), []
    DAMAGES[damage](workdir / "checkpoints" / "12")
    assert train(experiment, str(workdir), streams_of(drawn.append)) == Outcome(12, False)
    said = capsys.readouterr().err
    assert said.count(f"{workdir}/checkpoints/12 is damaged") == 1 and "the newest whole is 9" in said
    assert "resumed at step 9" in said and drawn[0] == 9
    assert checkpoints_but_damaged(workdir) == [6, 9, 12]
    assert (workdir / "checkpoints" / "damaged-000012").is_dir()
    assert_same_run(workdir, uninterrupted)


def checkpoints_but_damaged(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_without_a_whole_checkpoint_is_refused_and_not_begun_anew(
    uninterrupted, tmp_path, experiment, streams_of
):
    workdir = shutil.copytree(uninterrupted, tmp_path / "run")
    for path in (workdir / "checkpoints").iterdir():
        truncate(path)
    before = everything(workdir)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds checkpoints, and none is whole"):
            train(experiment, str(workdir), streams_of())
    assert everything(workdir) == before


RUN = """
import sys
from conftest import EXPERIMENT, synthetic_streams
from flaxbert.model import encoder
from flaxbert.training.loop import train
encoder.UNROLLED_LAYERS["cpu"] = 1
train(EXPERIMENT, sys.argv[1], synthetic_streams())
"""


def test_a_run_killed_in_the_middle_of_a_save_ends_as_one_left_alone(uninterrupted, tmp_path, experiment, streams_of):
    """The process is halted as soon as an unfinished checkpoint is seen, and killed if it is unfinished still."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], env=os.environ | kept | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while True:
        assert process.poll() is None, "the run was over before it was killed: " + process.stderr.read()
        if any(tmp_path.glob(f"checkpoints/*{UNFINISHED}*")):
            process.send_signal(signal.SIGSTOP)
            if any(tmp_path.glob(f"checkpoints/*{UNFINISHED}*")):
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0002)
    process.kill()
    process.communicate()
    assert any(tmp_path.glob(f"checkpoints/*{UNFINISHED}*"))
    assert train(experiment, str(tmp_path), streams_of()) == Outcome(12, False)
    assert checkpoints(tmp_path) == [6, 9, 12], "what was left unfinished is gone"
    assert_same_run(tmp_path, uninterrupted)


@contextlib.contextmanager
def full_while(first, end=1_000_000):
    """A function to be called with each batch that is drawn: from `first` on the disk is full, from `end` on not."""
    with contextlib.ExitStack() as stack:

        def before(number):
            if number == first:
                stack.enter_context(files_may_grow_to(1))
            if number == end:
                stack.close()

        yield before


def test_a_run_outlives_a_disk_that_is_full_for_a_while(uninterrupted, tmp_path, experiment, streams_of, capsys):
    """Two saves fail and are told of; the lines of that time are written once there is room."""
    with full_while(2, 8) as before:
        assert train(experiment, str(tmp_path), streams_of(before)) == Outcome(12, False)
    said = capsys.readouterr().err
    for step, newest in ((3, "none"), (6, "none")):
        assert f"checkpoints/{step} could not be saved ({os.strerror(27)}): the newest is {newest}" in said
    assert said.count(f"{tmp_path}/metrics.jsonl cannot be written ({os.strerror(27)}): training goes on") == 1
    assert "lacks" not in said
    assert said.count("TensorBoard is off, training goes on") == 1
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_on_a_full_disk_ends_with_the_third_failed_save(uninterrupted, tmp_path, experiment, streams_of, capsys):
    """And goes on from the checkpoint before, once there is room."""

    def wait_for_the_save_under_way(number):
        while number == 5 and not (tmp_path / "checkpoints" / "3").is_dir():
            time.sleep(0.01)
        before(number)

    with full_while(5) as before, pytest.raises(OSError, match="checkpoints/12 could not be saved .* that of step 3"):
        train(experiment, str(tmp_path), streams_of(wait_for_the_save_under_way))
    assert saved_steps(str(tmp_path)) == [3]
    assert capsys.readouterr().err.count("could not be saved") == 2
    assert train(experiment, str(tmp_path), streams_of()) == Outcome(12, False)
    assert_same_run(tmp_path, uninterrupted)


def test_training_goes_on_where_its_lines_cannot_be_written_and_says_so_once_and_at_the_end(
    tmp_path, experiment, streams_of, capsys
):
    """Their file alone cannot be written: from the first evaluation on it is a device that is always full."""
    streams = streams_of()

    def validation(phase):
        for descriptor in descriptors_of(tmp_path / "metrics.jsonl"):
            with open("/dev/full", "wb") as full:
                os.dup2(full.fileno(), descriptor)
        return streams.validation(phase)

    assert train(experiment, str(tmp_path), streams._replace(validation=validation)) == Outcome(12, False)
    said, reason = capsys.readouterr().err, os.strerror(errno.ENOSPC)
    assert said.count(f"metrics.jsonl cannot be written ({reason}): training goes on") == 1
    assert said.endswith(f"metrics.jsonl lacks the last 4 of its lines ({reason})\n")
    assert checkpoints(tmp_path) == [6, 9, 12]


def descriptors_of(path):
    """Those by which this process has the file open."""
    opened = list(pathlib.Path("/proc/self/fd").iterdir())
    return [int(each.name) for each in opened if os.path.realpath(each) == str(path)]


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_training_goes_on_without_tensorboard(uninterrupted, tmp_path, experiment, streams_of, capsys, when):
    if when == "from the start":
        (tmp_path / "tensorboard").write_text("no folder")

    def before(number):
        if when == "later" and number == 5:
            shutil.rmtree(tmp_path / "tensorboard")

    assert train(experiment, str(tmp_path), streams_of(before)) == Outcome(12, False)
    said = capsys.readouterr().err
    assert said.count("TensorBoard is off, training goes on") == 1
    assert f"{tmp_path}/tensorboard cannot be written" in said
    assert_same_run(tmp_path, uninterrupted)


def test_training_goes_on_without_a_profile(tmp_path, with_train, streams_of, capsys):
    (tmp_path / "tensorboard").write_text("no folder")
    experiment = with_train(steps=4, profile_steps="2:4", eval_every=0)
    assert train(experiment, str(tmp_path), streams_of()) == Outcome(4, False)
    assert "the profile could not be written" in capsys.readouterr().err


def poisoned(streams, numbers):
    """Streams whose batches of these numbers have no finite loss."""

    def train(phase, position):
        for batch, after in streams.train(phase, position):
            if after["batch"] - 1 in numbers:
                batch = {**batch, "masked_weights": np.full_like(batch["masked_weights"], np.nan)}
            yield batch, after

    return streams._replace(train=train)


def test_a_step_that_is_not_finite_is_skipped_counted_and_told(tmp_path, experiment, streams_of, capsys):
    streams = poisoned(streams_of(), {4, 5})
    assert train(experiment, str(tmp_path), streams) == Outcome(12, False)
    counts = [line["skipped_not_finite"] for line in lines(tmp_path) if line["split"] == "train"]
    assert counts == [0, 2, 0]
    said = capsys.readouterr().err
    assert said.count("not finite, so its update was skipped") == 2 and "step 6: loss nan" in said


@pytest.mark.parametrize("first", [0, 2])
def test_ten_steps_in_a_row_that_are_not_finite_end_the_run_and_are_kept_for_study(
    tmp_path, experiment, streams_of, batch_of, first
):
    """Be they the last of the run, or followed by good ones that had been begun before it was known. The same command
    again ends in the same way.
    """
    streams, last = poisoned(streams_of(), range(first, first + 10)), first + 10
    folder, found = tmp_path / STUDY / f"step-{last}", []
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"step {last}: .* not finite 10 times in a row.* batch lie in {folder}"):
            train(experiment, str(tmp_path), streams)
        assert checkpoints(tmp_path) == [3, 6, 9]
        with ocp.StandardCheckpointer() as reader:
            found.append(reader.restore(folder / "state"))
    for step in (3, 6, 9):
        assert find_damage(tmp_path / "checkpoints" / str(step)) is None
        jax.tree.map(np.testing.assert_array_equal, found[0]["params"], restore_params(str(tmp_path), step)[0])
    jax.tree.map(np.testing.assert_array_equal, *found)
    kept = np.load(folder / "batch-0.npz")
    expected = batch_of(last - 1)
    expected["masked_weights"] = np.full_like(expected["masked_weights"], np.nan)
    assert kept.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(kept[name], x)


def test_a_hopeless_run_says_so_where_nothing_can_be_kept_for_study(tmp_path, experiment, streams_of):
    (tmp_path / STUDY).write_text("no folder")
    with pytest.raises(ValueError, match="step 12: .* not finite 10 times in a row.*could not be written into"):
        train(experiment, str(tmp_path), poisoned(streams_of(), range(2, 12)))


def with_spike(batch_of, token):
    """Batches that mask one of few tokens, but for batch 132, in which it is always `token`."""

    def train(phase, position):
        number = (position or {"batch": 0})["batch"]
        while True:
            batch = batch_of(number)
            batch["masked_ids"] = batch["masked_ids"] % 4 + 5 if number != 132 else np.full_like(
                batch["masked_ids"], token
            )  # fmt: skip
            yield batch, {"batch": number + 1}
            number += 1

    return train


def test_a_spike_is_skipped_and_counted_where_that_was_asked_for(tmp_path, with_train, streams_of, batch_of, capsys):
    """Two runs that differ in the spike alone end with the same parameters; without the setting they do not."""

    def run(token, skip_spikes):
        workdir = tmp_path / f"{token}-{skip_spikes}"
        experiment = with_train(
            steps=136, eval_every=0, checkpoint_every=136, log_every=34, skip_spikes=skip_spikes
        )
        streams = streams_of()._replace(train=with_spike(batch_of, token))
        assert train(experiment, str(workdir), streams) == Outcome(136, False)
        said = capsys.readouterr().err
        params = np.concatenate([x.ravel() for x in jax.tree.leaves(restore_params(str(workdir))[0])])
        return [line["skipped_spikes"] for line in lines(workdir)], "step 133: " in said, params

    counts, told, params = run(88, True)
    assert counts == [0, 0, 0, 1] and told
    np.testing.assert_array_equal(run(89, True)[2], params)
    counts, told, other = run(88, False)
    assert counts == [0, 0, 0, 0] and not told
    assert np.abs(other - params).max() > 1e-3, "an update's size at the learning rate of step 133"
