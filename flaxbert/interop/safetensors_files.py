"""Tensors in safetensors files, one or several with an index: read one by one, written and read back."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_UNREADABLE = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_FLOATING = ("F32", "F16", "BF16", "F64")


class Tensor(NamedTuple):
    """A tensor that is read when it is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Float32. Raises ValueError for what is no floating-point tensor."""
    origin: str
    """The file, for errors."""


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a directory by their names. Raises ValueError naming the file that is missing or damaged."""
    with contextlib.ExitStack() as files:
        if (folder / WEIGHTS).is_file():
            yield _tensors(folder / WEIGHTS, files)
        elif (folder / INDEX).is_file():
            yield _indexed(folder, files)
        else:
            raise ValueError(_why_unreadable(folder))


def _tensors(path: Path, files: contextlib.ExitStack) -> dict[str, Tensor]:
    with _damage_named(path):
        file = files.enter_context(safe_open(path, "numpy"))
        return {name: _tensor(path, file, name) for name in file.keys()}


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    entry = file.get_slice(name)

    def read() -> np.ndarray:
        if entry.get_dtype() not in _FLOATING:
            raise ValueError(f"{path}: tensor {name} has type {entry.get_dtype()}, expected floating-point numbers")
        with _damage_named(path):
            array: np.ndarray = file.get_tensor(name).astype(np.float32)
            return array

    return Tensor(tuple(entry.get_shape()), read, str(path))


def _indexed(folder: Path, files: contextlib.ExitStack) -> dict[str, Tensor]:
    path = folder / INDEX
    try:
        names: dict[str, str] = json.loads(path.read_bytes())["weight_map"]
        shards = sorted(set(map(str, names.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of tensors: {type(error).__name__}: {error}") from None
    found: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"{path} names {shard}: expected a file of its own folder")
        if not (folder / shard).is_file():
            raise ValueError(f"{path} names {shard}, and there is no such file")
        found |= {name: tensor for name, tensor in _tensors(folder / shard, files).items() if names.get(name) == shard}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} places tensor {missing[0]} in {names[missing[0]]}, which does not hold it")
    return found


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from None


def _why_unreadable(folder: Path) -> str:
    others = [name for name in _UNREADABLE if (folder / name).is_file()]
    if not others:
        return f"{folder} has no {WEIGHTS}"
    reason = "pickle can run code when it is opened" if others[0].endswith((".bin", ".json")) else "it is not read here"
    return (
        f"{folder} has {others[0]} but no {WEIGHTS}: {reason}; load it with transformers where you trust it, and save "
        "it again with save_pretrained(…, safe_serialization=True)"
    )


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, reads it back and compares."""
    save_file(tensors, path, metadata={"format": "pt"})
    with safe_open(path, "numpy") as file:
        for name, tensor in tensors.items():
            if not np.array_equal(file.get_tensor(name), tensor):
                raise RuntimeError(f"{path}: tensor {name} read back differs from what was written")
