"""What the name of a folder to write may be."""

import glob
import os


def check_folder(flag: str, path: str) -> None:
    """A bucket's URL would be taken for the name of a folder here."""
    if isinstance(path, str) and "://" in path:
        raise ValueError(f"{flag} {path} is a URL: expected a folder of a mounted file system")


def check_no_pattern(flag: str, path: str) -> None:
    """Orbax looks for the files of a checkpoint by a pattern that begins with its folder's name as it is."""
    if isinstance(path, str) and glob.escape(os.path.abspath(path)) != os.path.abspath(path):
        raise ValueError(
            f"{flag} {os.path.abspath(path)} holds one of * ? [ in its name, and no checkpoint could be saved there: "
            "choose another folder"
        )
