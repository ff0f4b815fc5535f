"""Profiles of chosen steps."""

import contextlib

import jax

from flaxbert.training.profile import open_profile


def test_the_steps_asked_for_are_profiled_and_no_time_of_that_is_training(monkeypatch, tmp_path):
    """What was begun before is waited for first, and is training."""
    done = []

    @contextlib.contextmanager
    def paused():
        done.append("pause")
        yield
        done.append("go on")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: done.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: done.append("write"))
    with open_profile(range(2, 4), str(tmp_path), done.append) as profile:
        for step in range(5):
            profile(step, lambda: done.append("wait"), paused)
            done.append(step)
    assert done == [0, "wait", "pause", "start", "go on", 1, 2, "wait", "pause", "write", "go on", 3, 4]
