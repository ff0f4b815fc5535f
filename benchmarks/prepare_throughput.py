"""How fast is prepare beside the bare tokenizer and other ways to prepare, how does it grow with workers, and what
memory does it take?

    python -m benchmarks.prepare_throughput --input FILE [--tokenizer PATH] [--rounds N] [--peers] [--output RESULT]

The bare tokenizer is `SentencePieceProcessor.encode` on one thread, given the same sentences already split and
normalised, ids as lists of ints. It and prepare with 1 and 2 workers take turns; medians are compared. Each measurement
runs in a process of its own. MB are 10^6 bytes of the source text. MB per second of processor time, of all processes
together, say what MB per second would be on a machine with nothing else to do.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_BATCH = 1000


def bare(source: str, tokenizer: str) -> dict[str, float]:
    """Seconds of the bare tokenizer. The sentences are made in batches of 20 MB outside the clock."""
    from sentencepiece import SentencePieceProcessor

    from data_pipeline.normalization import normalize
    from data_pipeline.sentences import sentence_splitter

    split = sentence_splitter("split", "en")
    processor = SentencePieceProcessor(model_file=os.path.join(tokenizer, "sentencepiece.model"))
    lines = Path(source).read_text(encoding="utf-8").split("\n")
    seconds, processor_seconds, tokens = 0.0, 0.0, 0
    for start in range(0, len(lines), 20_000):
        texts = [normalize(sentence, True) for line in lines[start:start + 20_000] for sentence in split(line)]
        begin, processor_begin = time.perf_counter(), time.process_time()
        for batch in range(0, len(texts), _BATCH):
            tokens += sum(map(len, processor.encode(texts[batch:batch + _BATCH], out_type=int, num_threads=1)))
        seconds += time.perf_counter() - begin
        processor_seconds += time.process_time() - processor_begin
    return {"seconds": seconds, "processor_seconds": processor_seconds, "tokens": tokens}


def prepared(source: str, tokenizer: str, workers: int) -> dict[str, float]:
    """Seconds of a whole prepare, from starting its processes to the manifest, and the peak memory of any process."""
    from data_pipeline.config import PrepareConfig
    from data_pipeline.prepare import prepare

    config = PrepareConfig(tokenizer=tokenizer, shard_megabytes=8.0)
    peaks: dict[int, int] = {}
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(peaks, finished))
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        begin, processor_begin = time.perf_counter(), _processor_seconds()
        summary = prepare(config, [source], os.path.join(folder, "corpus"), workers, progress=False)
        seconds, processor_seconds = time.perf_counter() - begin, _processor_seconds() - processor_begin
    finished.set()
    watcher.join()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    counts = summary.manifest["counts"]
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "tokens": counts["train"]["tokens"] + counts["validation"]["tokens"],
        "peak_megabytes": max(own, children) * 1024 / 1e6,
        "peak_megabytes_of_all": sum(peaks.values()) / 1e6,
    }


def mapped(source: str, tokenizer: str, processes: int) -> dict[str, float]:
    """Seconds of `datasets`: text file → token ids in Arrow files."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        begin, processor_begin = time.perf_counter(), _processor_seconds()
        lines = datasets.load_dataset("text", data_files=source, split="train", cache_dir=folder)
        rows = lines.map(
            lambda batch: fast(batch["text"], return_attention_mask=False), batched=True, num_proc=processes,
            remove_columns=["text"],
        )  # fmt: skip
        seconds, processor_seconds = time.perf_counter() - begin, _processor_seconds() - processor_begin
        tokens = sum(len(ids) for ids in rows.select(range(100))["input_ids"])
    assert tokens, "nothing was tokenised"
    return {"seconds": seconds, "processor_seconds": processor_seconds, "tokens": 0}


def reference(source: str, vocabulary: str) -> dict[str, float]:
    """Seconds of the reference's script: sentences, one a line → TFRecords of masked pairs of 128 tokens."""
    program = (
        "import sys, runpy, tensorflow.compat.v1 as tf; sys.modules['tensorflow'] = tf; "
        "import bert.tokenization as tokenization; sys.modules['tokenization'] = tokenization; "
        "runpy.run_module('bert.create_pretraining_data', run_name='__main__', alter_sys=True)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-c", program, f"--input_file={source}", f"--output_file={folder}/examples",
            f"--vocab_file={vocabulary}", "--dupe_factor=1", "--max_predictions_per_seq=20",
        ]  # fmt: skip
        begin, processor_begin = time.perf_counter(), _processor_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, processor_seconds = time.perf_counter() - begin, _processor_seconds() - processor_begin
        if done.returncode or not os.path.getsize(f"{folder}/examples"):
            raise SystemExit(f"the reference's script failed: {done.stderr[-2000:]}")
    return {"seconds": seconds, "processor_seconds": processor_seconds, "tokens": 0}


def reference_input(source: str, folder: str) -> tuple[str, str]:
    """(the first 2 MB as sentences, one a line; a WordPiece vocabulary)."""
    from data_pipeline.sentences import sentence_splitter
    from data_pipeline.tokenizer_training import train

    split = sentence_splitter("split", "en")
    with open(source, encoding="utf-8") as file:
        lines = file.read(2_000_000).split("\n")
    sentences = [sentence for line in lines for sentence in (split(line) if line.strip() else [""])]
    path = Path(folder, "sentences.txt")
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    train("wordpiece", [each for each in sentences if each], 16_000, lowercase=True).save(Path(folder, "wordpiece"))
    return str(path), str(Path(folder, "wordpiece", "vocab.txt"))


def _processor_seconds() -> float:
    """Of this process and the children that have ended."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def _watch(peaks: dict[int, int], finished: threading.Event) -> None:
    """Peak resident memory of this process and its children, where the system has /proc."""
    while not finished.wait(0.05):
        for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]:
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                continue
            found = [line for line in status.split("\n") if line.startswith("VmHWM")]
            if found:
                peaks[process] = int(found[0].split()[1]) * 1024


def _measure(queue: "multiprocessing.Queue[dict[str, float]]", function: str, arguments: tuple[object, ...]) -> None:
    queue.put(globals()[function](*arguments))
    queue.close()


def measure(function: str, *arguments: object) -> dict[str, float]:
    """Runs one measurement in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, function, arguments))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    if queue.empty():
        raise SystemExit(f"the measurement {function}{arguments} failed")
    result = queue.get()
    process.join()
    return result


def train_tokenizer(source: str, folder: str) -> str:
    """A unigram of 32,000 entries trained on the source: what a user's first run makes."""
    from data_pipeline.config import PrepareConfig
    from data_pipeline.sample import train_on_sample
    from data_pipeline.sources import find_sources, plan_shards

    train_on_sample(PrepareConfig(vocab_size=32_000), plan_shards(find_sources([source]), 16.0), Path(folder))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a plain text file")
    parser.add_argument("--tokenizer", help="a SentencePiece tokenizer folder; without it, one is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="compare with datasets and the reference's script too")
    parser.add_argument("--output", help="a JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = options.tokenizer or measure("train_tokenizer", options.input, os.path.join(folder, "tokenizer"))
        twice = os.path.join(folder, "twice.txt")
        text = Path(options.input).read_bytes().rstrip(b"\n")
        Path(twice).write_bytes(text + b"\n\n" + text + b"\n")
        contenders: dict[str, tuple[object, ...]] = {
            "bare tokenizer": ("bare", options.input, tokenizer),
            "prepare, 1 worker": ("prepared", options.input, tokenizer, 1),
            "prepare, 2 workers": ("prepared", options.input, tokenizer, 2),
            "prepare, 1 worker, text twice": ("prepared", twice, tokenizer, 1),
            "prepare, 2 workers, text twice": ("prepared", twice, tokenizer, 2),
        }
        if options.peers:
            contenders |= {
                "datasets, 1 process": ("mapped", options.input, tokenizer, 1),
                "datasets, 2 processes": ("mapped", options.input, tokenizer, 2),
                "reference's script": ("reference", *measure("reference_input", options.input, folder)),
            }
        results = run(contenders, options.rounds)
    report(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


def run(contenders: dict[str, tuple[object, ...]], rounds: int) -> dict[str, object]:
    """Alternates the contenders; MB/s and memory of every round, medians, ratios."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (function, *arguments) in contenders.items():
            result = measure(str(function), *arguments)
            size = os.path.getsize(str(arguments[0])) / 1e6
            result["megabytes_per_second"] = size / result["seconds"]
            result["megabytes_per_processor_second"] = size / result["processor_seconds"]
            found[name].append(result)
    speed, thrift = (
        {name: statistics.median(each[key] for each in found[name]) for name in contenders}
        for key in ("megabytes_per_second", "megabytes_per_processor_second")
    )
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}", "processors": os.cpu_count(),
            "python": platform.python_version(),
        },
        "input_megabytes": os.path.getsize(str(contenders["bare tokenizer"][1])) / 1e6,
        "rounds": found,
        "megabytes_per_second": speed,
        "megabytes_per_processor_second": thrift,
        "share_of_bare": speed["prepare, 1 worker"] / speed["bare tokenizer"],
        "two_workers_over_one": speed["prepare, 2 workers"] / speed["prepare, 1 worker"],
        "two_workers_over_one_text_twice": (
            speed["prepare, 2 workers, text twice"] / speed["prepare, 1 worker, text twice"]
        ),
    }


def report(results: dict[str, object]) -> None:
    """Prints the table."""
    print(f"{'':32}{'MB/s':>8}{'MB/s of processor':>20}{'tokens':>14}{'peak MB of any process':>26}")
    for name, rounds in results["rounds"].items():  # type: ignore[attr-defined]
        peak = max((each.get("peak_megabytes", 0) for each in rounds), default=0)
        speed = results["megabytes_per_second"][name]  # type: ignore[index]
        thrift = results["megabytes_per_processor_second"][name]  # type: ignore[index]
        print(f"{name:32}{speed:>8.2f}{thrift:>20.2f}{rounds[0]['tokens']:>14,}{f'{peak:.0f}' if peak else '':>26}")
    print(f"prepare with 1 worker runs at {results['share_of_bare']:.0%} of the bare tokenizer's speed")
    print(
        f"2 workers run at {results['two_workers_over_one']:.2f} times the speed of 1, "
        f"on the text twice {results['two_workers_over_one_text_twice']:.2f} times"
    )
    speed = results["megabytes_per_second"]
    for ours, peer in (("1 worker", "datasets, 1 process"), ("2 workers", "datasets, 2 processes"),
                       ("1 worker", "reference's script")):  # fmt: skip
        if peer in speed:  # type: ignore[operator]
            ratio = speed[f"prepare, {ours}"] / speed[peer]  # type: ignore[index]
            print(f"prepare with {ours} runs at {ratio:.1f} times the speed of {peer}")


if __name__ == "__main__":
    main()
