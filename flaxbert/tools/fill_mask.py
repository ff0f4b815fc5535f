"""`flaxbert fill-mask`: the likeliest words for each [MASK] of a text, as tables."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from flaxbert.tools.load import Fill


def fill_mask(model: str, texts: list[str], top: int = 5) -> None:
    """Prints the `top` guesses of a run, an export or a Hugging Face directory for each [MASK] of each text."""
    # Imported here: --help must not wait for JAX.
    from flaxbert.terminal import Tables
    from flaxbert.tools.load import load

    if not texts:
        raise ValueError("no text given: expected at least one with a [MASK] in it")
    loaded = load(model)
    answers = [(text, loaded.fill_mask(text, top)) for text in texts]
    console = Tables()
    for text, masks in answers:
        for number, fills in enumerate(masks, start=1):
            console.print(_table(text, fills, f"[MASK] {number} of {len(masks)}" if len(masks) > 1 else ""))


def _table(text: str, fills: "list[Fill]", caption: str) -> "Table":
    """One row per guess. Rich would take the brackets of a [MASK] for markup, hence Text."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(text), caption=Text(caption) if caption else None, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("token")
    table.add_column("probability", justify="right")
    table.add_column("text")
    for rank, fill in enumerate(fills, start=1):
        table.add_row(str(rank), Text(fill.token), f"{fill.probability:.4f}", Text(fill.text))
    return table
