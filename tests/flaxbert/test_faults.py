"""The command line under a fault of the disk, the corpus, the machine or its user: one sentence and a status that says
whether to try again, and nothing that was there is lost.

Whole runs under faults are tested in tests/flaxbert/training/test_faulty_runs.py, several processes in
tests/flaxbert/test_processes.py, mistakes in tests/flaxbert/test_cli.py.
"""

import ast
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_cli import TIMES, finish, snapshot, steps_saved, write_text

from flaxbert import cli
from flaxbert.training.lock import only_launch

STEPS, SAVE_EVERY = 16, 4
SIZES = (
    "--model.num-layers", "1", "--model.hidden-size", "16", "--model.num-heads", "2", "--model.max-length", "32",
    "--data.sequence-length", "32", "--optimizer.warmup-steps", "5", "--optimizer.learning-rate", "1e-2",
    "--train.batch-size", "8", "--train.log-every", "1", "--train.eval-every", "0",
    "--train.checkpoint-every", SAVE_EVERY, "--train.keep-checkpoints", "20",
)  # fmt: skip
# Sums over devices run in another order. A row that is read twice or left out shows in the second digit.
RTOL = 2e-5
LAUNCH = "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'flaxbert', *sys.argv[1:]])"
FULL = os.strerror(27)  # what the system says of a file that may not grow, in place of a full disk's words


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_text(folder / "text.txt", 0)
    settings = ("--tokenizer", "wordpiece", "--vocab-size", "120", "--validation-fraction", "0.2", "--workers", "1")
    assert cli.main(["prepare", str(folder / "text.txt"), "--output", str(folder / "corpus"), *settings]) == cli.DONE
    return folder / "corpus"


@pytest.fixture(scope="module")
def command(prepared):
    """The arguments of a launch."""
    return lambda workdir, *flags, corpus=prepared: [
        str(x) for x in
        ("pretrain", "bert_tiny", "--corpus", corpus, "--workdir", workdir, *SIZES, "--train.steps", STEPS, *flags)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def start(command, tmp_path_factory):
    """Starts a launch on so many devices, in a process that has run the code `first`; what still runs at the end is
    killed. Compilations are kept for the next.
    """
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compilations"))}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    begun = []

    def begin(workdir, *flags, devices=1, first=""):
        environment = os.environ | kept | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        begun.append(subprocess.Popen(
            [sys.executable, "-c", first + LAUNCH, *command(workdir, *flags)], env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """A run on one device, with a checkpoint every four steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    status, said = finish(start(workdir))
    assert status == cli.DONE, said
    return workdir


@pytest.fixture
def begun(alone, tmp_path):
    """A copy of it as it had lain there, had it been killed once its first checkpoint was saved."""
    copy = pathlib.Path(shutil.copytree(alone, tmp_path / "run"))
    for step in range(2 * SAVE_EVERY, STEPS + 1, SAVE_EVERY):
        shutil.rmtree(copy / "checkpoints" / str(step))
    return copy


@pytest.fixture
def refused(capsys):
    """Runs a launch that must fail with status 1; returns its one sentence."""

    def run(arguments):
        capsys.readouterr()
        assert cli.main(arguments) == cli.USER_ERROR
        return the_sentence(capsys.readouterr().err)

    return run


def the_sentence(said):
    """The one that a launch has ended with."""
    assert "Traceback" not in said
    sentences = [line for line in said.splitlines() if line.startswith("flaxbert: ")]
    assert len(sentences) == 1 and said.endswith(sentences[0] + "\n"), said
    return sentences[0]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("devices", [2, *(pytest.param(more, marks=pytest.mark.slow) for more in (4, 8))])
def test_a_run_of_one_device_goes_on_on_more_with_the_same_batches_and_losses(start, alone, begun, devices):
    status, said = finish(start(begun, devices=devices))
    assert status == cli.DONE and f"resumed at step {SAVE_EVERY}" in said, said
    found, expected = lines(begun), lines(alone)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for line, other in zip(found, expected, strict=True):
        for name in line.keys() - TIMES - {"split"}:
            np.testing.assert_allclose(line[name], other[name], rtol=RTOL, err_msg=f"{name} of step {line['step']}")


def test_a_launch_is_refused_while_another_one_trains(command, refused, begun):
    before = snapshot(begun)
    with only_launch(str(begun)):
        assert f"another launch is training in {begun}: wait until it has ended" in refused(command(begun))
    assert snapshot(begun) == before


def test_a_second_signal_ends_a_launch_at_once(start, tmp_path):
    """The first one has been heard when the system, and no Python any more, is to answer the next."""
    process = start(tmp_path / "run")
    while not process.stderr.readline().startswith("corpus:"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    while is_caught(process, signal.SIGINT):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert status == -signal.SIGINT and "stopped" not in said


def is_caught(process, number):
    """Whether a handler of the process listens to the signal."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1


@contextlib.contextmanager
def full_disk():
    """No file of this process may grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_is_not_begun_on_a_full_disk(command, refused, tmp_path):
    """What is left of it does not keep a later launch from beginning it: test_run.py."""
    workdir = tmp_path / "run"
    with full_disk():
        said = refused(command(workdir))
    assert re.search(rf"{workdir}/tokenizer/[\w.]+ cannot be written: .*{FULL}", said)
    assert [path.name for path in workdir.iterdir()] == ["tokenizer"]


def test_a_run_that_is_resumed_on_a_full_disk_is_refused_and_stays_as_it_was(command, refused, begun):
    before = with_content(begun)
    with full_disk():
        said = refused(command(begun))
    assert said == f"flaxbert: {begun}/metrics.jsonl: {FULL}"
    assert with_content(begun) == before


def with_content(folder):
    return {name: content for name, content in snapshot(folder).items() if content}


def test_a_disk_without_room_for_a_checkpoint_is_told_of_before_the_run_is_made(command, refused, tmp_path):
    """Forty million gigabytes of parameters and moments, of which none is ever there."""
    sizes = ("--model.hidden-size", 16_384, "--model.num-layers", 1_000_000)
    said = refused(command(tmp_path / "run", *sizes))
    assert re.search(rf"the disk of {tmp_path}/run has [\d,.]+ GB left, and a checkpoint takes [\d,.]+$", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["[x]", "a*/run", "what?"])
def test_a_work_directory_in_which_no_checkpoint_could_be_saved_is_refused(command, refused, tmp_path, name):
    """Orbax takes the name for a pattern."""
    assert f"--workdir {tmp_path / name} holds one of * ? [ in its name" in refused(command(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


# Root writes where it may not. Without this capability (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE), which goes with the next
# program, it cannot.
UNPRIVILEGED = "import ctypes; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); "


@pytest.fixture
def read_only():
    """Makes a folder and all in it read-only for as long as the test runs."""
    changed = []

    def change(folder):
        for path in [*folder.rglob("*"), folder]:
            path.chmod(path.stat().st_mode & ~0o222)
            changed.append(path)

    yield change
    for path in reversed(changed):
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.parametrize("name", ["new", "run"])
def test_a_read_only_work_directory_is_an_error_at_the_start(start, begun, read_only, tmp_path, name):
    read_only(tmp_path)
    before = snapshot(begun)
    status, said = finish(start(tmp_path / name, first=UNPRIVILEGED))
    assert status == cli.USER_ERROR, said
    assert re.fullmatch(rf"flaxbert: {tmp_path}/{name}\S*: Permission denied", the_sentence(said))
    assert snapshot(begun) == before


def test_a_launch_to_which_nobody_listens_trains_all_the_same(start, tmp_path):
    """Its sentences come before the console of the loop, which has its own test: test_metrics.py."""
    process = start(tmp_path / "run")
    process.stderr.close()
    process.stderr = None  # else what ends the test would read it
    assert process.wait(timeout=200) == cli.DONE
    assert steps_saved(tmp_path / "run") == STEPS


def test_a_command_that_is_started_without_standard_error_says_what_it_says_to_nobody():
    """As `2>&-` and some supervisors start it: there is no `sys.stderr` then."""
    command = f"{sys.executable} -m flaxbert evaluate /nowhere --text /nothing 2>&-"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (cli.USER_ERROR, "")


def test_three_saves_that_fail_end_a_launch_with_a_sentence_and_the_checkpoint_before_stays(start, begun):
    """Lines of metrics fit on this disk, the arrays of a checkpoint do not."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    status, said = finish(start(begun, first=limited))
    assert status == cli.USER_ERROR
    told = [line for line in said.partition("resumed at step 4\n")[2].splitlines() if not line.startswith("step ")]
    failed = f"checkpoint {begun}/checkpoints/{{}} could not be saved ({FULL}){{}}: the newest is that of step 4"
    assert told == [
        failed.format(8, ""), failed.format(12, ""),
        "flaxbert: " + failed.format(16, ", nor could the 2 tries before it"),
    ], said  # fmt: skip
    assert steps_saved(begun) == SAVE_EVERY


def test_a_run_without_a_whole_checkpoint_is_refused_and_not_begun_anew(command, refused, begun):
    os.truncate(begun / "checkpoints" / "4" / "_CHECKPOINT_METADATA", 9)
    before = snapshot(begun)
    assert re.search(
        rf"{begun}/checkpoints holds checkpoints, and none is whole \(4: _CHECKPOINT_METADATA has 9 bytes, expected",
        refused(command(begun)),
    )
    assert snapshot(begun) == before


@pytest.fixture
def corpus(prepared, tmp_path):
    """A copy of the corpus that a test may spoil."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "corpus"))


def alter(shard):
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("inflict, words, flags", [
    (alter, "was altered", ("--verify", "content")),
    (lambda shard: os.truncate(shard, 100), "was truncated or altered: found 100 bytes, expected", ()),
    (lambda shard: shard.unlink(), "is missing", ()),
], ids=["altered", "truncated", "missing"])  # fmt: skip
def test_an_altered_or_missing_shard_is_named_with_its_checksum_before_the_run_is_made(
    command, refused, corpus, tmp_path, inflict, words, flags
):
    shards = json.loads((corpus / "dataset.json").read_text())["shards"]["train"]
    record = max(shards, key=lambda shard: shard["bytes"])
    inflict(corpus / record["name"])
    said = refused(command(tmp_path / "run", *flags, corpus=corpus))
    assert f"shard {corpus / record['name']} {words}" in said and record["sha256"] in said
    assert not (tmp_path / "run").exists()


def test_every_sentence_that_the_page_on_faults_quotes_is_one_of_ours():
    """With … for what a sentence fills in."""
    root = pathlib.Path(cli.__file__).parents[1]
    page = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    ours = [
        sentence for package in ("flaxbert", "data_pipeline") for path in (root / package).rglob("*.py")
        for sentence in sentences_of(path)
    ]  # fmt: skip
    quoted = re.findall(r"^> (.*)$", page, re.MULTILINE)
    assert len(quoted) > 5
    assert [quote for quote in quoted if not any(quote in sentence for sentence in ours)] == []


def sentences_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
