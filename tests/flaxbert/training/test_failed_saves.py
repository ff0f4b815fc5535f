"""A save that fails is told of and tried again; the work of a run is never said to be saved when it is not. The
failures are the system's: a file that may not grow, a folder that is none.
"""

import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import optax
import pytest

from flaxbert.training.checkpoint import FAILED_SAVES, open_checkpoints
from flaxbert.training.guard import new_guard
from flaxbert.training.manifest import find_damage
from flaxbert.training.recovery import saved_steps
from flaxbert.training.step import TrainState, step_sums

STATE = TrainState(
    jnp.int32(1), {"kernel": jnp.arange(40_000.0).reshape(200, 200)}, optax.EmptyState(), new_guard(), step_sums()
)  # fmt: skip


def save(checkpoints, step):
    """One try, and its end."""
    checkpoints.save(STATE, step, {"row": step}, {}, None)
    checkpoints.wait()


@pytest.fixture
def broken(tmp_path):
    """Functions that put a file where the folder of checkpoints is, and the folder back."""
    folder, away = tmp_path / "checkpoints", tmp_path / "away"

    def damage():
        if folder.is_dir():
            folder.rename(away)
        folder.write_text("no folder")

    def mend():
        folder.unlink()
        away.rename(folder)

    return damage, mend


def test_a_failed_save_is_told_in_a_sentence_and_the_run_goes_on(tmp_path, broken):
    (damage, mend), said = broken, []
    with open_checkpoints(str(tmp_path), 3, said.append) as checkpoints:
        save(checkpoints, 1)
        damage()
        save(checkpoints, 2)
        assert said == [
            f"checkpoint {tmp_path / 'checkpoints' / '2'} could not be saved (Not a directory): "
            "the newest is that of step 1"
        ]
        assert checkpoints.latest == 1
        mend()
        save(checkpoints, 3)
        assert checkpoints.latest == 3 and len(said) == 1
    assert saved_steps(str(tmp_path)) == [1, 3]


def test_the_third_failed_save_in_a_row_ends_the_run_and_a_success_begins_the_count_anew(tmp_path, broken):
    (damage, mend), said = broken, []
    with open_checkpoints(str(tmp_path), 3, said.append) as checkpoints:
        save(checkpoints, 1)
        for step in (2, 4):
            damage()
            for _ in range(FAILED_SAVES - 1):
                save(checkpoints, step)
            mend()
            save(checkpoints, step + 1)
        assert len(said) == 2 * (FAILED_SAVES - 1) and checkpoints.latest == 5
        damage()
        for _ in range(FAILED_SAVES - 1):
            save(checkpoints, 6)
        with pytest.raises(OSError, match="checkpoints/6 could not be saved .*, nor could the 2 tries before it"):
            save(checkpoints, 6)
        mend()
    assert saved_steps(str(tmp_path)) == [1, 3, 5]


def test_what_has_to_be_saved_is_tried_again_until_it_is(tmp_path, broken):
    """The last save of a run has no later one to stand in for it."""
    (damage, mend), said = broken, []

    def mend_at_the_second(sentence):
        said.append(sentence)
        if len(said) == 2:
            mend()

    with open_checkpoints(str(tmp_path), 3, mend_at_the_second) as checkpoints:
        save(checkpoints, 1)
        damage()
        checkpoints.save(STATE, 2, {"row": 2}, {}, None)
        checkpoints.commit(STATE, 2, {"row": 2}, {}, None)
        assert (checkpoints.latest, len(said)) == (2, 2)
    assert saved_steps(str(tmp_path)) == [1, 2]


def test_what_cannot_be_saved_is_not_said_to_be(tmp_path, broken, monkeypatch):
    monkeypatch.setattr("flaxbert.training.checkpoint.RETRY_SECONDS", 0.0)
    said = []
    with pytest.raises(OSError, match="checkpoints/2 could not be saved"):
        with open_checkpoints(str(tmp_path), 3, said.append) as checkpoints:
            save(checkpoints, 1)
            broken[0]()
            checkpoints.commit(STATE, 2, {"row": 2}, {}, None)
    assert len(said) == FAILED_SAVES - 1


def test_a_checkpoint_that_orbax_has_not_merged_is_not_proven(tmp_path):
    """It looks for what to merge by a pattern, and in a folder of this name finds nothing. The command line refuses it:
    test_faults.py.
    """
    said = []
    with open_checkpoints(str(tmp_path / "[run]"), 3, said.append) as checkpoints:
        save(checkpoints, 1)
        assert checkpoints.latest is None
    assert len(said) == 1 and "checkpoints/1 could not be saved (Orbax has not merged the files" in said[0]
    assert saved_steps(str(tmp_path / "[run]")) == []


def test_a_save_under_way_is_waited_for_on_leaving(tmp_path):
    said = []
    with open_checkpoints(str(tmp_path), 3, said.append) as checkpoints:
        checkpoints.save(STATE, 1, {"row": 1}, {}, None)
    assert saved_steps(str(tmp_path)) == [1] and said == []


def test_a_save_tells_how_long_it_kept_its_caller(tmp_path):
    with open_checkpoints(str(tmp_path), 3) as checkpoints:
        for step in (1, 2):
            began = time.perf_counter()
            waited = checkpoints.save(STATE, step, {"row": step}, {}, None)
            assert 0 < waited <= time.perf_counter() - began < waited + 0.1


FULL = """
import json, resource, sys
from test_failed_saves import STATE, open_checkpoints, os, save, saved_steps
said = []
allow = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
with open_checkpoints(sys.argv[1], 2, said.append) as checkpoints:
    for step, size in enumerate([-1, 50_000, 300, -1, 10], 1):
        allow(size)
        save(checkpoints, step)
    allow(-1)
    save(checkpoints, 6)
    print(json.dumps([said, sorted(os.listdir(sys.argv[1] + "/checkpoints")), saved_steps(sys.argv[1])]))
"""


def test_a_full_disk_costs_a_save_and_what_it_had_written_is_removed(tmp_path):
    """A limit on the size of files stands for the disk: the write fails in the middle, in the background."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}, text=True, timeout=200,
        capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    said, names, steps = json.loads(ended.stdout.splitlines()[-1])
    assert [sentence.split(" could")[0] for sentence in said] == [
        f"checkpoint {tmp_path / 'checkpoints' / step}" for step in ("2", "3", "5")
    ]
    assert all(f"({os.strerror(27)})" in sentence for sentence in said)
    assert names == ["4", "6"] and steps == [4, 6], "no unfinished folder is left"
    assert find_damage(tmp_path / "checkpoints" / "6") is None
