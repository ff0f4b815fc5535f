"""Text to batches: corpora, tokenizers, pairing, masking and the stream. Knows nothing of JAX."""

import importlib
from typing import Any

# Public name → the file it lives in. Loaded on first use: importing the package stays cheap.
_PUBLIC = {"open_corpus": "store", "batches": "stream", "Position": "windows", "DataConfig": "config"}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
