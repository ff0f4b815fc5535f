"""How long until the first step of a run is done: compiled anew, compiled before, and resumed?

    python -m benchmarks.startup --corpus CORPUS [--experiments bert_tiny bert_base] [--rounds N]
        [--against NAME=CHECKOUT ...] [--json RESULT.json]

Each launch is `flaxbert pretrain` as a user types it, in a process of its own, from the start of that process until its
line of metrics for one step can be read. In a round each checkout takes its turn:

    cold    a fresh folder, and nothing compiled before
    warm    a fresh folder, what the cold one compiled is there
    resume  the warm run goes on for another step from its checkpoint

Rows are 128 tokens long, 32 of them, and 8 where the model has the width of base or more.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.checkouts import add_against, read_against
from flaxbert.flags import load_experiment

KINDS = ("cold", "warm", "resume")
PATIENCE = 600.0


def launch(checkout: Path, experiment: str, corpus: Path, workdir: Path, cache: Path, step: int) -> float:
    """Seconds from the start of a run's process to its line of step `step`, its last. Raises RuntimeError with what it
    said where it fails.
    """
    width = load_experiment(experiment).model.hidden_size
    settings = {
        "steps": step, "batch-size": 8 if width >= 768 else 32, "microbatches": 1, "log-every": 1, "eval-every": 0,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "flaxbert", "pretrain", experiment, "--corpus", str(corpus), "--workdir", str(workdir),
        "--optimizer.warmup-steps", "1", "--data.sequence-length", "128",
        *(part for name, value in settings.items() for part in (f"--train.{name}", str(value))),
    ]  # fmt: skip
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(checkout)}
    lines = workdir / "metrics.jsonl"
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not has_line(lines, step):
        if process.poll() is not None and not has_line(lines, step) or time.perf_counter() - began > PATIENCE:
            process.kill()
            raise RuntimeError(f"{shlex.join(command)}: {process.communicate()[1]}")
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    process.communicate()  # its checkpoint
    return seconds


def has_line(path: Path, step: int) -> bool:
    """Whether a file of metrics has a whole line of a training step."""
    if not path.is_file():
        return False
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return any(line["step"] == step and line["split"] == "train" for line in map(json.loads, whole))


def measure(checkouts: dict[str, Path], experiment: str, corpus: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Checkout → kind of launch → its seconds in each round."""
    found: dict[str, dict[str, Any]] = {name: {kind: [] for kind in KINDS} for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as folder:
                cache, cold, warm = (Path(folder) / part for part in ("cache", "cold", "warm"))
                for kind, workdir, step in (("cold", cold, 1), ("warm", warm, 1), ("resume", warm, 2)):
                    found[name][kind].append(launch(checkout, experiment, corpus, workdir, cache, step))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--experiments", nargs="+", default=["bert_tiny", "bert_base"])
    parser.add_argument("--rounds", type=int, default=3)
    add_against(parser)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.against = read_against(parser, arguments.against, ("flaxbert",))
    return arguments


def main() -> None:
    arguments = parse()
    checkouts = {"flaxbert": Path.cwd()} | {name: Path(folder) for name, folder in arguments.against.items()}
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.startup", *sys.argv[1:]]),
        "machine": {"platform": platform.platform(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]},
        "seconds": {},
    }
    for experiment in arguments.experiments:
        found = measure(checkouts, experiment, arguments.corpus.absolute(), arguments.rounds)
        result["seconds"][experiment] = found
        for name, kinds in found.items():
            medians = "  ".join(f"{kind} {statistics.median(seconds):5.1f} s" for kind, seconds in kinds.items())
            print(f"{experiment:10} {name:10} {medians}", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
