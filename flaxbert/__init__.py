"""flaxbert: pretrain BERT in JAX."""

import importlib
from typing import Any

# Public name → the file it lives in. Loaded on first use: JAX takes a second to import.
_PUBLIC = {"load": "tools.load"}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
