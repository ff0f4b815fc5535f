"""`flaxbert doctor`: what was measured of a prepared corpus, as tables, JSON and a picture."""

import json
from typing import TYPE_CHECKING, Any

from flaxbert.tools.outputs import check_output, write_output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"ok": "green", "warning": "yellow", "trouble": "bold red"}
TO_STANDARD_OUTPUT = "-"

Report = dict[str, Any]
"""`lines`: measure, value, verdict and advice of each; `streams`: what each pairing makes of the corpus at each length;
`facts`: all else that was measured."""


def check_outputs(json_file: str | None, plot_file: str | None) -> None:
    """Raises ValueError for a file that cannot be written: before a minute of measuring, not after it."""
    if plot_file is not None and not plot_file.lower().endswith(".png"):
        raise ValueError(f"--plot {plot_file} is no picture that can be drawn: expected a name that ends in .png")
    for flag, name in (("--json", json_file), ("--plot", plot_file)):
        if name is not None and (flag, name) != ("--json", TO_STANDARD_OUTPUT):
            check_output(flag, name)


def show(report: Report, json_file: str | None = None, plot_file: str | None = None) -> None:
    """Prints the report as tables, or as JSON alone where `json_file` is `-`; writes the files that are asked for.

    Raises ValueError for a file that cannot be written.
    """
    from flaxbert.terminal import Tables

    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    alone = json_file == TO_STANDARD_OUTPUT
    try:
        if alone:
            print(text, end="")
        else:
            _print(report, Tables())
    finally:  # whoever reads the tables may go, and a disk that is full costs the files alone
        if json_file is not None and not alone:
            write_output("--json", json_file, text.encode("utf-8"))
        if plot_file is not None:
            from flaxbert.tools.doctor_plot import draw

            write_output("--plot", plot_file, draw(report))
    if not alone:
        for path in filter(None, (json_file, plot_file)):
            print(f"written: {path}")


def _print(report: Report, console: "Console") -> None:
    facts, lines = report["facts"], report["lines"]
    console.print(_measures(report))
    verdicts = [line["verdict"] for line in lines]
    console.print(f"{_number(verdicts.count('trouble'), 'trouble')}, {_number(verdicts.count('warning'), 'warning')}")
    if facts["sample_share"] < 1:
        console.print(
            f"Measured on {facts['sample_tokens']:,} tokens, {facts['sample_share']:.1%} of the training text: repeats "
            "of what was not read are not found, and fewer entries are unused than it seems."
        )
    if any(line["measure"] == "repeated sentences" and line["verdict"] != "ok" for line in lines):
        console.print("\nSentences whose repeats hold most tokens:")
        for example in facts["examples"]:
            console.print(f"  {example['times']:,} times: {_shortened(example['text'])}")
    console.print()
    console.print(_streams(report))


def _number(count: int, name: str) -> str:
    return f"{count or 'no'} {name}{'' if count == 1 else 's'}"


def _shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"


def _measures(report: Report) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(report["facts"]["corpus"])
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, ratio in (("Measure", None), ("Value", 4), ("Verdict", None), ("Advice", 5)):
        table.add_column(heading, ratio=ratio, no_wrap=ratio is None)
    for line in report["lines"]:
        verdict = Text(line["verdict"], STYLES[line["verdict"]])
        table.add_row(line["measure"], line["value"], verdict, Text(line["advice"]))
    return table


def _streams(report: Report) -> "Table":
    """A row for each length and pairing."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    size, packing = report["facts"]["batch_size"], report["packing"]
    title = Text(f"An epoch in batches of {size:,} rows, and with --data.packing {packing}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("Length", "Pairing", "Label 1", "Fill", "packed", "Steps", "packed", "Verdict"):
        table.add_column(heading, justify="left" if heading in ("Pairing", "Verdict") else "right", no_wrap=True)
    length = None
    for stream in report["streams"]:
        if length not in (None, stream["sequence_length"]):
            table.add_section()
        length = stream["sequence_length"]
        verdict = Text(stream["verdict"], STYLES[stream["verdict"]])
        table.add_row(str(length), stream["pairing"], *_numbers(stream), verdict)
    return table


def _numbers(stream: dict[str, Any]) -> list[str]:
    """Share of label 1, fill and steps; nothing where no sequence can be drawn."""
    if not stream["rows"]:
        return [""] * 5
    labels = "" if stream["random_labels"] is None else f"{stream['random_labels']:.0%}"
    fills = [f"{stream[name]:.0%}" for name in ("fill", "packed_fill")]
    return [labels, *fills, *(f"{stream[name]:,}" for name in ("steps", "packed_steps"))]
