"""What the commands on a corpus take."""

import dataclasses
from typing import Annotated, Literal

import tyro

from data_pipeline.config import PrepareConfig


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Text → a prepared corpus that any experiment can train on."""

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="INPUT...")]
    """Files, globs, directories or URLs of text, JSON lines or Parquet, plain or compressed; `tfds:NAME@SPLIT#FIELD`;
    or `python-docs`."""
    output: str
    """The folder to write."""
    settings: Annotated[PrepareConfig, tyro.conf.arg(name="")] = PrepareConfig()
    workers: int | None = None
    """Processes. None: one for each core."""
    engine: Literal["local", "beam"] = "local"
    """Processes here, or Apache Beam: what follows a bare `--` are the flags of its runner."""
    beam_flags: tyro.conf.Suppress[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Examine a prepared corpus: what makes runs fail, and what mends it."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """A prepared corpus. The checksum of every shard is compared first."""
    batch_size: int = 256
    """Rows in a batch: what steps are counted in."""
    lengths: tuple[int, ...] = (128, 512)
    """The sequence lengths to draw sequences at; the default is that of the paper's two phases."""
    sample_tokens: int = 200_000_000
    """Training tokens that are read; of a larger corpus, blocks spread evenly over it."""
    json: str | None = None
    """Write all that was measured as JSON. `-`: to standard output, and nothing else."""
    plot: str | None = None
    """Draw histograms into this file, which ends in .png."""
