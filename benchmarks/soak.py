"""Is a run that is killed again and again the run that nobody touched, to the last bit?

    python -m benchmarks.soak [--rounds N] [--seed N] [--folder DIR] [--json RESULT.json]

Prepares a small corpus, trains a small model on it once in peace, and once more through N rounds: each starts the same
command and, some time later, sends SIGTERM, SIGINT or SIGKILL: while it starts, at a random step, or while a checkpoint
is being written, which one in three of the kills waits for. Signals have to be answered with status 75 and the work
saved. Then the command is left to end, and the parameters of both runs are compared bit by bit, and their lines of
metrics field by field, the times aside. The run is as long as the rounds need it: each trains a few steps of it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

STEPS_A_ROUND = 12
STOPPED = 75
# Of a line: those that differ between equal runs.
TIMES = {"seconds", "save_seconds", "sequences_per_second", "tokens_per_second", "mfu"}
MODEL = (
    "--model.num-layers", "2", "--model.hidden-size", "64", "--model.num-heads", "2", "--model.max-length", "32",
    "--data.sequence-length", "32", "--optimizer.warmup-steps", "5", "--optimizer.learning-rate", "1e-2",
)  # fmt: skip
RHYTHM = (
    "--train.batch-size", "8", "--train.log-every", "7", "--train.eval-every", "10", "--train.eval-batches", "2",
    "--train.checkpoint-every", "3",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Round:
    """What was done to a launch, and how it ended."""

    sent: str
    moment: str
    step: int
    """The newest checkpoint just before."""
    saved: int
    """The newest one afterwards."""
    status: int
    seconds: float
    fault: str | None
    """What was wrong with its end."""


def write_text(path: pathlib.Path, seed: int) -> None:
    """Documents of a few sentences over a small vocabulary of made-up words."""
    chance = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "l", "r", "")]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(300):
            for _ in range(chance.randint(3, 8)):
                file.write(" ".join(chance.choices(words, k=chance.randint(3, 12))).capitalize() + ".\n")
            file.write("\n")


class Soak:
    """A corpus, and the command that trains on it."""

    def __init__(self, folder: pathlib.Path, rounds: int, seed: int) -> None:
        self.folder, self.corpus, self.steps = folder, folder / "corpus", STEPS_A_ROUND * rounds + 12
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        write_text(folder / "text.txt", seed)
        settings = ("--tokenizer", "wordpiece", "--vocab-size", "120", "--validation-fraction", "0.2", "--workers", "1")
        self.finish(self.command("prepare", folder / "text.txt", "--output", self.corpus, *settings))

    def command(self, *arguments: Any) -> subprocess.Popen[str]:
        """Starts flaxbert."""
        return subprocess.Popen(
            [sys.executable, "-m", "flaxbert", *map(str, arguments)], env=self.environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def launch(self, workdir: pathlib.Path) -> subprocess.Popen[str]:
        """The one command that both runs are made by."""
        return self.command(
            "pretrain", "bert_tiny", "--corpus", self.corpus, "--workdir", workdir, *MODEL, *RHYTHM,
            "--train.steps", self.steps,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Waits for a command that must succeed."""
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(f"status {process.returncode}: {said[-2000:]}")


def steps_saved(workdir: pathlib.Path) -> int:
    """The newest committed checkpoint; 0 where there is none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def interrupt(soak: Soak, workdir: pathlib.Path, chance: random.Random) -> Round:
    """One launch and its end."""
    which = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGKILL])
    moment = chance.choice(["start", "step", "save"])
    before, began = steps_saved(workdir), time.perf_counter()
    process = soak.launch(workdir)
    wait_for(moment, process, workdir, before, chance)
    step = steps_saved(workdir)
    process.send_signal(which)
    said = process.communicate()[1]
    after, status = steps_saved(workdir), process.returncode
    fault = judge(which, moment, status, said, (step, after))
    return Round(which.name, moment, step, after, status, round(time.perf_counter() - began, 1), fault)


def wait_for(
    moment: str, process: subprocess.Popen[str], workdir: pathlib.Path, before: int, chance: random.Random
) -> None:  # fmt: skip
    """Returns at the moment to send: seconds after the launch, or after a number of steps has been saved."""
    if moment == "start":
        time.sleep(chance.uniform(0, 8))
        return
    wanted = before + chance.randrange(1, STEPS_A_ROUND)
    while process.poll() is None and steps_saved(workdir) < wanted:
        time.sleep(0.002)
    if moment == "step":
        time.sleep(chance.uniform(0, 0.1))
    while moment == "save" and process.poll() is None and not is_saving(workdir):
        time.sleep(0.0005)


def judge(which: signal.Signals, moment: str, status: int, said: str, steps: tuple[int, int]) -> str | None:
    """What is wrong with the end of a launch. Python itself answers a signal before any line of ours runs."""
    too_early = moment == "start" and status in (-which, 130, 1) and "resumed at step" not in said
    if which == signal.SIGKILL:
        expected = status == -signal.SIGKILL
    else:
        expected = status == STOPPED and "Traceback" not in said or too_early
    if not expected:
        return f"status {status}: {said[-1000:]}"
    if "damaged" in said or steps[1] < steps[0]:
        return f"work was lost: {said[-1000:]}"
    return None


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """In what two runs differ."""
    import jax
    import numpy as np

    from flaxbert.training.checkpoint import restore_params

    (found, step), (wanted, last) = restore_params(str(one)), restore_params(str(other))
    told = [f"one ended at step {step}, the other at {last}"] if step != last else []
    for (path, a), (_, b) in zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (found, wanted)), strict=True):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            told.append(f"{jax.tree_util.keystr(path)} differs")
    lines, others = read_lines(one), read_lines(other)
    told += [f"line {a} where {b} was expected" for a, b in zip(lines, others) if a != b]
    return told + ([] if len(lines) == len(others) else [f"{len(lines)} lines, {len(others)} expected"])


def read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics, the times aside."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def run(folder: pathlib.Path, rounds: int, seed: int) -> dict[str, Any]:
    """All rounds, each told as it ends, and the verdict."""
    soak, chance, done = Soak(folder, rounds, seed), random.Random(seed), list[Round]()
    alone, harried = folder / "alone", folder / "harried"
    soak.finish(soak.launch(alone))
    while len(done) < rounds and steps_saved(harried) < soak.steps:
        done.append(interrupt(soak, harried, chance))
        print(
            "round {:3}  {sent:7} at {moment:5}  step {step:4}, then {saved:4}  status {status:3}  {seconds:5.1f} s  {}"
            .format(len(done), done[-1].fault or "", **dataclasses.asdict(done[-1])), flush=True,
        )  # fmt: skip
    soak.finish(soak.launch(harried))
    faults = [each.fault for each in done if each.fault is not None] + differences(harried, alone)
    if len(done) < rounds:
        faults.append(f"the run was over after {len(done)} rounds")
    lines = len(read_lines(alone))
    return {
        "rounds": [dataclasses.asdict(each) for each in done], "steps": soak.steps, "lines": lines, "faults": faults
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", metavar="DIR", help="an empty folder to keep the runs in; else a temporary one")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = run(pathlib.Path(arguments.folder or temporary), arguments.rounds, arguments.seed)
    equal = f"{result['steps']} steps, every parameter and all {result['lines']} lines equal"
    print("\n".join(["DIFFERENT", *result["faults"]]) if result["faults"] else f"the same run: {equal}")
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
        settings = {"seed": arguments.seed, "machine": machine}
        pathlib.Path(arguments.json).write_text(json.dumps(result | settings, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
