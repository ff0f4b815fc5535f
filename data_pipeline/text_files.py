"""Text and JSON lines, compressed or not: a range of a file → its documents.

A document belongs to the range that holds the border before it (a blank line, or the end of the line before), so each
is read once however a file is cut.
"""

import json
from typing import Any, BinaryIO, Iterator

from data_pipeline.compression import explained, unpacked
from data_pipeline.documents import LONGEST_DOCUMENT, LONGEST_LINE, Document, decode
from data_pipeline.files import open_file, reading
from data_pipeline.sources import Range

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20


def text_documents(part: Range, field: str, errors: str) -> Iterator[Document]:
    """Raises ValueError naming the file and the line or byte for what is not text, or not in the field."""
    source = part.source
    with reading(source.path) as stored, explained(source.path, source.compression):
        file = unpacked(stored, source.compression) if source.compression else stored
        lines = _Lines(file, stored, part)
        yield from _in_json(lines, field, errors) if source.format == "json" else _in_paragraphs(lines, errors)


class _Lines:
    """Iterates over (offset, line) from the first line that starts in a range to the end of the file."""

    def __init__(self, file: Any, stored: BinaryIO, part: Range):
        self.file, self.stored, self.path = file, stored, part.source.path
        self.start = self.offset = self.first = part.start
        self.end = None if part.source.compression else part.end
        self.count = 0
        if part.start:
            self._skip_to_line()
        elif file.peek(3)[:3] == _BYTE_ORDER_MARK:
            self.offset = self.first = len(file.read(3))

    def _skip_to_line(self) -> None:
        self.file.seek(self.start - 1)
        self.offset -= 1
        while skipped := self.file.readline(_BUFFER_BYTES):
            self.offset += len(skipped)
            if skipped.endswith(b"\n"):
                return

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while line := self.file.readline(LONGEST_LINE + 1):
            self.count += 1
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{self.path}, line {self.number()} is longer than {LONGEST_LINE} bytes: is it text?")
            offset = self.offset
            self.offset += len(line)
            yield offset, line

    def ours(self, offset: int) -> bool:
        """Whether a border at this offset belongs to the range. That before the file's first line belongs to the first
        range, which may end inside of the byte order mark."""
        return self.end is None or offset < max(self.end, self.first + 1)

    def number(self) -> int:
        """The number in the file, from 1, of the line read last. Reads the file up to the range again."""
        return self.count + (_count_lines(self.path, self.start) if self.start else 0)

    def position(self) -> int:
        """Bytes of the stored file read so far, from the start of the range on."""
        return self.offset - self.start if self.end is not None else self.stored.tell()


def _count_lines(path: str, before: int) -> int:
    """Lines that start before the offset."""
    count = 1
    with open_file(path) as file:
        while before > 1 and (chunk := file.read(min(_BUFFER_BYTES, before - 1))):
            count += chunk.count(b"\n")
            before -= len(chunk)
    return count


def _in_paragraphs(lines: _Lines, errors: str) -> Iterator[Document]:
    gathered: list[bytes] = []
    start = size = 0
    inside = lines.start == 0
    for offset, line in lines:
        if line.isspace():
            if gathered:
                yield _document(lines, gathered, start, errors, cut=0)
                gathered, size = [], 0
            inside = lines.ours(offset)
            if not inside:
                return
        elif inside:
            if size + len(line) > LONGEST_DOCUMENT:
                yield _document(lines, gathered, start, errors, cut=1)
                gathered, size = [], 0
            start = start if gathered else offset
            gathered.append(line)
            size += len(line)
        elif not lines.ours(offset):
            return
    if gathered:
        yield _document(lines, gathered, start, errors, cut=0)


def _document(lines: _Lines, gathered: list[bytes], start: int, errors: str, cut: int) -> Document:
    text, replaced = decode(b"".join(gathered), errors, lines.path, start)
    return Document(text.replace("\r\n", "\n").strip("\n"), replaced, cut, lines.position())


def _in_json(lines: _Lines, field: str, errors: str) -> Iterator[Document]:
    for offset, line in lines:
        if not lines.ours(offset):
            return
        if line.isspace():
            continue
        decoded, replaced = decode(line, errors, lines.path, offset)
        text, surrogates = _without_surrogates(_field(decoded, field, lines), lines, errors)
        text = text.replace("\r\n", "\n")
        if text and not text.isspace():
            yield Document(text, replaced + surrogates, 0, lines.position())


def _field(line: str, field: str, lines: _Lines) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{lines.path}, line {lines.number()} is not JSON: {error}") from None
    if not isinstance(value, dict):
        found = f"expected a JSON object, found {_json_type(value)}"
    elif field not in value:
        found = f"no field {field!r}; found {', '.join(map(repr, list(value)[:8])) or 'none'}"
    elif not isinstance(value[field], str):
        found = f"field {field!r} is {_json_type(value[field])}, expected text"
    else:
        return value[field]
    raise ValueError(f"{lines.path}, line {lines.number()}: {found}")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", dict: "an object", list: "an array", str: "text"}
    return names.get(type(value), "a number")


def _without_surrogates(text: str, lines: _Lines, errors: str) -> tuple[str, int]:
    try:
        text.encode("utf-8")
        return text, 0
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise ValueError(
                f"{lines.path}, line {lines.number()} has half a surrogate pair (\\u{ord(text[error.start]):04x}), "
                "which is no text; --encoding-errors replace goes on with U+FFFD in its place"
            ) from None
    lone = sum("\ud800" <= character <= "\udfff" for character in text)
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text), lone
