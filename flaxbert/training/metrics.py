"""Where a run's numbers go: JSON lines, TensorBoard, the console; and what they are measured in."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flaxbert.config import ModelConfig
from flaxbert.terminal import Lines
from flaxbert.training.files import write_atomically
from flaxbert.training.tensorboard import Record, open_board

# Dense bfloat16 peak of one device in FLOP/s, by a part of its `device_kind` (vendors' data sheets).
PEAK_FLOPS = (
    ("H100", 989e12), ("H200", 989e12), ("A100", 312e12),
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12), ("TPU v5p", 459e12), ("TPU v5", 459e12),
    ("TPU v6", 918e12),
)  # fmt: skip


class Report(NamedTuple):
    """How the loop speaks."""

    step: Callable[[int], None]
    """A step has been started."""
    record: Callable[[Record], None]
    """A line of metrics is ready."""
    say: Callable[[str], None]
    """A sentence for the person at the console."""
    evaluated: int = -1
    """The step of the last held-out line that an earlier launch wrote; -1 where there is none."""


SILENT = Report(lambda step: None, lambda record: None, lambda text: None)


def flops_per_row(model: ModelConfig, length: int, predictions: int, sequences: int) -> float:
    """Model FLOPs of one row, forward and backward: products alone, a multiply-add counts two, padding included.

    What training needs, and no more: the last layer gives what the heads read of it, the predictions and the [CLS] of
    the sequences, and all of its keys and values. The pooler and the next-sentence head, some 5 in 100,000, are left
    out as is the custom.
    """
    return sum(flops_by_part(model, length, predictions, sequences).values())


def flops_by_part(model: ModelConfig, length: int, predictions: int, sequences: int) -> dict[str, float]:
    """The summands of `flops_per_row`, by the part of the model that they are spent in."""
    width, vocab, tokens = model.hidden_size, model.vocab_size or 0, length * model.num_layers
    computed = tokens - length + min(predictions + sequences, length)  # outputs of all layers
    return {
        "attention projections": (tokens + computed) * 6 * 2 * width**2,
        "attention scores and values": computed * 12 * length * width,
        "feed-forward": computed * 6 * 2 * width * model.mlp_size,
        "masked-token head": 6 * predictions * (width**2 + width * vocab),
    }


def next_sentence_flops(model: ModelConfig, sequences: int) -> float:
    """What pooler and next-sentence head spend on a row of so many sequences: no part of `flops_per_row`."""
    return 6 * sequences * (model.hidden_size**2 + 2 * model.hidden_size)


def peak_flops(device_kind: str) -> float | None:
    """The peak of one device, or None where it is not known (a CPU's is not)."""
    return next((peak for name, peak in PEAK_FLOPS if name in device_kind), None)


@contextlib.contextmanager
def open_report(workdir: str, first_step: int, steps: int) -> Iterator[Report]:
    """Writers for a run that goes on after `first_step`; what an earlier try wrote beyond it is dropped."""
    with contextlib.ExitStack() as stack:
        path = pathlib.Path(workdir) / "metrics.jsonl"
        evaluated = _last_evaluated(path, first_step)
        console = stack.enter_context(_console(first_step, steps))
        lines = stack.enter_context(_json_lines(path, first_step, console.say))
        board = stack.enter_context(open_board(pathlib.Path(workdir) / "tensorboard", first_step, console.say))

        def record(line: Record) -> None:
            for write in (lines, board, console.record):
                write(line)

        yield console._replace(record=record, evaluated=evaluated)


@contextlib.contextmanager
def _json_lines(path: pathlib.Path, first_step: int, say: Callable[[str], None]) -> Iterator[Callable[[Record], None]]:
    """Appends one line a record. A line cut short by a crash, and lines of steps to be done again, are dropped.

    Lines that cannot be written are kept and tried again with the next one: a full disk costs none where it is mended
    in time. Training goes on; `say` is told when it begins, and at the end what is missing.
    """
    kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= first_step]
    write_atomically(path, "".join(kept))
    unwritten, told = b"", False
    with open(path, "ab", buffering=0) as file:

        def write_on() -> str | None:
            """Why lines are left unwritten; None where there are none. The file may end in a part of a line."""
            nonlocal unwritten
            try:
                while unwritten:
                    unwritten = unwritten[file.write(unwritten):]
            except OSError as error:
                return error.strerror
            return None

        def write(record: Record) -> None:
            nonlocal unwritten, told
            line = json.dumps({name: _written(value) for name, value in record.items()}) + "\n"
            unwritten += line.encode()
            if (reason := write_on()) is not None and not told:
                say(f"{path} cannot be written ({reason}): training goes on, and its lines are kept until they can be")
            told = reason is not None

        try:
            yield write
        finally:
            if (reason := write_on()) is not None:
                say(f"{path} lacks the last {len(unwritten.splitlines())} of its lines ({reason})")


def _written(value: Any) -> Any:
    """JSON has no word for a number that is none: null stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last_evaluated(path: pathlib.Path, last_step: int) -> int:
    records = map(json.loads, whole_lines(path))
    steps = [line["step"] for line in records if line.get("split") == "validation" and line["step"] <= last_step]
    return max(steps, default=-1)


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of a metrics.jsonl that are records, with their ends: not the last one while it is being written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] >= 0 and line.endswith("\n"):
                whole.append(line)
    return whole


@contextlib.contextmanager
def _console(first_step: int, steps: int) -> Iterator[Report]:
    """A live line on a terminal, else a plain line for each record."""
    console = Lines()
    if not console.is_terminal:
        yield Report(
            lambda step: None,
            lambda record: console.print(_sentence(record, steps), soft_wrap=True),
            lambda text: console.print(text, soft_wrap=True),
        )
        return
    columns = (
        TextColumn("step {task.completed:,}/{task.total:,}"), BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("", total=steps, completed=first_step, numbers="compiling…")

        def record(line: Record) -> None:
            if line["split"] == "train":
                progress.update(task, numbers=_numbers(line))
            else:
                progress.console.print(_sentence(line, steps), soft_wrap=True)

        yield Report(lambda step: progress.update(task, completed=step), record, progress.console.print)


def _sentence(record: Record, steps: int) -> str:
    return f"step {record['step']:,}/{steps:,}  {record['split']:10}  {_numbers(record)}"


def _numbers(record: Record) -> str:
    """The numbers of a record for a person: losses, then speeds."""
    parts = []
    if "mlm_loss" in record:
        parts.append(f"mlm {record['mlm_loss']:.3f} ({record['mlm_accuracy']:.1%})")
    if "perplexity" in record and record["split"] != "train":
        parts.append(f"perplexity {record['perplexity']:.1f}")
    if "nsp_loss" in record:
        majority = max(record["nsp_random"], 1 - record["nsp_random"])
        parts.append(f"nsp {record['nsp_loss']:.3f} ({record['nsp_accuracy']:.1%}, majority {majority:.1%})")
    if "sequences_per_second" in record:
        parts.append(f"{record['sequences_per_second']:,.0f} seq/s")
        parts.append(f"{record['tokens_per_second']:,.0f} tok/s")
        if record["mfu"] is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(parts)
