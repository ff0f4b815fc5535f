"""A plan for the eye: tables on the console, or JSON."""

import json
from typing import TYPE_CHECKING, Any

from flaxbert.tools.doctor import TO_STANDARD_OUTPUT
from flaxbert.tools.outputs import write_output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Plan = dict[str, Any]


def show(plans: list[Plan], json_file: str | None = None) -> None:
    """Prints the plan of each phase as tables, or as JSON alone where `json_file` is `-`; writes the file that is asked
    for. The JSON of a run without phases is its plan, else `phases` lists them.
    """
    from flaxbert.terminal import Tables

    content = plans[0] if len(plans) == 1 else {"phases": plans}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if json_file == TO_STANDARD_OUTPUT:
        print(text, end="")
        return
    console = Tables()
    for number, plan in enumerate(plans):
        if len(plans) > 1:
            console.rule(f"phase {number + 1} of {len(plans)}", align="left")
        _print(plan, console)
    if len(plans) > 1 and (total := _total(plans)) is not None:
        console.print(total)
    if json_file is not None:
        write_output("--json", json_file, text.encode("utf-8"))
        print(f"written: {json_file}")


def _print(plan: Plan, console: "Console") -> None:
    settings, devices = plan["settings"], plan["devices"]
    train, mesh = settings["train"], " x ".join(f"{name} {size}" for name, size in devices["mesh"].items())
    where = devices["topology"] or "this machine"
    console.print(
        f"{plan['parameters']:,} parameters; batches of {train['batch_size']:,} {_rows(plan)} of "
        f"{settings['data']['sequence_length']}, {train['compute_dtype']}; {plan['steps']:,} steps"
    )
    console.print(f"{where}: {devices['count']} x {devices['kind']}, mesh {mesh}")
    if train["attention"] == "auto":
        console.print(f"attention by {plan['attention']}: a run measures which backend is the fastest, a plan cannot")
    else:
        console.print(f"attention by {plan['attention']}")
    for sentence in plan["assumed"]:
        console.print(sentence)
    console.print()
    for table in (_memory(plan), _flops(plan), _speed(plan), _collectives(plan)):
        if table is not None:
            console.print(table)
    for sentence in _sentences(plan):
        console.print(sentence, soft_wrap=True)


def _table(title: str, *headings: str) -> "Table":
    """The first column is a name, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=any(headings),
        min_width=len(title),
    )  # fmt: skip
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _memory(plan: Plan) -> "Table | None":
    if plan["memory"] is None:
        return None
    table, devices = _table("Memory of each device", "Kind", "GB"), plan["devices"]
    for kind, size in plan["memory"].items():
        table.add_row(kind, f"{size / 1e9:.3f}")
    table.add_section()
    table.add_row("needed at once", f"{plan['memory_needed'] / 1e9:.3f}")
    if devices["memory"] is not None:
        table.add_row(f"there ({devices['memory_source']})", f"{devices['memory'] / 1e9:.3f}")
    return table


def _flops(plan: Plan) -> "Table":
    flops = plan["flops"]
    table = _table("Products of one step, on all devices", "Part", "TFLOP", "Share")
    for part, count in flops["parts"].items():
        table.add_row(part, f"{count / 1e12:.4g}", f"{count / flops['model']:.1%}")
    table.add_section()
    table.add_row("model FLOPs", f"{flops['model'] / 1e12:.4g}", "100.0%")
    table.add_row("pooler and next-sentence head", _tera(flops["next_sentence"]), _share(plan, "next_sentence"))
    if flops["counted"] is not None:
        table.add_row("XLA's count of the whole step", _tera(flops["counted"]), _share(plan, "counted"))
    return table


def _rows(plan: Plan) -> str:
    """What a row of a batch is."""
    return "sequences" if plan["settings"]["data"]["packing"] == 1 else "rows"


def _tera(count: float) -> str:
    return f"{count / 1e12:.4g}"


def _share(plan: Plan, name: str) -> str:
    share = plan["flops"][name] / plan["flops"]["model"]
    return f"{share:.1%}" if share > 0.001 else f"{share:.3%}"


def _speed(plan: Plan) -> "Table | None":
    speed = plan["speed"]
    if speed is None:
        return None
    peak = _tera(speed["peak_flops_per_device"])
    table = _table(f"At {speed['mfu']:.0%} of the peak ({peak} TFLOP/s a device)", "", "")
    table.add_row("seconds a step", f"{speed['seconds_per_step']:.4g}")
    table.add_row(f"{_rows(plan)} a second", f"{speed['rows_per_second']:,.0f}")
    table.add_row("tokens a second, padding included", f"{speed['tokens_per_second']:,.0f}")
    table.add_row(f"hours for {plan['steps']:,} steps", f"{speed['seconds'] / 3600:,.2f}")
    table.add_row("device hours", f"{speed['device_hours']:,.1f}")
    return table


def _total(plans: list[Plan]) -> "Table | None":
    """Of the whole schedule; None where the devices' peak is not known."""
    speeds = [plan["speed"] for plan in plans]
    if None in speeds:
        return None
    table = _table(f"All phases, at {speeds[0]['mfu']:.0%} of the peak", "", "")
    hours = sum(speed["seconds"] for speed in speeds) / 3600
    table.add_row(f"hours for {sum(plan['steps'] for plan in plans):,} steps", f"{hours:,.2f}")
    table.add_row("device hours", f"{sum(speed['device_hours'] for speed in speeds):,.1f}")
    return table


def _collectives(plan: Plan) -> "Table | None":
    if not plan["collectives"] or not plan["collectives"]["kinds"]:
        return None
    table = _table("Sent in one step, for each device", "Collective", "Count", "MB")
    for kind, traffic in plan["collectives"]["kinds"].items():
        table.add_row(kind, f"{traffic['count']:,}", f"{traffic['bytes'] / 1e6:,.3f}")
    return table


def _sentences(plan: Plan) -> list[str]:
    found, search, devices = [], plan["largest_batch"], plan["devices"]
    if plan["fits"] is False:
        needed = "" if plan["memory_needed"] is None else f" {plan['memory_needed'] / 1e9:.1f} GB,"
        there = f"{devices['memory'] / 1e9:.1f} GB"
        found.append(f"The step does not fit: it needs{needed} more than the {there} that a device has.")
    if plan["speed"] is None:
        found.append(f"The peak of a {devices['kind']} is not known: no speed is foretold; --peak-flops says it.")
    if plan["collectives"] and plan["collectives"]["loops_counted_once"]:
        found.append(f"{plan['collectives']['loops_counted_once']} loops of unknown length are counted once.")
    if search is not None and search["rows"]:
        refused = f"{search['refused']:,} do not" if search["refused"] else "more may"
        found.append(f"Largest batch found that fits: {search['rows']:,} {_rows(plan)} ({refused}).")
    elif search is not None:
        found.append(f"No batch found that fits; the smallest tried: {search['refused']:,} {_rows(plan)}.")
    return found
