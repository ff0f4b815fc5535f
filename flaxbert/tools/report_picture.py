"""A chart as SVG that stands inside a page."""

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flaxbert.tools.report_charts import Chart, Curve, Stretch

_SIZE = (4.9, 3.4)  # inches: at the width of a phone its letters are still some 10 pixels high
_MOST_POINTS = 400  # more than a screen's pixels can show, and what makes a page large
_FEW = 30  # points up to which each has a mark: one alone makes no line

# Colours of Okabe and Ito, which colour-blind eyes tell apart, and forms that differ without colour.
_LOOKS: dict[str, dict[str, Any]] = {
    "train": {"color": "#0072b2", "linewidth": 1.6},
    "held-out": {"color": "#d55e00", "linewidth": 1.6, "marker": "o", "markersize": 4},
    "level": {"color": "black", "linewidth": 1.4, "linestyle": ":"},
    "bars": {"color": "#0072b2", "linewidth": 3},
    "other bars": {"color": "#d55e00", "linewidth": 3, "linestyle": (0, (1, 0.6))},
}


def draw(chart: "Chart", borders: list[int], launches: list[int], last_step: int) -> str:
    """An svg element. `borders` are the steps after which another phase begins, `launches` those after which the run
    was launched again.
    """
    # A figure of its own, without pyplot: no window, no state, and the same picture whatever the machine is set to.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Letters stay letters: they can be searched and read aloud, and take no room. The salt keeps names in one chart
    # from those in another.
    with rc_context({"svg.hashsalt": chart.title, "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for curve in chart.curves:
            _draw_curve(axes, curve)
        if chart.level is not None:
            axes.axhline(chart.level[1], label=chart.level[0], **_LOOKS["level"])
        axes.set_xlim(0, 1.02 * max(last_step, 1))
        if chart.from_zero:
            axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
        _mark(axes, borders, launches)
        _label(axes, chart)
        figure.legend(*_legend(axes), loc="outside upper left", ncols=2, frameon=False, fontsize=10)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inside_a_page(picture.getvalue(), chart.title)


def _draw_curve(axes: "Axes", curve: "Curve") -> None:
    """The phases of a curve look the same, and have one entry in the legend."""
    bars, label, look = "bars" in curve.look, curve.label, dict(_LOOKS[curve.look])
    if curve.look == "train" and sum(len(steps) for steps, _ in curve.stretches) <= _FEW:
        look |= {"marker": "o", "markersize": 3}
    for stretch in curve.stretches:
        steps, numbers = thinned(stretch, np.nansum if bars else np.nanmean)
        there = np.isfinite(numbers)
        if not there.any():
            continue
        if bars:
            axes.vlines(steps[there], 0, numbers[there], label=label, **look)
        else:
            axes.plot(steps, numbers, label=label, **({"marker": "_"} if there.sum() == 1 else {}) | look)
        label = f"_{label}"


def thinned(stretch: "Stretch", together: Any) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points as can be seen: neighbours are taken `together`, at the last of their steps."""
    steps, numbers = (np.asarray(row, float) for row in stretch)
    if len(steps) <= _MOST_POINTS:
        return steps, numbers
    groups = np.array_split(np.arange(len(steps)), _MOST_POINTS)
    found = [together(numbers[group]) if np.isfinite(numbers[group]).any() else np.nan for group in groups]
    return np.array([steps[group[-1]] for group in groups]), np.array(found)


def _mark(axes: "Axes", borders: list[int], launches: list[int]) -> None:
    for number, step in enumerate(borders, 2):
        axes.axvline(step, color="0.35", linestyle="--", linewidth=1.2)
        axes.text(step, 1.01, f"phase {number}", transform=axes.get_xaxis_transform(), va="bottom", color="0.25")
    for number, step in enumerate(launches):
        label = "launched again" if number == 0 else "_launched again"
        axes.axvline(step, color="#8a4a83", linestyle="-.", linewidth=1.2, label=label)


def _label(axes: "Axes", chart: "Chart") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=axis is axes.xaxis or chart.counts))
        axis.set_major_formatter(FuncFormatter(lambda number, _: _plain(number)))


def _plain(number: float) -> str:
    """1,000 and 0.25, and 5e-05 where zeros would have to be counted."""
    if number == 0 or abs(number) >= 0.01:
        return f"{number:,.6f}".rstrip("0").rstrip(".")
    return f"{number:.3g}"


def _legend(axes: "Axes") -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return list(handles), list(labels)


def _inside_a_page(svg: str, title: str) -> str:
    """Without the head of a file, and without what would rule or name things in the page around it."""
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    head, rest = svg.split(">", 1)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest
    return svg.replace("<svg", f'<svg role="img" aria-label="{title} over steps"', 1)
