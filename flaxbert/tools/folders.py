"""What a folder that a user calls MODEL is: a run's, a search's, or that of a model alone."""

import json
from pathlib import Path
from typing import Any

from flaxbert.interop.huggingface_config import CONFIG

BEST = "best"
"""In the folder of a search: the model that it keeps."""


def model_folder(folder: Path) -> Path:
    """Where the model of a folder lies: there, or, of a search's folder, in that of its best model. Raises ValueError
    where there is none yet.
    """
    if not is_search(folder):
        return folder
    if not (folder / BEST / CONFIG).is_file():
        raise ValueError(f"{folder} is the folder of flaxbert finetune, and has no {BEST}/ yet: no run of it has ended")
    return folder / BEST


def is_run(folder: Path) -> bool:
    """Whether config.json is that of a run."""
    return "experiment" in _config(folder)


def is_search(folder: Path) -> bool:
    """Whether config.json is that of `flaxbert finetune`."""
    return "search" in _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
