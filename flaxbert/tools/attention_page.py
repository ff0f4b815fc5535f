"""Attention as a page that needs neither network nor library: a layer and head at a time, as lines or as a heat map."""

import base64
import html
import importlib.resources
import json
import string
from typing import TYPE_CHECKING

import numpy as np

from flaxbert.tools.attention_picture import colour_table

if TYPE_CHECKING:
    from flaxbert.tools.attention import Attention

_STEPS = 65_535  # a weight is stored as one of so many: hover shows three decimals of a percentage


def write_page(attention: "Attention") -> str:
    """The page, with all weights in it."""
    layers, heads, length, _ = attention.weights.shape
    stored = np.round(attention.weights * _STEPS).astype("<u2")
    data = {
        "layers": layers, "heads": heads, "length": length, "steps": _STEPS,
        "tokens": attention.tokens, "segments": attention.segments, "colours": colour_table().tolist(),
        "weights": base64.b64encode(stored.tobytes()).decode("ascii"),
    }  # fmt: skip
    template = string.Template((importlib.resources.files(__package__) / "attention.html").read_text("utf-8"))
    # Inside a script element nothing is markup but its own end, which a text may hold.
    written = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return template.substitute(title=html.escape(attention.title), data=written)
