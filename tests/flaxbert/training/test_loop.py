"""Small real runs: whatever interrupts one, it ends as if nothing had."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxbert.config import MeshConfig
from flaxbert.training import checkpoint, loop, orbax_manager, part
from flaxbert.training.checkpoint import open_checkpoints, restore_params
from flaxbert.training.loop import DeviceMemoryError, Outcome, check_devices, train

TIMES = {"seconds", "save_seconds", "sequences_per_second", "tokens_per_second", "mfu"}


class Crash(Exception):
    """The power fails."""


def crash_at(number):
    def before(drawn):
        if drawn == number:
            raise Crash

    return before


def signal_at(number, which=signal.SIGTERM):
    """The process gets a signal while batch `number` is drawn."""
    return lambda drawn: os.kill(os.getpid(), which) if drawn == number else None


def lines(workdir):
    """The lines of metrics without the fields of time."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def assert_same_run(workdir, expected):
    found, step = restore_params(str(workdir))
    wanted, last = restore_params(str(expected))
    assert step == last
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert lines(workdir) == lines(expected)


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_run_writes_its_lines_and_checkpoints(uninterrupted):
    assert [(line["step"], line["split"]) for line in lines(uninterrupted)] == [
        (4, "train"), (6, "validation"), (8, "train"), (12, "train"), (12, "validation")
    ]  # fmt: skip
    assert checkpoints(uninterrupted) == [6, 9, 12], "the newest three"
    assert list((uninterrupted / "tensorboard").glob("events.*"))


def test_a_line_holds_what_readers_expect(uninterrupted, experiment, batch_of):
    first = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[0])
    assert first.keys() == {
        "step", "split", "loss", "mlm_loss", "perplexity", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "nsp_random",
        "learning_rate", "gradient_norm", "skipped_not_finite", "skipped_spikes", "fill", "seconds", "save_seconds",
        "sequences_per_second", "tokens_per_second", "mfu",
    }  # fmt: skip
    tokens = sum((batch_of(number)["sequence_ids"] > 0).sum() for number in range(4))
    assert first["fill"] == pytest.approx(tokens / (4 * 8 * 16))
    labels = np.concatenate([batch_of(number)["next_sentence_labels"] for number in range(4)])
    assert first["nsp_random"] == pytest.approx(labels.mean())
    assert first["learning_rate"] == pytest.approx(1e-2 * (1 - 3 / 12)), "of the fourth update, which is that of step 3"
    assert first["sequences_per_second"] == pytest.approx(4 * 8 / first["seconds"])
    assert first["tokens_per_second"] == pytest.approx(tokens / first["seconds"])
    assert first["mfu"] is None
    assert first["perplexity"] == pytest.approx(np.exp(first["mlm_loss"]))
    assert 4 < first["mlm_loss"] < 5.5 and 0.5 < first["nsp_loss"] < 1.5


def test_nothing_is_compiled_once_each_kind_of_work_was_done(tmp_path, experiment, streams_of):
    """By the sixth of twelve steps there was a line, an evaluation and a checkpoint."""
    compiled = []

    def heard(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        first = []
        train(experiment, str(tmp_path), streams_of(lambda drawn: first.append(len(compiled)) if drawn == 8 else None))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert first[0] > 0, "nothing was heard"
    assert compiled[first[0]:] == []


def test_each_line_counts_the_steps_since_the_last_one(uninterrupted, batch_of):
    for line in lines(uninterrupted):
        if line["split"] == "train":
            batches = [batch_of(number) for number in range(line["step"] - 4, line["step"])]
            tokens, labels = (np.stack([batch[name] for batch in batches]) for name in (
                "sequence_ids", "next_sentence_labels"
            ))  # fmt: skip
            assert line["fill"] == pytest.approx((tokens > 0).mean())
            assert line["nsp_random"] == pytest.approx(labels.mean())


def test_the_held_out_line_is_that_of_the_asked_number_of_batches(uninterrupted, batch_of):
    """Two of the three that there are."""
    held_out = next(line for line in lines(uninterrupted) if line["split"] == "validation")
    labels = np.concatenate([batch_of(1_000_000 + number)["next_sentence_labels"] for number in range(2)])
    assert held_out["nsp_random"] == pytest.approx(labels.mean())
    assert not TIMES & held_out.keys()


def test_a_crashed_run_ends_as_one_that_never_crashed(uninterrupted, tmp_path, experiment, streams_of):
    """Before the first checkpoint, between two, twice at one place, and just before the end. The line at step 4 covers
    steps on both sides of the checkpoint at 3, that at step 8 those on both sides of 6.
    """
    for moment in (2, 5, 8, 8, 12):
        with pytest.raises(Crash):
            train(experiment, str(tmp_path), streams_of(crash_at(moment)))
    assert train(experiment, str(tmp_path), streams_of()) == Outcome(12, False)
    assert_same_run(tmp_path, uninterrupted)


def test_a_signal_saves_the_work_and_stops(uninterrupted, tmp_path, experiment, streams_of, capsys):
    """A batch is drawn while the step of its number is under way: that step is finished, and saved, though 5 and 7 are
    no steps at which one would save.
    """
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for step, which in ((5, signal.SIGTERM), (7, signal.SIGINT)):
        assert train(experiment, str(tmp_path), streams_of(signal_at(step, which))) == Outcome(step, True)
        assert f"stopped at step {step} with its work saved" in capsys.readouterr().err
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert checkpoints(tmp_path)[-1] == step
    assert train(experiment, str(tmp_path), streams_of()) == Outcome(12, False)
    assert "resumed at step 7" in capsys.readouterr().err
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("step", [6, 12])
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(uninterrupted, tmp_path, experiment, streams_of, step):
    """In the middle of the run and at its end; and the line that is missing is written by the next launch."""
    streams = streams_of()
    drawn = []

    def validation(phase):
        for batch in streams.validation(phase):
            drawn.append(len(drawn))
            if len(lines(tmp_path)) == {6: 1, 12: 4}[step]:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    interrupted = streams._replace(validation=validation)
    if step == 12:
        with pytest.raises(Crash):
            train(experiment, str(tmp_path), streams_of(crash_at(8)))
    assert train(experiment, str(tmp_path), interrupted) == Outcome(step, True)
    assert len(drawn) % experiment.train.eval_batches == 1, "the second batch is not drawn"
    assert checkpoints(tmp_path)[-1] == step
    assert train(experiment, str(tmp_path), streams) == Outcome(12, False)
    assert_same_run(tmp_path, uninterrupted)
    metrics = json.loads((tmp_path / "checkpoints" / str(step) / "metrics" / "metrics").read_text(encoding="utf-8"))
    assert "loss" in metrics, "the best checkpoint is chosen among all that were evaluated"


def test_work_is_said_to_be_saved_when_it_is(tmp_path, experiment, streams_of, monkeypatch):
    seen = []

    def look(record):
        seen.append((record, checkpoints(tmp_path)))

    real = loop.open_report
    monkeypatch.setattr(loop, "open_report", lambda *arguments: spoken(real(*arguments), look))
    train(experiment, str(tmp_path), streams_of(signal_at(2)))
    assert seen[-1][0].startswith("stopped at step 2") and seen[-1][1] == [2]


def spoken(opened, listen):
    @contextlib.contextmanager
    def both():
        with opened as report:
            yield report._replace(say=listen)

    return both()


def test_a_signal_before_the_first_step_stops_too(tmp_path, experiment, streams_of):
    assert train(experiment, str(tmp_path), streams_of(signal_at(0))) == Outcome(0, True)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_process_at_once(first, second):
    code = f"""
import os, signal
from flaxbert.training.signals import stop_requested
with stop_requested() as stop:
    assert not stop()
    os.kill(os.getpid(), signal.{first})
    assert stop()
    print("heard", flush=True)
    os.kill(os.getpid(), signal.{second})
    print("still here", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == -getattr(signal, second)
    assert ended.stdout == "heard\n"


def test_a_finished_run_has_nothing_to_do(uninterrupted, experiment, streams_of, capsys):
    before = lines(uninterrupted), checkpoints(uninterrupted)

    def refuse(drawn):
        raise AssertionError("no batch is needed")

    assert train(experiment, str(uninterrupted), streams_of(refuse)) == Outcome(12, False)
    assert "nothing to do: the run has reached step 12 of 12" in capsys.readouterr().err
    assert (lines(uninterrupted), checkpoints(uninterrupted)) == before


def test_a_finished_run_goes_on_with_more_steps(tmp_path, experiment, with_train, streams_of):
    drawn = []
    train(experiment, str(tmp_path), streams_of())
    assert train(with_train(steps=16), str(tmp_path), streams_of(drawn.append)) == Outcome(16, False)
    assert drawn[0] == 12, "the stream goes on where it stood"
    assert [(line["step"], line["split"]) for line in lines(tmp_path)][-3:] == [
        (12, "validation"), (16, "train"), (16, "validation")
    ]  # fmt: skip
    assert lines(tmp_path)[-2]["learning_rate"] == pytest.approx(1e-2 * (1 - 15 / 16))


def test_a_run_goes_on_on_another_mesh(uninterrupted, tmp_path, experiment, streams_of):
    """Sums are taken in another order there, so to the tolerance of float32 and not to the bit."""
    with pytest.raises(Crash):
        train(experiment, str(tmp_path), streams_of(crash_at(7)))
    train(dataclasses.replace(experiment, mesh=MeshConfig(data=4)), str(tmp_path), streams_of())
    for found, expected in zip(lines(tmp_path), lines(uninterrupted), strict=True):
        assert found.keys() == expected.keys()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_best_held_out_step_is_kept_beside_the_newest(tmp_path, with_train, streams_of, monkeypatch):
    losses = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 4.0, 12: 1.5}
    monkeypatch.setattr(
        part, "evaluate", lambda e, f, b, s, step, stop: {"step": step, "split": "validation", "loss": losses[step]}
    )
    experiment = with_train(eval_every=2, checkpoint_every=2, keep_checkpoints=1)
    with pytest.raises(Crash):
        train(experiment, str(tmp_path), streams_of(crash_at(7)))
    train(experiment, str(tmp_path), streams_of())
    assert checkpoints(tmp_path) == [4, 12]
    with open_checkpoints(str(tmp_path), 1) as kept:
        assert kept.best() == 4


def test_the_only_checkpoint_is_never_deleted_for_its_loss(tmp_path, with_train, streams_of):
    """A kill in between would leave a run without any, which then began anew."""
    experiment = with_train(eval_every=0, checkpoint_every=100)
    train(experiment, str(tmp_path), streams_of())
    before = (tmp_path / "checkpoints" / "12").stat()
    train(with_train(eval_every=6, checkpoint_every=100), str(tmp_path), streams_of())
    assert [(line["step"], line["split"]) for line in lines(tmp_path)][-1] == (12, "validation")
    assert (tmp_path / "checkpoints" / "12").stat().st_ino == before.st_ino


def test_a_checkpoint_stays_until_the_one_that_replaces_it_is_saved(
    uninterrupted, tmp_path, with_train, streams_of, monkeypatch
):
    """The held-out line of step 12 is missing, so that is saved anew with its loss; every try fails."""
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.0)
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    written = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(written[:-1]), encoding="utf-8")
    before = (workdir / "checkpoints" / "12").stat().st_ino
    with monkeypatch.context() as broken, pytest.raises(OSError, match="checkpoints/12 could not be saved"):
        broken.setattr(orbax_manager, "write_manifest", no_space)
        train(with_train(), str(workdir), streams_of())
    assert checkpoints(workdir) == [6, 9, 12] and (workdir / "checkpoints" / "12").stat().st_ino == before
    assert train(with_train(), str(workdir), streams_of()) == Outcome(12, False)
    assert_same_run(workdir, uninterrupted)


def no_space(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_exhausted_memory_is_told_of_with_what_the_step_takes(tmp_path, experiment, streams_of):
    def exhaust(drawn):
        if drawn == 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(DeviceMemoryError) as raised:
        train(experiment, str(tmp_path), streams_of(exhaust))
    assert raised.value.step_bytes > check_devices(experiment), "more than the state"


def test_evaluation_can_be_switched_off(tmp_path, with_train, streams_of):
    train(with_train(eval_every=0), str(tmp_path), streams_of()._replace(validation=None))
    assert [line["split"] for line in lines(tmp_path)] == ["train"] * 3


@pytest.mark.parametrize("changes, words", [
    ({"mesh": MeshConfig(data=3)}, "does not fit the 4 device"),
    ({"mesh": MeshConfig(data=1, tensor=4)}, "cannot be divided by mesh.tensor=4"),
])  # fmt: skip
def test_devices_that_cannot_carry_a_run_are_found_out_before_it_begins(experiment, changes, words):
    check_devices(experiment)
    with pytest.raises(ValueError, match=words):
        check_devices(dataclasses.replace(experiment, **changes))
