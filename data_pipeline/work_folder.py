"""The folder that prepare writes: one writer at a time, a stranger's files untouched, finished work never lost."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Iterator

from data_pipeline import python_docs
from data_pipeline.config import PrepareConfig
from data_pipeline.store import FORMAT_VERSION, MANIFEST, SPLITS, TOKENIZER_FOLDER
from data_pipeline.unfinished import Unfinished, writing
from data_pipeline.whole_files import write_json

WORK = ".prepare"
SAMPLE = "sample.json"
"""In the work folder: what a tokenizer was trained on, written once it is."""

_STATE = "state.json"
_LOCK = "lock"
_REMEDY = "choose another output folder, or delete this one"


@contextlib.contextmanager
def work_folder(folder: Path, state: dict[str, Any]) -> Iterator[Path | None]:
    """Makes the folder ready, new or left unfinished by the same command, and yields its work folder.

    While the block runs no other prepare enters. When it ends the work folder goes; when it fails there is either
    something to go on from, or what was there before. Another command's work is refused and not touched. Yields None
    where another prepare has finished the corpus since the caller looked.
    """
    existed, work = folder.exists(), folder / WORK
    _refuse_strangers(folder)
    with _only_writer(folder):
        if (folder / MANIFEST).exists():
            yield None
            _remove_work(folder)
            return
        begun = _begun(folder, state)
        try:
            with writing(folder):
                if not begun:
                    write_json(work / _STATE, {"format_version": FORMAT_VERSION, **state})
                yield work
        except Unfinished:
            _remove(folder.rglob(".*.partial"))  # of workers that were ended in the middle
            raise
        except ValueError:
            if begun or _holds_work(work):
                _remove(folder.rglob(".*.partial"))
            else:
                _take_back(folder, existed)
            raise
        _remove_work(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes the work folder of a finished corpus, which a run that was killed at its very end has left."""
    if (folder / WORK).is_dir():
        # Where another prepare is about to remove it, or nothing can be written, the corpus is whole all the same.
        with contextlib.suppress(ValueError), _only_writer(folder):
            _remove_work(folder)


def _remove_work(folder: Path) -> None:
    # The corpus is finished: what cannot be removed now, the next run removes.
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _refuse_strangers(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is a file: expected a folder, or nothing")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    # In this order: another prepare that ends right now writes the manifest before its work folder goes.
    if not (folder / WORK).is_dir() and not (folder / MANIFEST).exists():
        raise ValueError(f"output folder {folder} is not empty and holds no prepared corpus: choose another one")


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """A lock that the system gives back when its holder dies, however it dies."""
    import filelock

    lock = filelock.FileLock(folder / WORK / _LOCK)
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(
            f"another prepare is writing {folder}: wait until it has ended, or choose another output folder"
        ) from None
    except OSError as error:
        raise ValueError(f"output folder {folder} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _begun(folder: Path, state: dict[str, Any]) -> bool:
    """Whether the same command was here before. What no longer says whose work it is, is removed."""
    recorded = read_json(folder / WORK / _STATE)
    holds = f"{folder} holds an unfinished corpus"
    other_version = f"{holds} of another version of this software: {_REMEDY}"
    # Before anything else: another version may write other keys.
    if isinstance(recorded, dict) and recorded.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise ValueError(other_version)
    if isinstance(recorded, dict) and {"settings", "source"} <= recorded.keys():
        check_same(holds, recorded, state)
        if recorded != {"format_version": FORMAT_VERSION, **state}:
            raise ValueError(other_version)
        _remove(folder.rglob(".*.partial"))
        return True
    _clear(folder)
    return False


def check_same(holds: str, recorded: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises ValueError naming the first setting or source in which a corpus differs from what is asked for."""
    defaults = dataclasses.asdict(PrepareConfig())
    for field, expected in state["settings"].items():
        # A setting that came later: earlier corpora were prepared as its default does.
        found = recorded["settings"].get(field, defaults.get(field))
        if found != expected:
            raise ValueError(f"{holds} prepared with {field} = {found!r}, asked for is {expected!r}: {_REMEDY}")
    found_files, expected_files = recorded["source"]["files"], state["source"]["files"]
    if found_files != expected_files:
        pairs = zip([*found_files, None], [*expected_files, None])
        found, expected = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{holds} prepared from other sources: found {_describe(found)}, asked for is {_describe(expected)}: "
            f"{_REMEDY}"
        )


def _describe(file: dict[str, Any] | None) -> str:
    return "no further file" if file is None else ", ".join(f"{field} {value}" for field, value in file.items())


def _holds_work(work: Path) -> bool:
    """Whether anything is finished that the same command can go on from: a tokenizer trained, a shard with text."""
    if (work / SAMPLE).exists():
        return True
    records = map(read_json, [*work.glob("shard-*.json"), *work.glob("digests-*.json")])
    return any(record is not None and _holds_text(record) for record in records)


def _holds_text(record: dict[str, Any]) -> bool:
    documents = [counts["documents"] for counts in record.get("counts", {}).values()]
    return any([*documents, *record.get("digests", ())])


def _clear(folder: Path) -> None:
    """Removes what prepare writes, all but the lock that this process holds."""
    for path in (folder / WORK).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    _remove(path for split in SPLITS for path in folder.glob(f"{split}-?????-of-?????.parquet"))
    _remove([*folder.glob(".*.partial"), folder / python_docs.FILE])


def _take_back(folder: Path, existed: bool) -> None:
    _clear(folder)
    shutil.rmtree(folder / WORK)
    if not existed:
        folder.rmdir()


def _remove(paths: Any) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value, or None for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
