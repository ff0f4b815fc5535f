"""Attention as one picture: a heat map for each layer and head, each on the scale of its own largest weight.

On one scale for all, a head that spreads its attention is one flat colour beside one that looks at a single token.
"""

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flaxbert.tools.attention import Attention

COLOURS = "viridis"  # equal steps look equal, to colour-blind eyes and in grey too
_LONGEST_LABEL = 14
_PITCH = 0.15  # inches that a token takes where there is room
_SMALLEST = 5.0  # points: the smallest label that can be read on paper
_DOTS_PER_INCH = 150


def draw(attention: "Attention", kind: str) -> tuple[bytes, str]:
    """(the picture as `png` or `svg`, the characters that its font lacks)."""
    # A figure of its own, without pyplot: no window, no state, and Agg whatever the machine is set to.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, heads, length, _ = attention.weights.shape
    panel = _panel(heads, length)
    gap, left, right, bottom, top = 0.06 * panel, 1.5, 1.3, 1.2, 1.2
    below = max(gap, 0.2)  # a line of small letters has room there
    width, height = left + heads * (panel + gap) + right, bottom + layers * (panel + below) + top
    figure = Figure((width, height), dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    for layer in range(layers):
        for head in range(heads):
            x, y = left + head * (panel + gap), bottom + (layers - 1 - layer) * (panel + below)
            axes = figure.add_axes((x / width, y / height, panel / width, panel / height))
            weights = attention.weights[layer, head]
            image = axes.imshow(weights, COLOURS, vmin=0, vmax=float(weights.max()), interpolation="none")
            _label(axes, attention.tokens, panel, layer + 1, head + 1, last=layer == layers - 1)
            largest = f"max {weights.max():.2f}"
            axes.text(1, 1.01, largest, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="0.3")
    _explain(figure, attention, left / width, right, image)
    picture = io.BytesIO()
    # The same picture from the same attention: neither a date nor random names.
    with rc_context({"svg.hashsalt": "attention"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue(), _lacking(attention)


def _panel(heads: int, length: int) -> float:
    """Inches of a heat map: as its tokens need, in a picture of some 7 inches at least and 30 at most."""
    return min(max(length * _PITCH, 1.4, 7 / heads), max(2.6, 14 / heads))


def _label(axes: Any, tokens: list[str], panel: float, layer: int, head: int, last: bool) -> None:
    """Tokens at the left of the first head and below the last layer, as many of them as can be read."""
    points = 72 * panel / len(tokens)
    every = max(1, math.ceil(_SMALLEST / (0.8 * points)))
    places = range(0, len(tokens), every)
    shown = [_cut(tokens[place]) for place in places]
    size = min(9.0, max(_SMALLEST, 0.8 * points * every))
    axes.set_xticks(places if last else [], shown if last else [], rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places if head == 1 else [], shown if head == 1 else [], fontsize=size, parse_math=False)
    axes.tick_params(length=1.5, pad=1.5)
    heading = min(14.0, max(9.0, 5 * panel))
    if layer == 1:
        axes.set_title(f"head {head}", fontsize=heading)
    if head == 1:
        axes.set_ylabel(f"layer {layer}", fontsize=heading)


def _explain(figure: Any, attention: "Attention", left: float, right: float, image: Any) -> None:
    """Title, how to read the maps, and the scale."""
    width, height = figure.get_size_inches()
    size = min(22.0, max(11.0, 0.9 * width))
    most = int(110 * width / size)  # letters of some 0.6 of their size, on nine tenths of the width
    title = attention.title if len(attention.title) <= most else attention.title[:most - 1] + "…"
    figure.text(left, 1 - 0.15 / height, title, fontsize=size, va="top", parse_math=False)
    figure.text(
        left, 1 - (0.25 + size / 60) / height, fontsize=max(8.0, 0.75 * size), va="top", color="0.3",
        s="Each row is a token, each column a token it attends to; a row adds up to 1.\n"
          "Each map has a scale of its own, from 0 to the largest weight in it, which stands above its right end.",
    )  # fmt: skip
    tall = min(4.0, 0.6 * height)
    scale = figure.add_axes((1 - 0.7 * right / width, 0.5 - tall / 2 / height, 0.16 / width, tall / height))
    bar = figure.colorbar(image, cax=scale, ticks=[0, image.norm.vmax])
    bar.set_label("attention weight", fontsize=9, labelpad=-16)
    scale.set_yticklabels(["0", "max"], fontsize=8)


def _cut(token: str) -> str:
    return token if len(token) <= _LONGEST_LABEL else token[:_LONGEST_LABEL - 1] + "…"


def _lacking(attention: "Attention") -> str:
    """The characters that no glyph of the picture's font stands for."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    shown = set(attention.title).union(*attention.tokens)
    return "".join(sorted(character for character in shown if ord(character) not in known and character.isprintable()))


def colour_table() -> np.ndarray:
    """The scale's colours [256, 3], uint8."""
    from matplotlib import colormaps

    table: np.ndarray = (colormaps[COLOURS](np.arange(256), bytes=True))[:, :3]
    return table
