"""What a search came to: a table of means over seeds, as text and as JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.finetuning.metrics import rank
from flaxbert.finetuning.tasks import Task
from flaxbert.terminal import Tables
from flaxbert.training.files import write_atomically

RESULTS = "results.json"

Result = dict[str, Any]
_PLACE = ("learning_rate", "batch_size", "epochs")


def summarize(task: Task, results: Sequence[Result], best: Result) -> dict[str, Any]:
    """`rows`: for each place of the grid the mean, the standard deviation over seeds (of a sample; None with one seed)
    and the best of each metric on the development set, over the seeds that did not diverge; None where there is none.
    Highest mean of the first metric first, places where a run diverged last. `best`: the cell whose model is kept,
    with its scores.
    """
    places: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        places.setdefault(tuple(result["cell"][name] for name in _PLACE), []).append(result)
    rows = [_row(place, found) for place, found in places.items()]
    rows.sort(key=lambda row: (
        row["diverged"] > 0, -rank(task, {name: each["mean"] for name, each in row["metrics"].items()}),
    ))  # fmt: skip
    speeds = [result["examples_per_second"] for result in results if result["examples_per_second"]]
    return {
        "task": task.name, "rows": rows, "best": {"cell": best["cell"], "dev": best["dev"], **best.get("others", {})},
        "seconds": sum(result["seconds"] for result in results),
        "examples_per_second": statistics.median(speeds) if speeds else None,
    }  # fmt: skip


def _row(place: tuple[Any, ...], found: list[Result]) -> dict[str, Any]:
    ended = [result["dev"] for result in found if not result["diverged"]]
    names = (ended or [found[0]["dev"]])[0]
    metrics = {name: _over_seeds([scores[name] for scores in ended]) for name in names}
    diverged = len(found) - len(ended)
    return {**dict(zip(_PLACE, place, strict=True)), "seeds": len(found), "diverged": diverged, "metrics": metrics}


def _over_seeds(values: list[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):  # undefined for a seed: so is the mean
        return {"mean": None, "deviation": None, "best": max(known, default=None)}
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "deviation": spread, "best": max(known)}


def show(task: Task, found: dict[str, Any], workdir: Path) -> None:
    """Prints the table and writes it as results.json."""
    write_atomically(workdir / RESULTS, json.dumps(found, indent=1, allow_nan=False) + "\n")
    console = Tables()
    console.print(_table(task, found["rows"]))
    for row in found["rows"]:
        if row["diverged"]:
            place = f"learning rate {row['learning_rate']!r}, batch {row['batch_size']}, epochs {row['epochs']}"
            console.print(f"{place}: {row['diverged']} of {row['seeds']} runs diverged")
    best = found["best"]
    for split in (name for name in best if name != "cell"):
        console.print(f"best run, {split}: {scored(best[split])}")
    console.print(f"its model: {workdir / 'best'}", soft_wrap=True)


def _table(task: Task, rows: Sequence[dict[str, Any]]) -> Any:
    """A line for each place of the grid and metric: with all metrics beside one another, a terminal of 80 characters
    would cut the numbers.
    """
    from rich import box
    from rich.table import Table

    title = f"{task.name}: mean ± standard deviation over seeds, in %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("rate", "batch", "epochs", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("metric", overflow="fold")  # the one that may take two lines, were a rate very long
    for name in ("mean", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ended = row["seeds"] - row["diverged"]
        seeds = f"{ended} of {row['seeds']}" if row["diverged"] else str(ended)
        place = [repr(row["learning_rate"]), str(row["batch_size"]), str(row["epochs"]), seeds]
        for name, metric in row["metrics"].items():
            best = "" if row["seeds"] == 1 else _percent(metric["best"])
            table.add_row(*place, name, "diverged" if not ended else _mean(metric), best)
            place = [""] * len(place)
        if len(row["metrics"]) > 1:
            table.add_section()
    return table


def shown(metric: dict[str, Any]) -> str:
    """A metric of a row, in hundredths; the best of several seeds beside it."""
    return _mean(metric) + ("" if metric["deviation"] is None else f" (best {_percent(metric['best'])})")


def _mean(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "undefined"
    return _percent(metric["mean"]) + ("" if metric["deviation"] is None else f" ± {_percent(metric['deviation'])}")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def scored(scores: Mapping[str, float | None]) -> str:
    """The scores of one run, in hundredths."""
    return ", ".join(f"{name} {'undefined' if value is None else _percent(value)}" for name, value in scores.items())
