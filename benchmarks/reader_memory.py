"""What memory does a reader take while training, and does it grow with the corpus?

    python -m benchmarks.reader_memory --corpus SMALL LARGE [--window-tokens N ...] [--output RESULT.json]

Each reader is a process of its own that draws batches until it has used three windows (or all of an epoch), from the
middle of an epoch on; its peak resident memory is compared with that of a process that has only imported what it needs.
Also: the seconds to the first batch from the start of an epoch and from 90 % of it.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from pathlib import Path
from typing import Any


def read(queue: Any, path: str, window_tokens: int, share: float, windows_to_use: int) -> None:
    """Puts {peak_megabytes, megabytes_before, windows, tokens, seconds_to_first_batch}."""
    from data_pipeline import DataConfig, Position, batches, open_corpus
    from data_pipeline.tensorflow_import import import_tensorflow
    from data_pipeline.windows import windows_of_epoch

    import_tensorflow()
    import pyarrow.parquet  # noqa: F401  what a reader needs in any case

    before = _peak_megabytes()
    corpus, config = open_corpus(path), DataConfig(window_tokens=window_tokens)
    windows = windows_of_epoch(corpus, config, "train", 0, 0)
    start = Position(0, int(len(windows) * share), 0)
    begin, first = time.perf_counter(), 0.0
    for number, (_, after) in enumerate(batches(corpus, config, batch_size=256, seed=0, position=start)):
        first = first or time.perf_counter() - begin
        used = (after.epoch - start.epoch) * len(windows) + after.window - start.window
        if used >= windows_to_use:
            break
    tokens = sum(block.tokens for block in corpus.blocks["train"])
    queue.put({
        "tokens": tokens, "windows": len(windows), "megabytes_before": before, "peak_megabytes": _peak_megabytes(),
        "seconds_to_first_batch": first,
    })  # fmt: skip


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(*arguments: Any) -> dict[str, float]:
    """Runs one reader in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=read, args=(queue, *arguments))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    if queue.empty():
        raise SystemExit(f"the reader {arguments} failed")
    result: dict[str, float] = queue.get()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, nargs="+", help="prepared corpora")
    parser.add_argument("--window-tokens", type=int, nargs="+", default=[1_000_000, 4_000_000, 16_000_000])
    parser.add_argument("--output", help="a JSON file for the results")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(f"{'window tokens':>14}{'corpus tokens':>16}{'windows':>9}{'peak MB':>9}{'of it the reader':>18}"
          f"{'first batch, s':>16}{'at 90 %':>9}")  # fmt: skip
    for window_tokens in options.window_tokens:
        for corpus in options.corpus:
            found = measure(corpus, window_tokens, 0.5, 3)
            starts = [measure(corpus, window_tokens, share, 0)["seconds_to_first_batch"] for share in (0.0, 0.9)]
            results.append({"window_tokens": window_tokens, **found, "start_seconds": starts})
            print(f"{window_tokens:>14,}{found['tokens']:>16,}{found['windows']:>9}{found['peak_megabytes']:>9.0f}"
                  f"{found['peak_megabytes'] - found['megabytes_before']:>18.0f}{starts[0]:>16.2f}{starts[1]:>9.2f}",
                  flush=True)  # fmt: skip
    if options.output:
        machine = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
        Path(options.output).write_text(json.dumps({"machine": machine, "readers": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
