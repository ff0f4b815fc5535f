"""The doctor's picture: lengths of sentences, documents and sequences, and how often each token comes."""

import io
import itertools
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 2
_PANEL = (6.4, 3.9)  # inches
_DOTS_PER_INCH = 120
_BLUE = "#3465a4"
_LINES = ("-", "--", "-.", ":", (0, (1, 2, 4, 2)))
"""One for each pairing: they lie upon each other where pairings agree, and not every eye tells colours apart."""


def draw(report: dict[str, Any]) -> bytes:
    """The picture as PNG."""
    # A figure of its own, without pyplot: no window, no state, and Agg whatever the machine is set to.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    facts = report["facts"]
    lengths = sorted({stream["sequence_length"] for stream in report["streams"]})
    rows = -(-(4 + len(lengths)) // _COLUMNS)
    figure = Figure((_COLUMNS * _PANEL[0], rows * _PANEL[1]), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, _COLUMNS).flat)
    _lengths(axes[0], facts["sentence_tokens"], "Sentence length", "tokens in a sentence")
    _lengths(axes[1], facts["document_sentences"], "Document length in sentences", "sentences in a document")
    _lengths(axes[2], facts["document_tokens"], "Document length in tokens", "tokens in a document")
    _ranks(axes[3], facts["vocabulary"])
    for place, length in zip(axes[4:], lengths):
        _sequences(place, [each for each in report["streams"] if each["sequence_length"] == length], length)
    for unused in axes[4 + len(lengths):]:
        unused.set_axis_off()
    name = pathlib.Path(facts["corpus"]).name or facts["corpus"]
    figure.suptitle(f"{name}: {facts['train']['tokens']:,} training tokens".replace("$", r"\$"), fontsize=14)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _lengths(place: "Axes", distribution: dict[str, Any], title: str, unit: str) -> None:
    """Bars of equal width on a logarithmic axis, from the first number that occurs."""
    edges, counts = distribution["edges"], distribution["counts"]
    place.stairs(counts, edges, fill=True, color=_BLUE)
    for value, name, style in (("median", "median", "--"), ("percentile_95", "95% are at most", ":")):
        place.axvline(distribution[value], color="black", linestyle=style, label=f"{name} {distribution[value]:,.0f}")
    place.set_xscale("log")
    place.legend()
    _label(place, title, unit, "how many")
    _plain_numbers(place)


def _ranks(place: "Axes", vocabulary: dict[str, Any]) -> None:
    place.loglog(vocabulary["ranks"], vocabulary["rank_counts"], color=_BLUE, linewidth=2)
    never = f"{vocabulary['never_used']:,} of {vocabulary['entries']:,} never occur"
    _label(place, f"Vocabulary: {never}", "rank of the token, the commonest first", "how often it occurs")
    _plain_numbers(place)


def _sequences(place: "Axes", streams: list[dict[str, Any]], length: int) -> None:
    """How many are shorter, for each pairing: five histograms upon each other would hide what differs."""
    for number, (stream, style) in enumerate(zip(streams, _LINES)):
        total = sum(stream["counts"])
        if total:
            shares = [100 * count / total for count in itertools.accumulate(stream["counts"], initial=0)]
            place.plot(stream["edges"], shares, color=f"C{number}", label=stream["pairing"], linestyle=style,
                       linewidth=2)  # fmt: skip
    place.set_xlim(0, length * 1.02)
    place.set_ylim(0, 100)
    if place.get_legend_handles_labels()[0]:
        place.legend(title="pairing", loc="upper left")
    _label(place, f"Sequences at length {length}", "tokens", "% of the sequences that are shorter")


def _label(place: "Axes", title: str, x: str, y: str) -> None:
    place.set_title(title)
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.grid(alpha=0.3)


def _plain_numbers(place: "Axes") -> None:
    """1,000 and not 10³; nothing between whole numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (place.xaxis, place.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value == round(value) else ""))
        axis.set_minor_formatter(NullFormatter())
