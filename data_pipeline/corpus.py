"""Readers: a range of a file of text or JSON lines, plain or gzip → documents, one at a time.

A document belongs to the range that holds the border before it (a blank line, or the end of the line before), so each
is read once however a file is cut.
"""

import gzip
import io
import json
import zlib
from typing import Any, BinaryIO, Iterator, NamedTuple

from data_pipeline.sources import Range

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes. A longer line is refused: it is not text, or not in lines."""

LONGEST_DOCUMENT = LONGEST_LINE
"""Bytes. A longer document is cut at the end of a line, so that memory does not grow with it."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20


class Document(NamedTuple):
    """`replaced`: invalid bytes or surrogates replaced by U+FFFD; `cut`: 1 where a long document was cut after this
    part; `position`: bytes of the stored file read so far."""

    text: str
    replaced: int
    cut: int
    position: int


def read_documents(part: Range, text_field: str = "text", encoding_errors: str = "strict") -> Iterator[Document]:
    """The documents that belong to a range. None is blank; lines end in "\\n".

    Raises ValueError naming file and line, or file and byte, for what is not text: invalid UTF-8 (unless
    encoding_errors is "replace"), a line beyond LONGEST_LINE, a damaged archive, a JSON line without the field.
    """
    source = part.source
    try:
        with open(source.path, "rb") as stored:
            file = io.BufferedReader(gzip.GzipFile(fileobj=stored), _BUFFER_BYTES) if source.compressed else stored
            lines = _Lines(file, stored, part)
            if source.format == "json":
                yield from _json_documents(lines, text_field, encoding_errors)
            else:
                yield from _text_documents(lines, encoding_errors)
    except EOFError:
        raise ValueError(f"{source.path} is cut short: the compressed data ends before its end mark") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{source.path} is not gzip data, or damaged: {error}") from None
    except OSError as error:
        raise ValueError(f"{source.path} cannot be read: {error.strerror or error}") from None


class _Lines:
    """Iterates over (offset, line) from the first line that starts in a range to the end of the file."""

    def __init__(self, file: Any, stored: BinaryIO, part: Range):
        self.file, self.stored, self.path = file, stored, part.source.path
        self.start = self.offset = part.start
        self.end = None if part.source.compressed else part.end
        self.count = 0
        if part.start:
            self._skip_to_line()
        elif file.peek(3)[:3] == _BYTE_ORDER_MARK:
            self.offset = len(file.read(3))

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
        """Whether a border at this offset belongs to the range."""
        return self.end is None or offset < self.end

    def number(self) -> int:
        """The number in the file, from 1, of the line read last. Reads the file up to the range again."""
        return self.count + (_count_lines(self.path, self.start) if self.start else 0)

    def position(self) -> int:
        """Bytes of the stored file read so far."""
        return self.offset if self.end is not None else self.stored.tell()


def _count_lines(path: str, before: int) -> int:
    """Lines that start before the offset."""
    count = 1
    with open(path, "rb") as file:
        while before > 1 and (chunk := file.read(min(_BUFFER_BYTES, before - 1))):
            count += chunk.count(b"\n")
            before -= len(chunk)
    return count


def _text_documents(lines: _Lines, errors: str) -> Iterator[Document]:
    gathered: list[bytes] = []
    start = size = 0
    inside = lines.start == 0
    for offset, line in lines:
        if line.isspace():
            if gathered:
                yield _text_document(lines, gathered, start, errors, cut=0)
                gathered, size = [], 0
            inside = lines.ours(offset)
            if not inside:
                return
        elif inside:
            if size + len(line) > LONGEST_DOCUMENT:
                yield _text_document(lines, gathered, start, errors, cut=1)
                gathered, size = [], 0
            start = start if gathered else offset
            gathered.append(line)
            size += len(line)
        elif not lines.ours(offset):
            return
    if gathered:
        yield _text_document(lines, gathered, start, errors, cut=0)


def _text_document(lines: _Lines, gathered: list[bytes], start: int, errors: str, cut: int) -> Document:
    text, replaced = _decode(b"".join(gathered), lines.path, start, errors)
    return Document(text.replace("\r\n", "\n").strip("\n"), replaced, cut, lines.position())


def _decode(raw: bytes, path: str, offset: int, errors: str) -> tuple[str, int]:
    try:
        return raw.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise ValueError(
                f"{path} is not UTF-8 at byte {offset + error.start}: found 0x{raw[error.start]:02x}; "
                "--encoding-errors replace goes on with U+FFFD in its place"
            ) from None
    text = raw.decode("utf-8", "replace")
    return text, text.count("\ufffd") - raw.count(b"\xef\xbf\xbd")


def _json_documents(lines: _Lines, field: str, errors: str) -> Iterator[Document]:
    for offset, line in lines:
        if not lines.ours(offset):
            return
        if line.isspace():
            continue
        decoded, replaced = _decode(line, lines.path, offset, errors)
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
