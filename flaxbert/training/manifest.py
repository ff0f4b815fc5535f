"""The list of a checkpoint's files that it carries along: what is there is proven by it to be what was written."""

import hashlib
import json
import os
import pathlib
from collections.abc import Collection
from typing import Any

MANIFEST = "manifest.json"


def write_manifest(folder: pathlib.Path) -> None:
    """Lists the relative path, size in bytes and sha256 of every file below `folder` in a file of its own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    entries = {path.relative_to(folder).as_posix(): _entry(path) for path in paths}
    with open(folder / MANIFEST, "wb") as file:
        file.write(_serialized(entries))
        file.flush()
        os.fsync(file.fileno())


def find_damage(
    folder: pathlib.Path, names: Collection[str] | None = None, contents: bool = True
) -> str | None:  # fmt: skip
    """Why `folder` is not what was written, naming the file; None where its manifest proves that it is.

    Looks at the listed files, or at those of them in `names`; without `contents` at their sizes alone, which takes no
    time. Files that the manifest does not list are no damage.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        entries = _read(folder / MANIFEST)
    except FileNotFoundError:
        return f"it has no {MANIFEST}" if any(folder.iterdir()) else "it is empty"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is unreadable or altered"
    for name, entry in entries.items():
        reason = _difference(folder / name, entry, contents) if names is None or name in names else None
        if reason is not None:
            return f"{name} {reason}"
    return None


def _difference(path: pathlib.Path, entry: dict[str, Any], contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"has {size:,} bytes, expected {entry['size']:,}"
        return "is altered: its checksum differs" if contents and _entry(path) != entry else None
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _entry(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _serialized(entries: dict[str, Any]) -> bytes:
    """The manifest's own bytes. Its checksum tells an altered manifest from an altered file."""
    checksum = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": entries, "sha256": checksum}, indent=1, sort_keys=True).encode() + b"\n"


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    text = path.read_bytes()
    entries: dict[str, dict[str, Any]] = json.loads(text)["files"]
    if _serialized(entries) != text:
        raise ValueError(f"{path} is altered")
    return entries
