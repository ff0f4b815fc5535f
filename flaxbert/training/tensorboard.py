"""A run's numbers as charts for TensorBoard: event files that are appended to, and given up where they cannot be."""

import contextlib
import errno
import io
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


@contextlib.contextmanager
def open_board(folder: pathlib.Path, first_step: int, say: Callable[[str], None]) -> Iterator[Callable[[Record], None]]:
    """Writes scalars under `train/` and `validation/`; those of earlier launches beyond `first_step` are hidden.

    Training does not end because a chart cannot be written: that is said once, and charts are off. The messages are
    tensorboardX's, its writer is not: that writes in a thread, which an error ends, and the run would wait for it for
    ever once its queue is full.
    """
    file: io.FileIO | None = None

    def written(make: Callable[[], io.FileIO]) -> io.FileIO | None:
        try:
            return make()
        except OSError as error:
            say(f"TensorBoard is off, training goes on: {folder} cannot be written ({error.strerror})")
            return None

    file = written(lambda: _begun(folder, first_step))

    def write(record: Record) -> None:
        nonlocal file
        if (current := file) is not None:
            file = written(lambda: _appended(current, record))
            if file is None:
                current.close()

    try:
        yield write
    finally:
        if file is not None:
            file.close()


def launches(folder: pathlib.Path) -> list[tuple[float, int]]:
    """(Unix time, steps that had been done) of each launch whose charts lie in `folder`, the earliest first."""
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        with contextlib.suppress(OSError, struct.error, DecodeError), open(path, "rb") as file:
            for _ in range(2):  # the version of the format, then the launch
                (length,) = struct.unpack("<Q4x", file.read(12))
                event = Event.FromString(file.read(length))
                file.seek(4, os.SEEK_CUR)
            if event.HasField("session_log"):
                found.append((event.wall_time, event.step - 1))
    return sorted(found)


def _begun(folder: pathlib.Path, first_step: int) -> io.FileIO:
    """A new event file, unbuffered: an error is one of the write that it belongs to."""
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    file = open(folder / name, "ab", buffering=0)
    try:
        _append(file, Event(wall_time=time.time(), file_version="brain.Event:2"))
        _append(
            file,
            Event(wall_time=time.time(), step=first_step + 1, session_log=SessionLog(status=SessionLog.START)),
        )
    except OSError:
        file.close()
        raise
    return file


def _appended(file: io.FileIO, record: Record) -> io.FileIO:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    if not os.path.exists(file.name):
        raise FileNotFoundError(errno.ENOENT, "its event file was deleted")
    values = [
        Summary.Value(tag=f"{record['split']}/{name}", simple_value=value) for name, value in record.items()
        if name not in ("step", "split") and value is not None and math.isfinite(value)
    ]  # fmt: skip
    _append(file, Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
    return file


def _append(file: io.FileIO, event: Any) -> None:
    """One event in the framing of TFRecord: length, its checksum, data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    framed = length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
    while framed:
        framed = framed[file.write(framed):]
