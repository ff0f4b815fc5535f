"""Other checkouts of the project, to measure a change against what was there before."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_against(parser: argparse.ArgumentParser) -> None:
    """The flag `--against NAME=CHECKOUT ...`."""
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME=CHECKOUT", help="other checkouts of flaxbert")


def read_against(parser: argparse.ArgumentParser, pairs: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Name → absolute path of the folder. Ends the program where one is no checkout, or its name is `taken`."""
    found = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        there = folder and Path(folder, "benchmarks", "train_step", "ours.py").is_file()
        if name in ("", *taken) or not there:
            parser.error(f"--against {name}={folder}: expected a name of its own, =, and a checkout of flaxbert")
        found[name] = str(Path(folder).absolute())
    return found
