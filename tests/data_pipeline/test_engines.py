"""Engines: local processes and Beam write the same bytes, go on after a kill, and end bad input in one sentence."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline import engines, open_corpus
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.tokenizer_training import train
from data_pipeline.unfinished import Unfinished
from flaxbert import cli

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="needs Apache Beam: pip install 'flaxbert[beam]'"
)
TWO_PROCESSES = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
TWO_THREADS = ("--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading")

DOCUMENTS = [f"The {name} has {index} moons.\nEach of them is {index * 7} miles wide." for index, name in enumerate(
    ["first planet", "second planet", "red giant", "small star", "old comet", "far world"] * 40)]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "moons.txt"
    path.write_text("\n\n".join([*DOCUMENTS, *DOCUMENTS[::5]]))
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train("wordpiece", DOCUMENTS, 100, True).save(folder)
    return PrepareConfig(tokenizer=str(folder), shard_megabytes=0.002, validation_fraction=0.3)


def local(config, source, output, workers=1):
    return prepare(config, [str(source)], str(output), workers, progress=False)


def beam(config, source, output, flags=TWO_PROCESSES):
    return prepare(config, [str(source)], str(output), progress=False, engine="beam", beam_flags=flags)


def content(folder):
    """All that a finished corpus holds, dataset.json and the tokenizer included."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_beam
@pytest.mark.parametrize("drop", ["none", "lines"])
def test_both_engines_write_the_same_bytes_with_any_workers(tmp_path, config, source, drop):
    config = dataclasses.replace(config, drop_duplicates=drop)
    expected = content(local(config, source, tmp_path / "1").path)
    assert len([path for path in expected if path.suffix == ".parquet"]) > 10
    assert content(local(config, source, tmp_path / "3", workers=3).path) == expected
    assert content(beam(config, source, tmp_path / "processes").path) == expected
    assert content(beam(config, source, tmp_path / "threads", TWO_THREADS).path) == expected


@needs_beam
def test_beam_trains_the_tokenizer_that_the_local_engine_trains(tmp_path, source):
    config = PrepareConfig(tokenizer="sentencepiece", vocab_size=150, shard_megabytes=0.01)
    assert content(beam(config, source, tmp_path / "b", TWO_THREADS).path) == content(
        local(config, source, tmp_path / "l").path
    )


@needs_beam
def test_bad_input_ends_beam_in_one_sentence(tmp_path, config, source):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(pathlib.Path(source).read_bytes() + b"\n\n\xff")
    with pytest.raises(ValueError, match=r"^/.*/bad.txt is not UTF-8 at byte \d+: found 0xff; [^\n]*$") as caught:
        beam(config, bad, tmp_path / "c", TWO_THREADS)
    assert not isinstance(caught.value, Unfinished)
    assert not list((tmp_path / "c").rglob("*.partial")) + list((tmp_path / "c").rglob("failure-*"))


@needs_beam
def test_a_worker_that_cannot_write_ends_beam_in_one_sentence_and_the_same_command_goes_on(tmp_path, config, source):
    expected = content(local(config, source, tmp_path / "whole").path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Unfinished, match="no room left"):
        patch.setattr("data_pipeline.prepare.write_manifest", _full)
        local(config, source, tmp_path / "c")
    (shard,) = (tmp_path / "c").glob("train-00003-*.parquet")
    shard.unlink()
    shard.mkdir()  # a file cannot be renamed to a folder's name
    with pytest.raises(Unfinished, match=r"^/.*/c cannot be written \(Is a directory\)[^\n]*$"):
        beam(config, source, tmp_path / "c", TWO_THREADS)
    shard.rmdir()
    assert content(beam(config, source, tmp_path / "c", TWO_THREADS).path) == expected


def _full(*_):
    raise OSError(28, "No space left on device")


RUN = """
import sys, time
from data_pipeline import prepare as module
from data_pipeline.config import PrepareConfig
if __name__ == "__main__":
    options = dict(engine="beam", beam_flags=sys.argv[4:]) if sys.argv[4:] else dict(workers=2)
    module.prepare(PrepareConfig(**eval(sys.argv[1])), [sys.argv[2]], sys.argv[3], progress=False, **options)
"""


@pytest.mark.parametrize("flags", [
    pytest.param((), id="local"), pytest.param(TWO_PROCESSES, id="beam", marks=needs_beam),
])  # fmt: skip
def test_a_killed_run_goes_on_with_either_engine(tmp_path, config, flags):
    source = tmp_path / "long.txt"
    source.write_text("\n\n".join(DOCUMENTS * 300))
    config = dataclasses.replace(config, shard_megabytes=0.1)
    (tmp_path / "run.py").write_text(RUN)
    arguments = [str(tmp_path / "run.py"), repr(dataclasses.asdict(config)), str(source), str(tmp_path / "c"), *flags]
    process = subprocess.Popen([sys.executable, *arguments], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        records = tmp_path / "c" / ".prepare"
        while len(list(records.glob("shard-*.json"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "c" / "dataset.json").exists()
        numbers = [path.stem.removeprefix("shard-") for path in records.glob("shard-*.json")]
        finished = [path for number in numbers for path in (tmp_path / "c").glob(f"*-{number}-of-*.parquet")]
        times = [path.stat().st_mtime_ns for path in finished]
        resumed = beam(config, source, tmp_path / "c") if flags else local(config, source, tmp_path / "c", 2)
        assert len(times) >= 6 and [path.stat().st_mtime_ns for path in finished] == times
        assert shards(resumed.path) == shards(local(config, source, tmp_path / "whole").path)
        open_corpus(resumed.path, verify="content")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that outlived the launching process


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def refuses(message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(PrepareConfig(), ["nowhere"], "nowhere", progress=False, **options)
    assert "\n" not in str(caught.value)


def test_settings_of_the_other_engine_are_refused():
    refuses("--runner=DirectRunner after -- is for a Beam runner: add --engine beam", beam_flags=TWO_THREADS)
    refuses("workers 3 is for the local engine", engine="beam", workers=3)
    refuses("engine 'spark' is not one of 'local', 'beam'", engine="spark")


@needs_beam
def test_flags_that_beam_does_not_understand_are_refused_in_one_sentence():
    refuses(
        "Beam does not understand the flags after --: argument --direct_num_workers: invalid int value: 'x'",
        engine="beam", beam_flags=("--direct_num_workers=x",),
    )


def test_without_beam_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    refuses(r"--engine beam needs Apache Beam: pip install 'flaxbert\[beam\]'", engine="beam")


def test_what_follows_two_dashes_reaches_the_runner_as_it_stands(monkeypatch, tmp_path):
    seen = {}

    def noted(settings, inputs, output, **options):
        seen.update(options, inputs=inputs)

    monkeypatch.setattr("data_pipeline.prepare.prepare", noted)
    command = ["prepare", "a.txt", "--output", "c", "--engine", "beam"]
    assert cli.main([*command, "--", "--runner=FlinkRunner", "--flink_master", "host:8081"]) == cli.DONE
    assert seen == {
        "inputs": ["a.txt"], "workers": None, "engine": "beam",
        "beam_flags": ("--runner=FlinkRunner", "--flink_master", "host:8081"),
    }


def test_flags_of_a_runner_without_beam_end_the_command_in_one_sentence(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    command = ["prepare", str(tmp_path / "a.txt"), "--output", str(tmp_path / "c")]
    assert cli.main([*command, "--", "--runner=DirectRunner"]) == cli.USER_ERROR
    printed = capsys.readouterr().err
    assert printed == "flaxbert: --runner=DirectRunner after -- is for a Beam runner: add --engine beam\n"


def _killed_by_the_system():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_by_the_system_ends_in_one_sentence_and_what_is_done_is_kept():
    with pytest.raises(Unfinished, match="a worker process was killed"):
        engines.run_apart(_killed_by_the_system)
