"""One writer at a time; a full disk ends in one sentence and loses nothing; what is not ours is never touched."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.tokenizer_training import train
from data_pipeline.work_folder import WORK, work_folder

DOCUMENTS = [f"The {name} has {index} moons. Each of them is {index * 7} miles wide." for index, name in enumerate(
    ["first planet", "second planet", "red giant", "small star", "old comet", "far world"] * 20)]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "moons.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train("wordpiece", DOCUMENTS, 100, True).save(folder)
    return PrepareConfig(tokenizer=str(folder), shard_megabytes=0.002, validation_fraction=0.3)


def run(config, source, output, workers=1):
    return prepare(config, [source], str(output), workers, progress=False)


def refuses(message, config, source, output, workers=1):
    with pytest.raises(ValueError, match=message) as caught:
        run(config, source, output, workers)
    assert "\n" not in str(caught.value)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


HOLDS = """
import sys, time
from pathlib import Path
from data_pipeline.work_folder import work_folder
with work_folder(Path(sys.argv[1]), {"settings": {}, "source": {"files": []}}):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process is writing."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "c")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield tmp_path / "c", process
    process.kill()
    process.communicate()


def test_a_second_prepare_into_the_same_folder_is_refused_and_takes_nothing(held, config, source):
    folder, _ = held
    before = files(folder)
    refuses(r"another prepare is writing .*/c: wait until it has ended", config, source, folder)
    assert files(folder) == before


def test_a_killed_prepare_no_longer_holds_its_folder(held, config, source):
    folder, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    refuses("holds an unfinished corpus prepared with tokenizer", config, source, folder)


def test_two_blocks_of_one_process_exclude_each_other_too(tmp_path):
    state = {"settings": {}, "source": {"files": []}}
    with work_folder(tmp_path / "c", state):
        with pytest.raises(ValueError, match="another prepare is writing"), work_folder(tmp_path / "c", state):
            pass
    assert not list((tmp_path / "c").iterdir())


def test_an_empty_folder_is_empty_again_after_a_failure(tmp_path, config):
    (tmp_path / "c").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    refuses("the corpus is empty", config, str(tmp_path / "empty.txt"), tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def stop_before_the_manifest(config, source, output):
    """Leaves all shards, and everything else that lets the same command go on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.prepare.write_manifest", full)
        refuses("no room left to write", config, source, output)


def test_work_of_a_newer_version_is_refused_and_kept(tmp_path, config, source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.work_folder.FORMAT_VERSION", 99)
        stop_before_the_manifest(config, source, tmp_path / "c")
    before = files(tmp_path / "c")
    refuses("unfinished corpus of another version of this software", config, source, tmp_path / "c")
    assert files(tmp_path / "c") == before


def test_work_of_a_newer_version_with_other_keys_is_refused_and_kept(tmp_path, config, source):
    stop_before_the_manifest(config, source, tmp_path / "c")
    (tmp_path / "c" / WORK / "state.json").write_text('{"format_version": 99, "plan": {}}')
    before = files(tmp_path / "c")
    refuses("unfinished corpus of another version of this software", config, source, tmp_path / "c")
    assert files(tmp_path / "c") == before


def test_a_corpus_that_another_prepare_finishes_meanwhile_is_kept(tmp_path, config, source, monkeypatch):
    def after_another(folder, state):
        monkeypatch.undo()
        run(config, source, folder)
        return work_folder(folder, state)

    expected = shards(run(config, source, tmp_path / "whole").path)
    monkeypatch.setattr("data_pipeline.prepare.work_folder", after_another)
    finished = run(config, source, tmp_path / "c")
    assert finished.finished_before and shards(tmp_path / "c") == expected
    assert not (tmp_path / "c" / WORK).exists()


def test_what_a_kill_at_the_very_end_left_is_removed_by_the_next_run(tmp_path, config, source):
    finished = files(run(config, source, tmp_path / "c").path)
    (tmp_path / "c" / WORK / "digests").mkdir(parents=True)
    (tmp_path / "c" / WORK / "digests" / "lines-00000-00000.run").write_bytes(b"left")
    assert run(config, source, tmp_path / "c").finished_before
    assert not (tmp_path / "c" / WORK).exists() and files(tmp_path / "c") == finished


def test_a_finished_corpus_of_a_newer_version_is_refused_and_kept(tmp_path, config, source):
    run(config, source, tmp_path / "c")
    manifest = json.loads((tmp_path / "c" / "dataset.json").read_text())
    (tmp_path / "c" / "dataset.json").write_text(json.dumps(manifest | {"format_version": 99}))
    before = files(tmp_path / "c")
    refuses("has format_version 99, this release reads 1", config, source, tmp_path / "c")
    assert files(tmp_path / "c") == before


FULL = """
import resource, sys
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    prepare(PrepareConfig(**eval(sys.argv[1])), [sys.argv[2]], sys.argv[3], int(sys.argv[5]), False)
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files as POSIX systems can")
@pytest.mark.parametrize("limit", [0, 100, 700])
def test_a_system_that_refuses_to_write_more_ends_in_one_sentence_and_the_same_command_goes_on(
    tmp_path, config, source, limit
):
    arguments = [repr(dataclasses.asdict(config)), source, str(tmp_path / "c"), str(limit), "1"]
    found = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"Unfinished there is no room left to write {tmp_path / 'c'} (File too large): make room")
    assert found.count("\n") == 1
    assert not list((tmp_path / "c").rglob("*.partial")) and not list((tmp_path / "c").glob("*.parquet"))
    run(config, source, tmp_path / "c")
    assert shards(tmp_path / "c") == shards(run(config, source, tmp_path / "whole").path)


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_shards_outlive_a_failure_to_write(tmp_path, config, source, workers):
    stop_before_the_manifest(config, source, tmp_path / "c")
    for path in (tmp_path / "c").glob("*-0000[2-9]-of-*.parquet"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.parquet")}
    blocked = tmp_path / "c" / next(iter(kept)).name.replace("00000", "00002").replace("00001", "00002")
    blocked.mkdir()  # a file cannot be renamed to a folder's name
    refuses(r"c cannot be written \(Is a directory\)", config, source, tmp_path / "c", workers)
    assert not list((tmp_path / "c").rglob("*.partial"))
    blocked.rmdir()
    run(config, source, tmp_path / "c", workers)
    assert len(kept) == 4 and kept == {path: path.stat().st_mtime_ns for path in kept}
    assert shards(tmp_path / "c") == shards(run(config, source, tmp_path / "whole").path)


@pytest.mark.parametrize("where", ["shard", "record", "tokenizer"])
def test_no_space_left_ends_in_one_sentence_and_loses_nothing(tmp_path, config, source, monkeypatch, where):
    target = {
        "shard": (pq.ParquetWriter, "write_table"),
        "record": ("data_pipeline.shards.write_json",),
        "tokenizer": ("data_pipeline.tokenizer_folder.write_json",),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        refuses(r"no room left to write .*/c \(No space left on device\)", config, source, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.partial")) and not (tmp_path / "c" / "dataset.json").exists()
    run(config, source, tmp_path / "c")
    assert shards(tmp_path / "c") == shards(run(config, source, tmp_path / "whole").path)
