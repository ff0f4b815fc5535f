"""Raw text → a prepared corpus: plan, tokenizer, shards, manifest. The same command again goes on where it stopped."""

import dataclasses
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from data_pipeline import engines, python_docs, tokenizer_folder
from data_pipeline.config import PrepareConfig
from data_pipeline.digests import Totals, are_whole
from data_pipeline.duplicates import count_repeated, find_repeated
from data_pipeline.files import is_remote
from data_pipeline.progress import Progress, summary_lines
from data_pipeline.sample import train_on_sample
from data_pipeline.shards import COUNTS, ShardJob, Work, digest_shard, prepare_shard
from data_pipeline.sources import Range, Source, find_sources, identity, plan_shards
from data_pipeline.store import MANIFEST, SPLITS, TOKENIZER_FOLDER, open_corpus, write_manifest
from data_pipeline.tokenizer import Tokenizer, load
from data_pipeline.whole_files import canonical_digest, file_digest, write_json
from data_pipeline.work_folder import SAMPLE, check_same, read_json, remove_leftovers, work_folder

_VERSIONED = ("numpy", "pyarrow", "sentencepiece", "sentencex", "tokenizers")


class Summary(NamedTuple):
    """What prepare did. `manifest` is dataset.json; `seconds` and `megabytes` (10^6 bytes of source, as stored) count
    this run alone; `finished_before` says that there was nothing to do."""

    path: Path
    manifest: dict[str, Any]
    seconds: float
    megabytes: float
    finished_before: bool


class _Plan(NamedTuple):
    """What defines the content of the corpus: settings and sources; and the tokenizer, if one is loaded."""

    settings: dict[str, Any]
    files: list[dict[str, Any]]
    tokenizer: Tokenizer | None

    def state(self) -> dict[str, Any]:
        return {"settings": self.settings, "source": {"fingerprint": canonical_digest(self.files), "files": self.files}}


def prepare(
    config: PrepareConfig, inputs: list[str], output: str, workers: int | None = None, progress: bool = True,
    engine: str = "local", beam_flags: Sequence[str] = (),
) -> Summary:
    """Prepares a corpus from files, folders, globs, URLs and TFDS splits, or `python-docs`, into the folder `output`.

    Runs `workers` processes (None: one per processor), or with `engine="beam"` the Beam runner that beam_flags name;
    what they write does not depend on it. Prints its progress and a summary if asked to. Raises ValueError, in one
    sentence, for whatever a user can cause.
    """
    if is_remote(output):
        raise ValueError(f"output {output} is a URL: expected a local folder")
    begin = time.monotonic()
    chosen, folder = engines.choose(engine, workers, beam_flags), Path(output)
    sources = _sources(inputs, config.text_field, folder)
    plan = _plan(config, sources, folder)
    size = None
    if not (folder / MANIFEST).exists():
        with work_folder(folder, plan.state()) as work:
            if work is not None:
                size = _run(config, plan, sources, work, chosen, Progress(progress))
    manifest = open_corpus(folder).manifest
    check_same(f"{folder} holds a corpus", manifest, plan.state())
    if size is None:
        remove_leftovers(folder)
    summary = Summary(folder, manifest, time.monotonic() - begin, (size or 0) / 1e6, size is None)
    if progress:
        print("\n".join(summary_lines(summary)))
    return summary


def _sources(inputs: list[str], text_field: str, folder: Path) -> list[Source]:
    """The files in order. The text of `python-docs` is one that is written into the output folder."""
    sources: list[Source] = []
    for name in dict.fromkeys(inputs):
        if name == python_docs.NAME and not Path(name).exists():
            sources.append(Source(str(folder / python_docs.FILE), "text", 0, 0))
        else:
            sources += find_sources([name], text_field, left_out=str(folder))
    unique = {identity(source): source for source in sources}
    if not unique:
        raise ValueError("no input is given: expected files, folders, globs or python-docs")
    return list(unique.values())


def _plan(config: PrepareConfig, sources: list[Source], folder: Path) -> _Plan:
    settings, tokenizer = dataclasses.asdict(config), None
    if config.tokenizer not in ("sentencepiece", "wordpiece"):
        tokenizer = load(config.tokenizer, config.lowercase)
        settings |= {
            "tokenizer": f"loaded, fingerprint {tokenizer.fingerprint}",
            "vocab_size": tokenizer.vocab_size,
            "lowercase": tokenizer.lowercase,
        }
    return _Plan(settings, [_source_record(source, folder) for source in sources], tokenizer)


def _source_record(source: Source, folder: Path) -> dict[str, Any]:
    """By name, size and time of change: reading terabytes to learn that nothing changed would not do."""
    if source.path == str(folder / python_docs.FILE):
        return {"name": python_docs.NAME, "packages": python_docs.versions()}
    name = source.path
    if source.format != "tfds":
        name = Path(name.partition("?")[0] if is_remote(name) else name).name  # a signed URL changes by itself
    return {"name": name, "bytes": source.size, "modified": source.modified}


def _run(
    config: PrepareConfig, plan: _Plan, sources: list[Source], work: Path, engine: engines.Engine, progress: Progress
) -> int:
    """Does what is left to do. Returns the bytes of source it read."""
    folder = work.parent
    shards = plan_shards([_gathered(source, folder, progress) for source in sources], config.shard_megabytes)
    if not shards:
        raise ValueError(_empty(sources))
    sample = _make_tokenizer(config, plan, shards, work, engine, progress)
    fingerprint = load(folder / TOKENIZER_FOLDER).fingerprint
    jobs = [
        ShardJob(index, len(shards), ranges, config, folder, fingerprint, work / f"shard-{index:05d}.json")
        for index, ranges in enumerate(shards)
    ]
    if config.drop_duplicates != "none":
        digested = [job._replace(record=work / f"digests-{job.number:05d}.json") for job in jobs]
        listed = _records(engine, digest_shard, digested, progress, "reading for duplicates")[0]
        with progress.waiting("comparing"):
            repeated = find_repeated(work, _totals(listed), config.drop_duplicates)
        jobs = [job._replace(repeated=each) for job, each in zip(jobs, repeated)]
    records, size = _records(engine, prepare_shard, jobs, progress, "preparing")
    with progress.waiting("counting duplicates"):
        duplicates = count_repeated(work, _totals(records if config.drop_duplicates == "none" else listed))
    manifest = _manifest(plan, records, load(folder / TOKENIZER_FOLDER), sample, duplicates)
    if manifest["counts"]["train"]["documents"] + manifest["counts"]["validation"]["documents"] == 0:
        raise ValueError(_empty(sources))
    write_manifest(folder, manifest)
    return size


def _records(
    engine: engines.Engine, work: Work, jobs: list[ShardJob], progress: Progress, doing: str
) -> tuple[list[dict[str, Any]], int]:
    """The records of all jobs, done now or by an earlier run, and the bytes of source that were read for them now."""
    records = {job.number: record for job in jobs if (record := _whole(job)) is not None}
    left = [job for job in jobs if job.number not in records]
    sizes = {job.number: sum(part.size for part in job.ranges) for job in jobs}
    size = sum(sizes[job.number] for job in left)
    with progress.bytes(doing, sum(sizes.values()), done=sum(sizes.values()) - size) as show:
        made = engine.run_shards(work, left, show)
    records |= {job.number: record for job, record in zip(left, made)}
    return [records[job.number] for job in jobs], size


def _totals(records: list[dict[str, Any]]) -> list[Totals]:
    return [Totals(*record["digests"]) for record in records]


def _empty(sources: list[Source]) -> str:
    names = sources[0].path if len(sources) == 1 else f"the {len(sources)} files from {sources[0].path} on"
    return f"the corpus is empty: {names} hold{'s' if len(sources) == 1 else ''} no text"


def _gathered(source: Source, folder: Path, progress: Progress) -> Source:
    if source.path != str(folder / python_docs.FILE):
        return source
    path = Path(source.path)
    if not path.exists():
        with progress.waiting("gathering the English prose of Python's documentation"):
            python_docs.write(path)
    return source._replace(size=path.stat().st_size)


def _make_tokenizer(
    config: PrepareConfig, plan: _Plan, shards: list[tuple[Range, ...]], work: Path, engine: engines.Engine,
    progress: Progress,
) -> dict[str, Any] | None:
    """Puts the tokenizer into the folder unless it is there. Returns what it was trained on, None if it was loaded."""
    target, note = work.parent / TOKENIZER_FOLDER, work / SAMPLE
    if plan.tokenizer is not None:
        plan.tokenizer.save(target)
        return None
    if (target / tokenizer_folder.INFO).is_file() and note.is_file():
        return json.loads(note.read_bytes())
    with progress.waiting(f"training a {config.tokenizer} tokenizer of {config.vocab_size} entries"):
        sample = engine.run_alone(train_on_sample, config, shards, target)
    write_json(note, sample)
    return sample


def _whole(job: ShardJob) -> dict[str, Any] | None:
    """The record of a shard that an earlier run finished, if its files are what it says."""
    record = read_json(job.record)
    if record is None:
        return None
    if "digests" in record and not are_whole(job.record.parent, job.number, Totals(*record["digests"])):
        return None
    for shard in record.get("shards", {}).values():
        path = job.folder / shard["name"]
        if not path.is_file() or file_digest(path) != shard["sha256"]:
            return None
    return record


def _manifest(
    plan: _Plan, records: list[dict[str, Any]], tokenizer: Tokenizer, sample: dict[str, Any] | None,
    duplicates: dict[str, dict[str, int]],
) -> dict[str, Any]:
    names = ("kind", "fingerprint", "vocab_size", "pad_id", "unknown_id", "cls_id", "sep_id", "mask_id")
    totals = {
        split: {name: sum(record["counts"][split][name] for record in records) for name in COUNTS} for split in SPLITS
    }
    return {
        "tokenizer": {**{name: getattr(tokenizer, name) for name in names}, "trained_on": sample},
        "counts": totals,
        **{name: sum(record[name] for record in records) for name in ("replaced", "cut_documents", "blank_documents")},
        "duplicates": duplicates,
        "shards": {split: [record["shards"][split] for record in records] for split in SPLITS},
        **plan.state(),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
    }
