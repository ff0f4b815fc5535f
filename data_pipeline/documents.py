"""A document as the readers give it, and the checks that every text passes."""

from typing import NamedTuple

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes. A longer line, row or example is refused: it is not text, or not in lines."""

LONGEST_DOCUMENT = LONGEST_LINE
"""Bytes. A longer document of several lines is cut at the end of one, so that memory does not grow with it."""


class Document(NamedTuple):
    """`replaced`: invalid bytes or surrogates replaced by U+FFFD; `cut`: 1 where a long document was cut after this
    part; `position`: bytes read so far, of those that its range was planned with."""

    text: str
    replaced: int
    cut: int
    position: int


def decode(raw: bytes, errors: str, where: str, offset: int) -> tuple[str, int]:
    """UTF-8 → text and the number of bytes replaced. `where` names the bytes; `offset` is that of their first."""
    try:
        return raw.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise ValueError(
                f"{where} is not UTF-8 at byte {offset + error.start}: found 0x{raw[error.start]:02x}; "
                "--encoding-errors replace goes on with U+FFFD in its place"
            ) from None
    text = raw.decode("utf-8", "replace")
    return text, text.count("\ufffd") - raw.count(b"\xef\xbf\xbd")


def row_document(raw: bytes, errors: str, where: str, position: int) -> Document | None:
    """A document that is one value of a table, or None for a blank one."""
    if len(raw) > LONGEST_LINE:
        raise ValueError(f"{where} is longer than {LONGEST_LINE} bytes: is it text?")
    text, replaced = decode(raw, errors, where, 0)
    return None if not text or text.isspace() else Document(text.replace("\r\n", "\n"), replaced, 0, position)
