"""Flags → a dataclass, by tyro; a mistake is one sentence."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import tyro


def parse(kind: Any, program: str, argv: list[str], default: Any = None) -> Any:
    """The dataclass `kind` as the flags fill it, over `default` where one is given; `--help` prints and exits.

    Raises ValueError with the one sentence at the head of tyro's page about a mistake.
    """
    given = {} if default is None else {"default": default}
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page), _wide_terminal("-h" not in argv and "--help" not in argv):
            return tyro.cli(kind, args=argv, prog=program, config=(tyro.conf.FlagConversionOff,), **given)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_head_of(page.getvalue())) from None


def _head_of(page: str) -> str:
    """The first paragraph of tyro's boxed page, and its suggestion, as one sentence."""
    lines = [line.strip("│ ") for line in page.splitlines() if line.startswith("│")]
    parts = [part.strip() for part in re.split(r"─{5,}", "\n".join(lines))]
    if parts[0].startswith("Missing from"):
        return "missing " + ", ".join(re.findall(r"^\s*(--\S+|[A-Z.]{3,}$)", parts[0].partition(":")[2], re.MULTILINE))
    head = re.sub(r"^Error parsing settings\.\w+: ", "", " ".join(parts[0].split()))
    meant = re.search(r"(?:Perhaps you meant:|similar to \S+:)\s+(--\S+)", page.replace("│", ""))
    return head + (f" (did you mean {meant.group(1)}?)" if meant else "")


@contextlib.contextmanager
def _wide_terminal(wide: bool) -> Iterator[None]:
    """Keeps tyro from breaking a sentence over lines."""
    before = os.environ.get("COLUMNS")
    if wide:
        os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if wide:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before
