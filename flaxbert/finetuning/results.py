"""What a search came to: a table of means over seeds, as text and as JSON."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxbert.finetuning.metrics import rank
from flaxbert.finetuning.tasks import Task
from flaxbert.training.files import write_atomically

RESULTS = "results.json"

Result = dict[str, Any]
_PLACE = ("learning_rate", "batch_size", "epochs")


def summarize(task: Task, results: Sequence[Result], best: Result) -> dict[str, Any]:
    """`rows`: for each place of the grid the mean, the standard deviation over seeds (of a sample; None with one seed)
    and the best of each metric on the development set, highest mean of the first metric first. `best`: the cell
    whose model is kept, with its scores.
    """
    places: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        places.setdefault(tuple(result["cell"][name] for name in _PLACE), []).append(result)
    rows = [_row(place, found) for place, found in places.items()]
    rows.sort(key=lambda row: -rank(task, {name: each["mean"] for name, each in row["metrics"].items()}))
    speeds = [result["examples_per_second"] for result in results if result["examples_per_second"]]
    return {
        "task": task.name, "rows": rows, "best": {"cell": best["cell"], "dev": best["dev"], **best["others"]},
        "seconds": sum(result["seconds"] for result in results),
        "examples_per_second": statistics.median(speeds) if speeds else None,
    }  # fmt: skip


def _row(place: tuple[Any, ...], found: list[Result]) -> dict[str, Any]:
    metrics = {}
    for name in found[0]["dev"]:
        values = [result["dev"][name] for result in found]
        spread = statistics.stdev(values) if len(values) > 1 else None
        metrics[name] = {"mean": statistics.fmean(values), "deviation": spread, "best": max(values)}
    return {**dict(zip(_PLACE, place, strict=True)), "seeds": len(found), "metrics": metrics}


def show(task: Task, found: dict[str, Any], workdir: Path) -> None:
    """Prints the table and writes it as results.json."""
    from rich.console import Console
    from rich.table import Table

    write_atomically(workdir / RESULTS, json.dumps(found, indent=1) + "\n")
    table = Table(title=f"{task.name}: mean ± standard deviation over seeds", title_justify="left")
    names = list(found["rows"][0]["metrics"])
    for name in ("rate", "batch", "epochs", "seeds", *names):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        place = (f"{row['learning_rate']:g}", str(row["batch_size"]), str(row["epochs"]), str(row["seeds"]))
        table.add_row(*place, *(shown(row["metrics"][name]) for name in names))
    console = Console(highlight=False, markup=False)
    console.print(table)
    best = found["best"]
    for split in (name for name in best if name != "cell"):
        console.print(f"best run, {split}: {scored(best[split])}")
    console.print(f"its model: {workdir / 'best'}")


def shown(metric: dict[str, Any]) -> str:
    """A metric of a row, in hundredths."""
    spread = "" if metric["deviation"] is None else f" ± {100 * metric['deviation']:.2f}"
    return f"{100 * metric['mean']:.2f}{spread} (best {100 * metric['best']:.2f})"


def scored(scores: dict[str, float]) -> str:
    """The scores of one run, in hundredths."""
    return ", ".join(f"{name} {100 * value:.2f}" for name, value in scores.items())
