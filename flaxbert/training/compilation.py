"""Compiled programs are kept on disk, so a run that is started again does not compile again."""

import hashlib
import os
import pathlib
import platform
import tempfile

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compilations() -> list[str]:
    """Keeps what JAX compiles in the user's cache folder, unless its own variable names another; with
    JAX_ENABLE_COMPILATION_CACHE=false nothing is kept. Returns what is to be said: where the folder cannot be written,
    nothing is kept either, and it only takes longer.
    """
    import jax

    if VARIABLE in os.environ or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return []
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not tell: JAX would warn at every program
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows a home folder
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        return [f"what is compiled is not kept for the next launch ({reason}): {VARIABLE} names a folder for it"]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return []


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
