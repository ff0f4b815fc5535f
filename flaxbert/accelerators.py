"""Whether JAX will compute on an accelerator, told before JAX is imported."""

import importlib.util
import os
from glob import glob

# Device files, and the packages that let JAX use what is behind them.
_KINDS = {
    "gpu": (
        ("/dev/nvidia[0-9]*", "/dev/kfd"),
        ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin"),
    ),
    "tpu": (("/dev/accel*", "/dev/vfio/[0-9]*"), ("libtpu",)),
}  # fmt: skip


def accelerator() -> str | None:
    """What `JAX_PLATFORMS` names first, and else "tpu" or "gpu" where there is one that JAX can use; None for a CPU.

    A guess that decides over speed alone.
    """
    named = os.environ.get("JAX_PLATFORMS", "").split(",")[0].strip()
    if named:
        return None if named == "cpu" else named
    for kind, (files, packages) in _KINDS.items():
        if any(glob(pattern) for pattern in files) and any(importlib.util.find_spec(name) for name in packages):
            return kind
    return None
