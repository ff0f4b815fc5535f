"""Compiled programs are kept on disk, so a run that is started again does not compile again."""

import hashlib
import os
import pathlib
import platform

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compilations() -> None:
    """Keeps what JAX compiles in the user's cache folder, unless its own variable names another; with
    JAX_ENABLE_COMPILATION_CACHE=false nothing is kept.
    """
    import jax

    if VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def cache_folder() -> pathlib.Path:
    """`flaxbert/compilations-…` below $XDG_CACHE_HOME, or ~/.cache: one for each kind of processor, since a program
    that is compiled for one may not run on another that shares the home folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "flaxbert" / f"compilations-{_processor()}"


def _processor() -> str:
    """The architecture and, on Linux, a digest of what its processor can do."""
    try:
        facts = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        facts = []
    known = sorted({line for line in facts if line.startswith(("model name", "flags", "Features"))})
    return f"{platform.machine()}-{hashlib.sha256(' '.join(known).encode()).hexdigest()[:8]}"
