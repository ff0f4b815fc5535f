"""Compressed files as the command-line tools read them: member after member, and never short without an error."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from typing import Any, BinaryIO, Callable, Iterator

SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
"""By the last part of a file's name."""

_BUFFER_BYTES = 1 << 20
_READ_BYTES = 1 << 16


def unpacked(stored: BinaryIO, compression: str) -> io.BufferedReader:
    """The content of an open compressed file. Reading it raises what `explained` knows."""
    raw: Any
    if compression == "gzip":
        raw = gzip.GzipFile(fileobj=stored)
    elif compression == "zstd":
        import pyarrow

        raw = pyarrow.CompressedInputStream(stored, "zstd")
    else:
        raw = _Members(stored, _new_xz if compression == "xz" else bz2.BZ2Decompressor)
    return io.BufferedReader(raw, _BUFFER_BYTES)


@contextlib.contextmanager
def explained(name: str, compression: str) -> Iterator[None]:
    """Turns what the decompressors raise into one sentence about the file."""
    try:
        yield
    except EOFError:
        raise ValueError(_cut_short(name)) from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name} is not {compression} data, or damaged: {error}") from None
    except OSError as error:
        # Arrow's own errors; those of the system have a number.
        if compression != "zstd" or error.errno is not None:
            raise
        if "Truncated" in str(error):
            raise ValueError(_cut_short(name)) from None
        if "too much memory" in str(error):
            remedy = "compress it again without --long, or with --long=27"
            raise ValueError(f"{name} has a window of more than 128 MiB: {remedy}") from None
        raise ValueError(f"{name} is not {compression} data, or damaged: {error}") from None


def _cut_short(name: str) -> str:
    return f"{name} is cut short: the compressed data ends before its end mark"


def _new_xz() -> lzma.LZMADecompressor:
    """Of this format alone: zeros would pass for an empty file of an older one."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ)


class _Members(io.RawIOBase):
    """Members of xz or bzip2. Python's own readers take a damaged later member for the end of the file."""

    def __init__(self, stored: BinaryIO, new_decompressor: Callable[[], Any]):
        self.stored, self.new_decompressor = stored, new_decompressor
        self.decompressor: Any = None
        self.waiting = self.padding = b""  # zeros may stand after an xz member, not before the first

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decompressor is None and not self._next_member():
                return 0
            content = self._decompress(len(buffer))
            if content:
                buffer[:len(content)] = content
                return len(content)

    def _next_member(self) -> bool:
        self.waiting = self.waiting.lstrip(self.padding)
        while not self.waiting:
            read = self.stored.read(_READ_BYTES)
            if not read:
                return False
            self.waiting = read.lstrip(self.padding)
        self.decompressor, self.padding = self.new_decompressor(), b"\0"
        return True

    def _decompress(self, size: int) -> bytes:
        if self.decompressor.needs_input and not self.waiting:
            self.waiting = self.stored.read(_READ_BYTES)
            if not self.waiting:
                raise EOFError
        try:
            content = self.decompressor.decompress(self.waiting, size)
        except OSError as error:  # bzip2's; told apart from those of reading
            raise zlib.error(str(error)) from None
        self.waiting = self.decompressor.unused_data
        if self.decompressor.eof:
            self.decompressor = None
        return content
