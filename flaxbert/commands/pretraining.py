"""What the commands on a run of pretraining take."""

import dataclasses
from typing import Annotated, Literal

import tyro

from flaxbert.commands.folders import check_folder, check_no_pattern
from flaxbert.config import Experiment


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of one run."""

    coordinator: str | None = None
    """HOST:PORT of process 0, free there, of several that are told of each other by these three flags. None: by TPU
    hosts, SLURM, Open MPI or an indexed job of Kubernetes; one process where there is none of them."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which of them this is: 0 to one less than there are."""
    heartbeat_seconds: int = 100
    """How long a silent process is waited for before the others end."""
    start_seconds: int = 300
    """How long all are waited for at the start."""

    def __post_init__(self) -> None:
        for name in ("heartbeat_seconds", "start_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is not positive")
        missing = [name for name in ("coordinator", "processes", "process") if getattr(self, name) is None]
        if missing and len(missing) < 3:
            flags = " and ".join(f"--{name}" for name in missing)
            raise ValueError(f"{flags} missing: --coordinator, --processes and --process go together")
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator {self.coordinator} is not HOST:PORT")
        if self.processes <= 0:
            raise ValueError(f"--processes {self.processes} is not positive")
        if not 0 <= self.process < self.processes:
            raise ValueError(f"--process {self.process} is not one of the {self.processes} that --processes says")


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pretrain a model on a prepared corpus. The same command again resumes."""

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """A name in experiments/ or the path of a Python file that defines EXPERIMENT."""
    corpus: str
    """A prepared corpus."""
    workdir: str
    """The run's folder: settings, checkpoints, metrics."""
    init: str | None = None
    """Begin with the parameters of a model: a run's folder, an export, or a Hugging Face folder. Read by the first
    launch alone; the optimizer begins anew."""
    verify: Literal["size", "content"] = "size"
    """How the corpus's shards are compared with what was prepared: their sizes, or all of it, by checksum."""
    peers: Annotated[Peers, tyro.conf.arg(name="")] = Peers()
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()

    def __post_init__(self) -> None:
        check_folder("--workdir", self.workdir)
        check_no_pattern("--workdir", self.workdir)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile the train step without running it: memory, FLOPs, traffic, the largest batch, device hours."""

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """A name in experiments/ or the path of a Python file that defines EXPERIMENT."""
    topology: str | None = None
    """A TPU slice that need not be there, such as v5e:4x4, v6e:2x4 or v5p:2x2x2; needs the extra `tpu`. None: the
    devices of this machine."""
    corpus: str | None = None
    """A prepared corpus, for the size of its vocabulary. None: `--model.vocab-size`, or 30,522."""
    mfu: float = 0.5
    """The share of the devices' peak that speeds and hours are told at."""
    peak_flops: float | None = None
    """The peak of one device in FLOP/s, such as 989e12. None: that of its kind, where it is known."""
    search: int = 8
    """Compilations that the search for the largest batch may take. 0: no search."""
    json: str | None = None
    """Write the plan as JSON. `-`: to standard output, and nothing else."""
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one page on a run: curves, recipe, filled masks, fine-tuning tables. The run may be going on."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The folder of a pretraining run."""
    more: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TUNED...")] = ()
    """Folders of flaxbert finetune, for their tables."""
    output: str = "report.html"
    """The page; it needs no network."""


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Prepare, pretrain, look at and export a tiny BERT on Python's documentation, in minutes."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")] = "runs/quickstart"
    """Where everything goes."""
