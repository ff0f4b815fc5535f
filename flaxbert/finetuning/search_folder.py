"""The folder of a search: what it searches, which of its cells have ended, whose model is kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxbert.finetuning.saved import BEST, TASK, read_task
from flaxbert.finetuning.tuning import Cell
from flaxbert.training.files import write_atomically
from flaxbert.training.lock import LOCK

SETTINGS = "config.json"

Result = dict[str, Any]


def kept_cell(workdir: Path) -> str:
    """The name of the cell whose model is kept; empty where there is none."""
    return read_task(workdir / BEST).cell if (workdir / BEST / TASK).is_file() else ""


def read_results(folder: Path) -> dict[str, Result]:
    """Name → what it came to, of all cells that have ended."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            read = json.loads(path.read_bytes(), parse_constant=lambda name: None)
            found[path.stem] = {"diverged": read["loss"] is None} | read
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: delete it, and its cell is trained again") from None
    return found


def check_settings(workdir: Path, settings: dict[str, Any], files: dict[str, str]) -> None:
    """Raises ValueError where the folder holds anything but a search with these settings, naming those that differ, and
    of the data the files: `files` are their paths by split. The model may have moved: its weights are compared. Writes
    nothing.
    """
    path = workdir / SETTINGS
    if not path.is_file():
        if workdir.exists() and (not workdir.is_dir() or {each.name for each in workdir.iterdir()} - {LOCK}):
            raise ValueError(f"{workdir} is not empty and holds no search")
        return
    try:
        before = json.loads(path.read_bytes())["search"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{workdir} holds no search: its {SETTINGS} is that of something else") from None
    before.setdefault("scored", settings.get("scored"))  # a folder may be older than this setting
    changed = [name for name in settings if name != "init" and before.get(name) != settings[name]]
    if changed:
        differ = [each for name in changed for each in _differences(name, before.get(name), settings[name], files)]
        raise ValueError(f"{workdir} holds another search: {', '.join(dict.fromkeys(differ))}; name another --workdir")


def _differences(name: str, before: Any, now: Any, files: dict[str, str]) -> list[str]:
    if name not in ("data", "scored") or not isinstance(before, dict):
        return [f"{name} was {before} and is now {now}"]
    changed = [f"{files[split]} has changed" for split in now if split in before and before[split] != now[split]]
    new = [f"{files[split]} was not there" for split in now if split not in before]
    gone = [f"the {split} examples are no longer there" for split in before if split not in now]
    return [*changed, *new, *gone]


def write_settings(workdir: Path, settings: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Begins a search's folder, or says what a further launch plans in it."""
    found = {"search": settings, "planned": [cell.name for cell in cells]}
    write_atomically(workdir / SETTINGS, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
