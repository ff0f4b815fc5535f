"""A run's directory: what it holds, and whether a launch may go on with it."""

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

from data_pipeline import tokenizer as tokenizers
from flaxbert.config import Experiment, flatten, from_dict
from flaxbert.training.files import KEPT_ATTENTION, STUDY, copy_folder, write_atomically
from flaxbert.training.lock import LOCK
from flaxbert.training.recovery import checkpoint_folder, has_saved, newest_whole, saved_steps

FORMAT_VERSION = 1
PACKAGES = ("flaxbert", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow")

# What a launch may change in a run that has begun; all else would make it another run.
MAY_CHANGE = (
    "train.steps", "train.log_every", "train.eval_every", "train.eval_batches", "train.checkpoint_every",
    "train.keep_checkpoints", "train.microbatches", "train.rematerialization", "train.attention", "train.skip_spikes",
    "train.profile_steps", "data.workers", "data.read_ahead", "mesh.data", "mesh.fsdp", "mesh.tensor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The content of a run's config.json."""

    experiment: Experiment
    corpus: dict[str, Any]
    """`path`, `fingerprint`, `tokenizer_fingerprint` and the counts of its train and validation split."""
    versions: dict[str, str]
    git_revision: str | None
    init: str | None = None
    """The model that the run began with; None: new parameters."""
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """What later launches changed: the `step` from which on, and each setting's old and new value."""
    format_version: int = FORMAT_VERSION


def begin_or_resume(
    workdir: str, experiment: Experiment, corpus: dict[str, Any], tokenizer_folder: str, init: str | None = None
) -> RunConfig:
    """Makes `workdir` a run's directory, or checks that it is this very run's. Raises ValueError where it is not."""
    folder = pathlib.Path(workdir)
    changed = check_run(workdir, experiment, corpus, init)
    if changed is None:
        _forget_launch(folder)
        _copy_tokenizer(folder, tokenizer_folder, corpus["tokenizer_fingerprint"])
        run = RunConfig(experiment, corpus, _versions(), _git_revision(), init)
    else:
        run = read_run(workdir)
        if not changed:
            return run
        settings = {name: list(pair) for name, pair in changed.items()}
        entry = {"step": max(saved_steps(workdir), default=0), "settings": settings}
        run = dataclasses.replace(run, experiment=experiment, changes=[*run.changes, entry])
    write_atomically(folder / "config.json", json.dumps(dataclasses.asdict(run), indent=2) + "\n")
    return run


def check_run(
    workdir: str, experiment: Experiment, corpus: dict[str, Any], init: str | None = None
) -> dict[str, tuple[Any, Any]] | None:
    """The settings a launch would change in the run of `workdir`, old and new; None where there is no run yet, or
    one that has saved nothing: it begins anew.

    Writes nothing. Raises ValueError with each field that differs and may not, where the run has gone further, and for
    a folder that holds something else.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").exists():
        own = ("tokenizer", ".config.json.tmp", LOCK)  # left by a launch that was killed before it had begun
        strange = [path.name for path in folder.iterdir() if path.name not in own] if folder.exists() else []
        if strange:
            raise ValueError(f"{folder} is not empty and not a run's directory: it holds {strange[0]}")
        return None
    if not has_saved(workdir):
        read_run(workdir)  # raises for a folder that is none
        return None  # a launch that ended before it had anything to lose
    newest_whole(checkpoint_folder(workdir), contents=False)  # raises where what was saved is gone
    changed = _differences(read_run(workdir), experiment, corpus, init)
    foreign = [
        f"{name} was {was} and is now {new}" for name, (was, new) in changed.items()
        if not _may_change(name, len(experiment.phases))
    ]  # fmt: skip
    if foreign:
        raise ValueError(
            f"{workdir} holds another run: {', '.join(foreign)}; choose another --workdir, or the old settings"
        )
    reached = max(saved_steps(workdir), default=0)
    if experiment.train.steps < reached:
        raise ValueError(f"train.steps {experiment.train.steps} lies before step {reached}: {workdir} has reached it")
    return changed


def check_same(workdir: str, experiment: Experiment, corpus: dict[str, Any], init: str | None = None) -> None:
    """For each other process, once the first has begun or resumed the run. Raises ValueError where this one was started
    to do something else: together they would train on a mixture, or wait for each other.
    """
    if not (pathlib.Path(workdir) / "config.json").exists():
        raise ValueError(f"{workdir} does not hold the run of process 0: it must be one folder that all processes see")
    differences = _differences(read_run(workdir), experiment, corpus, init)
    if differences:
        differ = ", ".join(f"{name} is {there} there and {here} here" for name, (there, here) in differences.items())
        raise ValueError(f"process 0 was started with another command: {differ}")


def check_space(workdir: str, checkpoint_bytes: int) -> None:
    """Raises ValueError where the disk of `workdir` has no room for one more checkpoint."""
    folder = pathlib.Path(workdir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < checkpoint_bytes:
        raise ValueError(
            f"the disk of {workdir} has {free / 1e9:,.2f} GB left, and a checkpoint takes {checkpoint_bytes / 1e9:,.2f}"
        )


def describe_changes(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """What a launch changes in a run that has begun, in sentences for its user."""
    sentences = [f"{name} was {was} and is now {new}" for name, (was, new) in changed.items()]
    if "train.steps" in changed:
        sentences.append(
            "train.steps shapes the learning-rate curve: from here on it is that of the new length, "
            "so the run is not the one that this length would have given from its first step"
        )
    return sentences


def read_run(workdir: str) -> RunConfig:
    """Reads a run's config.json. Raises ValueError naming the file where there is none or it is not ours."""
    path = pathlib.Path(workdir) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{workdir} is not a run's directory: it has no config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or "experiment" not in values:
        raise ValueError(f"{path} is not a run's: it has no field 'experiment'")
    if values.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {values.get('format_version')}, expected {FORMAT_VERSION}")
    try:
        if not isinstance(values.get("corpus", {}), dict):
            raise ValueError(f"corpus is {values['corpus']!r}, expected its fields")
        return from_dict(RunConfig, values)
    except ValueError as error:
        raise ValueError(f"{path} was written by another version of flaxbert: {error}") from None


def _may_change(name: str, phases: int) -> bool:
    """Of phases: their microbatches, and where the last one ends."""
    own = re.fullmatch(r"phases\.\d+\.microbatches", name) is not None or name == f"phases.{phases - 1}.steps"
    return name in MAY_CHANGE or own


def _differences(
    old: RunConfig, experiment: Experiment, corpus: dict[str, Any], init: str | None
) -> dict[str, tuple[Any, Any]]:
    """What a launch has otherwise than a run: the old and the new value."""
    before, now = _settings(old.experiment, old.corpus, old.init), _settings(experiment, corpus, init)
    pairs = {name: (before.get(name), now.get(name)) for name in before | now}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _settings(experiment: Experiment, corpus: dict[str, Any], init: str | None) -> dict[str, Any]:
    """All that makes a run what it is: its settings by their full names, its corpus and what it began with."""
    facts = {f"corpus.{name}": corpus.get(name) for name in ("fingerprint", "tokenizer_fingerprint")}
    return flatten(dataclasses.asdict(experiment)) | facts | {"init": init}


def _forget_launch(folder: pathlib.Path) -> None:
    """Deletes what a launch that saved nothing has written of its run: another one may follow."""
    for name in ("metrics.jsonl", KEPT_ATTENTION):
        (folder / name).unlink(missing_ok=True)
    for name in ("tensorboard", STUDY):
        shutil.rmtree(folder / name, ignore_errors=True)


def _copy_tokenizer(folder: pathlib.Path, tokenizer_folder: str, fingerprint: str) -> None:
    """Copies the corpus's tokenizer into a new run. Raises before anything is written."""
    found = tokenizers.load(tokenizer_folder).fingerprint
    if found != fingerprint:
        raise ValueError(
            f"{tokenizer_folder} is not the corpus's tokenizer: its fingerprint is {found[:12]}, "
            f"expected {fingerprint[:12]}"
        )
    target = folder / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    copy_folder(pathlib.Path(tokenizer_folder), target)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """The revision of this source tree, `-dirty` where it has changes; None outside a checkout of it or without git."""
    source = pathlib.Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None  # installed: a repository around it would be the user's own
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
