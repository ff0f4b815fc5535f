"""A report as a page that needs neither network nor script."""

import dataclasses
import datetime
import html
import importlib.resources
import json
import string
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flaxbert.tools.report_charts import charts
from flaxbert.tools.report_masks import QUESTIONS
from flaxbert.tools.report_metrics import History, Record, majority, typical, value, values
from flaxbert.tools.report_picture import draw
from flaxbert.tools.report_recipe import pairs_of, recipe
from flaxbert.tools.report_tuning import Tuning

if TYPE_CHECKING:
    from flaxbert.tools.report import Report


class Tile(NamedTuple):
    """A number that stands for a run."""

    name: str
    number: str
    note: str


def write_page(report: "Report") -> str:
    """The page. All that is not ours is escaped."""
    template = string.Template((importlib.resources.files(__package__) / "report.html").read_text("utf-8"))
    settings = json.dumps(dataclasses.asdict(report.run.experiment), indent=1)
    return template.substitute(
        title=html.escape(report.name), state=html.escape(_state(report)), tiles=_tiles(report),
        recipe=_recipe(report), settings=html.escape(settings), charts=_charts(report), masks=_masks(report),
        tuning="".join(_tuned(each) for each in report.tuned) or _paragraph(_NO_TUNING),
    )  # fmt: skip


_NO_TUNING = "None was named: flaxbert report RUN TUNED... adds the tables of folders of flaxbert finetune."


def _state(report: "Report") -> str:
    history, steps = report.history, report.run.experiment.train.steps
    if history.step >= steps:
        return f"The run has ended: {steps:,} steps are done."
    done = f"{history.step:,} of {steps:,} steps are told of here"
    return f"The run is going on: {done}." if history.training else f"{done}; no launch is training now."


def _tiles(report: "Report") -> str:
    found = [*_held_out(report), *_course(report.history)]
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(number)}</b> {html.escape(note)}</dd></div>"
        for name, number, note in found
    )


def _held_out(report: "Report") -> list[Tile]:
    lines = report.history.all_held_out
    if not lines:
        return [Tile("Held-out text", "not evaluated yet", "")]
    last, where = lines[-1], f"at step {lines[-1]['step']:,}"
    floor = "" if report.floor is None else f"; frequencies alone reach {report.floor:.2f}"
    found = [
        Tile("Masked tokens, held-out loss", _number(last, "mlm_loss", "{:.3f} nats"), where + floor + _lowest(lines)),
        Tile("Masked tokens, held-out accuracy", _number(last, "mlm_accuracy", "{:.1%}"), where),
    ]
    if values(lines, "nsp_accuracy"):
        note = f"{where}; always the commoner label: {majority(last):.1%}"
        found.append(
            Tile(f"{pairs_of(report.run.experiment)}, held-out accuracy", _number(last, "nsp_accuracy", "{:.1%}"), note)
        )
    return found


def _lowest(lines: list[Record]) -> str:
    """Where it is not the last one."""
    there = [line for line in lines if value(line, "mlm_loss") == value(line, "mlm_loss")]
    best = min(there, key=lambda line: value(line, "mlm_loss"), default=None)
    if best is None or best is lines[-1]:
        return ""
    return f"; the lowest, {best['mlm_loss']:.3f}, at step {best['step']:,}"


def _number(record: Record, name: str, form: str) -> str:
    found = value(record, name)
    return form.format(found) if found == found else "not finite"


def _course(history: History) -> list[Tile]:
    lines = history.all_train
    speed, share = typical(lines, "tokens_per_second"), typical(lines, "mfu")
    saves, fill = sum(values(lines, "save_seconds")), typical(lines, "fill")
    broken, spikes = (int(sum(values(lines, f"skipped_{kind}"))) for kind in ("not_finite", "spikes"))
    return [
        Tile("Throughput", "unknown" if speed is None else f"{speed:,.0f} tokens/s", "median, padding not counted"),
        Tile("MFU", "unknown", "the peak of these devices is not known") if share is None
        else Tile("MFU", f"{share:.1%}", "median share of the devices' peak"),
        Tile("Fill", "unknown" if fill is None else f"{fill:.1%}", "median share of positions that hold a token"),
        Tile("Time in training steps", _duration(sum(values(lines, "seconds"))),
             f"waits for saves beside it: {saves:,.1f}\u00a0s"),
        Tile("Skipped updates", f"{broken + spikes:,}", f"not finite: {broken:,}; spikes: {spikes:,}"),
        Tile("Launches", str(len(history.launched) or "unknown"), _launches(history)),
    ]  # fmt: skip


def _launches(history: History) -> str:
    """At which steps they began, and when the first and the last did."""
    if not history.launched:
        return "no chart of TensorBoard tells of them"
    steps = ", ".join(f"{step:,}" for _, step in history.launched[1:])
    times = [datetime.datetime.fromtimestamp(time, datetime.UTC) for time, _ in history.launched]
    again = f"; again after step {steps}, the last {times[-1]:%Y-%m-%d %H:%M} UTC" if steps else ""
    return f"first {times[0]:%Y-%m-%d %H:%M} UTC{again}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:,.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 2 else f"{seconds:.1f} s"


def _recipe(report: "Report") -> str:
    rows = recipe(report.run, report.history, report.parameters)
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>" for name, said in rows)


def _charts(report: "Report") -> str:
    history = report.history
    if not history.all_train and not history.all_held_out:
        return _paragraph("No line of metrics is written yet.")
    borders = [part.first_step for part in history.parts[1:] if part.first_step <= history.step]
    again = [step for _, step in history.launched[1:]]
    found = charts(history, pairs_of(report.run.experiment), report.floor)
    figures = [
        f"<figure><h3>{html.escape(chart.title)}</h3>{draw(chart, borders, again, history.step)}"
        f"<figcaption>{html.escape(chart.reading)}</figcaption></figure>"
        for chart in found
    ]
    drawn = {chart.title for chart in found}
    absent = [sentence for title, sentence in _WITHOUT.items() if title not in drawn]
    lost = sum(value(line, "loss") != value(line, "loss") for line in [*history.all_train, *history.all_held_out])
    if lost:
        absent.append(f"{lost:,} lines have a loss that is not finite: the curves have gaps there.")
    if report.floor is None:
        absent.append("The unigram entropy is not drawn: the corpus is not where it was, or holds no text out.")
    return f'<div class="charts">{"".join(figures)}</div>' + "".join(map(_paragraph, absent))


_WITHOUT = {
    "MFU": "MFU is not drawn: the peak of these devices is not known.",
    "Skipped updates": "No update was skipped.",
    "Waits for saves": "No step has waited for a save.",
}  # what is said of a chart that has nothing to show


def _masks(report: "Report") -> str:
    if not report.filled:
        return _paragraph("No checkpoint is there yet.")
    found = []
    for number, question in enumerate(QUESTIONS):
        rows = [
            [f"{filled.step:,}", *(f"“{token}” {share:.0%}" for token, share in filled.guesses[number])]
            for filled in report.filled if filled.guesses
        ]  # fmt: skip
        if rows:
            table = _table(["step", "likeliest", "second", "third"], rows)
            found.append(f"<div><h3>{html.escape(question)}</h3>{table}</div>")
    troubles = [f"Step {filled.step:,}: {filled.trouble}" for filled in report.filled if filled.trouble]
    return f'<div class="masks">{"".join(found)}</div>' + "".join(map(_paragraph, troubles))


def _tuned(tuning: Tuning) -> str:
    table = _table(tuning.headings, tuning.rows) if tuning.headings else ""
    return f"<h3>{html.escape(tuning.title)}</h3>{_paragraph(tuning.about)}{table}{_paragraph(tuning.best)}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
