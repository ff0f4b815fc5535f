"""Files by path, or by URL through fsspec: which ones a name stands for, what they are, and their bytes."""

import contextlib
import glob
import io
import os
import stat
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple

_BUFFER_BYTES = 1 << 20
_LOCAL = ("file://", "local://")
# What is behind them is another thing in each process, even where it is a file.
_OF_THE_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/")

# What file systems say of a file that changes with its content, the surest first.
_VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "checksum", "generation", "mtime", "LastModified", "last_modified",
    "updated", "modified", "created",
)


class Facts(NamedTuple):
    """`size` in bytes. `modified`: nanoseconds, or what a remote file system says of a file's version."""

    size: int
    modified: int | str


def is_remote(path: str) -> bool:
    """Whether a name is a URL, for fsspec to read."""
    return "://" in path


def find_files(name: str, wanted: Callable[[str], bool], left_out: str = "") -> list[str]:
    """The files that a path, URL or glob stands for, in order. Of folders the wanted ones, hidden ones left out. Links
    to local folders are followed; a URL of a local file is its path.

    Of what a local folder or glob holds, what lies below the folder `left_out` is none: prepare's own output.

    Raises ValueError for a name that stands for nothing.
    """
    files: list[str] = []
    with _reaching(name):
        if name.startswith(_LOCAL):
            name = _file_system(name)[1]
        if is_remote(name):
            system, path = _file_system(name)
            matches = [path] if system.exists(path) else _matches(system, path)
            for match in matches:
                found = _visible(match, system.find(match), wanted) if system.isdir(match) else [match]
                files += [system.unstrip_protocol(each) for each in found]
        else:
            for match in [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)):
                files += _visible(match, _walk(match), wanted) if os.path.isdir(match) else [match]
    outside = files if is_remote(name) or os.path.isfile(name) else _outside(files, left_out)
    if not outside:
        raise ValueError(f"no file matches {name!r}" + (f" outside of the output folder {left_out}" if files else ""))
    return outside


def _outside(files: list[str], left_out: str) -> list[str]:
    if not left_out:
        return files
    inside = os.path.join(os.path.realpath(left_out), "")
    return [path for path in files if not os.path.realpath(path).startswith(inside)]


def _matches(system: Any, pattern: str) -> list[str]:
    """As Python's own glob: in order, hidden files and folders left out."""
    if not glob.has_magic(pattern):
        return []
    folder = glob.escape(pattern).partition("[")[0].rpartition("/")[0]
    return sorted(path for path in system.glob(pattern) if not _is_hidden(path[len(folder):]))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _walk(folder: str) -> list[str]:
    """All files below a folder. Each folder is entered once, by the first of its names: links may lead in a circle."""
    files, entered = [], {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        files += [os.path.join(parent, name) for name in names]
        visible = [name for name in sorted(folders) if not _is_hidden(name)]
        folders.clear()
        for name in visible:
            real = os.path.realpath(os.path.join(parent, name))
            if real not in entered:
                entered.add(real)
                folders.append(name)
    return files


def _visible(folder: str, paths: list[str], wanted: Callable[[str], bool]) -> list[str]:
    """A folder's own files come before those of its folders."""
    found = []
    for path in paths:
        relative = path[len(folder):].replace(os.sep, "/").strip("/")
        *folders, name = relative.split("/")
        if wanted(name) and not _is_hidden(relative):
            found.append(([(1, part) for part in folders] + [(0, name)], path))
    return [path for _, path in sorted(found)]


def facts(path: str) -> Facts:
    """Size and version of a file. Raises ValueError for one that cannot be read."""
    with _reaching(path):
        if is_remote(path):
            system, stripped = _file_system(path)
            info = system.info(stripped)
            if info.get("size") is None:
                raise ValueError(f"{path} cannot be read: its server does not say how long it is")
            version = next((str(info[name]) for name in _VERSIONS if info.get(name)), None)
            return Facts(info["size"], version or system.ukey(stripped))
        status = os.stat(path)  # before it is opened: a pipe would wait for its writer
        if not stat.S_ISREG(status.st_mode) or os.path.abspath(path).startswith(_OF_THE_PROCESS):
            raise ValueError(f"{path} cannot be read: it is no regular file, and text is read more than once")
        open(path, "rb").close()
        return Facts(status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """The open file. Whatever goes wrong while the block reads it becomes a ValueError that names it."""
    with _reaching(path), open_file(path) as file:
        yield file


def open_file(path: str) -> BinaryIO:
    """The file, open for reading in large pieces."""
    if not is_remote(path):
        return open(path, "rb")
    system, stripped = _file_system(path)
    return io.BufferedReader(system.open(stripped, "rb"), _BUFFER_BYTES)


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or _in_one_line(error)}") from error
    except Exception as error:  # each remote file system has errors of its own
        # What names the file is a sentence of ours, or as good as one.
        if not is_remote(path) or (isinstance(error, ValueError) and path in str(error)):
            raise
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _file_system(url: str) -> tuple[Any, str]:
    """Raises ValueError where the scheme is unknown or needs a package that is missing."""
    import fsspec

    if "::" in url:
        raise ValueError(f"{url} is a chain of file systems: expected one scheme://path")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} cannot be read without a further package: {error}") from None
    except ValueError as error:
        raise ValueError(f"{url} cannot be read: {error}") from None
