"""Small files of a run: there as a whole or not at all, and named where they cannot be written."""

import os
import pathlib
import shutil

KEPT_ATTENTION = "attention.json"  # in a run's folder: the backends that were measured to be the fastest
STUDY = "not_finite"  # the folder of a run with what is left for study where its numbers stopped being numbers


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes under a temporary name, then renames. Raises OSError with the name of the file, which that of a full disk
    has not.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder in the place of another. Raises OSError with the name of the first file that cannot be."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        _, path, reason = error.args[0][0]
        raise OSError(f"{path} cannot be written: {reason}") from error
