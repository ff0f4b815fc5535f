"""The work of prepare as an Apache Beam pipeline, an element a shard: on this machine, or on a cluster of any runner.

Whoever runs an element reads the sources and the tokenizer and writes the shard by their paths, so the output folder,
and sources that are not URLs, have to lie where all workers see them under the same name. Records come back as files
of that folder, not through the runner: a run that was killed goes on, with whatever engine, from what is there.
"""

import contextlib
import functools
import io
import os
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any, Callable, Sequence

from data_pipeline.shards import ShardJob, Work
from data_pipeline.unfinished import Unfinished
from data_pipeline.whole_files import write_json
from data_pipeline.work_folder import read_json

# A runner may start elements in several threads of one process; a tokenizer serves one, and so does the interpreter.
_one_at_a_time = threading.Lock()


def check(flags: Sequence[str]) -> None:
    """Raises ValueError if Beam is missing, or does not understand its flags."""
    _options(flags)


def run_shards(
    work: Work, jobs: Sequence[ShardJob], show: Callable[[int], None], flags: Sequence[str]
) -> list[dict[str, Any]]:
    """Does the work for each job and returns the records in order. `show` is told the bytes of all at the end."""
    if not jobs:
        return []
    import apache_beam as beam

    # Of this run alone: a worker that outlives a killed one may still report to it.
    failure = jobs[0].record.parent / f"failure-{uuid.uuid4().hex[:12]}.json"
    pipeline = beam.Pipeline(options=_options(flags))
    elements = pipeline | "shards" >> beam.Create([pickle.dumps((work, job)) for job in jobs])
    elements | "work" >> beam.Map(functools.partial(_run_element, failure=str(failure)))
    try:
        result = pipeline.run()
        state = result.wait_until_finish() or result.state
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Unfinished(f"the Beam pipeline failed, the same command goes on from there: {reason[-500:]}") from error
    _raise_failure(failure)
    if state != "DONE":
        raise Unfinished(f"the Beam pipeline ended as {state}: the same command goes on from there")
    show(sum(part.size for job in jobs for part in job.ranges))
    return [_record(job) for job in jobs]


def _options(flags: Sequence[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--engine beam needs Apache Beam: pip install 'flaxbert[beam]'") from None
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            options = PipelineOptions(list(flags))
            options.get_all_options()
    except SystemExit:
        reason = page.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"Beam does not understand the flags after --: {reason}") from None
    return options


def _run_element(element: bytes, failure: str) -> None:
    """A failure is written down and ends the other elements: raised, a runner would try again and print its stack."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work, job = pickle.loads(element)
    with _one_at_a_time:
        if os.path.exists(failure):
            return
        try:
            work(job, lambda count: None)
        except ValueError as error:
            write_json(Path(failure), {"sentence": str(error), "unfinished": isinstance(error, Unfinished)})


def _raise_failure(path: Path) -> None:
    failure = read_json(path)
    if failure is not None:
        path.unlink()
        raise (Unfinished if failure["unfinished"] else ValueError)(failure["sentence"])


def _record(job: ShardJob) -> dict[str, Any]:
    record = read_json(job.record)
    if record is None:
        raise Unfinished(f"a Beam worker left no record {job.record}: do all workers see {job.folder} under that name?")
    return record
