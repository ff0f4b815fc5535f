"""How many sequences a second does the stream give, beside transformers' collator on the same tokens?

    python -m benchmarks.stream_throughput --corpus CORPUS [--seconds T] [--rounds N] [--output RESULT.json]

The peer is `DataCollatorForLanguageModeling` behind a torch `DataLoader` over a tokenised `datasets` data set, its
tokens those of CORPUS in rows of the same length with `special_tokens_mask`, as transformers' run_mlm.py makes them; it
is run with the data set's rows as lists (the form of run_mlm.py) and as torch tensors. The peer draws no pairs. Ours is
the whole stream: reading, pairing, packing, gathering, masking and tf.data. Contenders take turns, each in a process of
its own that is bound to one core, then to two, with as many workers; medians of sequences per second are compared.
Packed rows count the sequences in them. Needs the extra `bench`.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH_SIZE = 256
LENGTHS = (128, 512)


def ours(corpus: str, length: int, cores: int, packing: int, masking: str) -> Iterator[int]:
    """Sequences in each batch of the stream."""
    from data_pipeline import DataConfig, batches, open_corpus

    config = DataConfig(sequence_length=length, packing=packing, masking=masking, workers=cores)  # type: ignore
    for batch, _ in batches(open_corpus(corpus), config, batch_size=BATCH_SIZE, seed=0):
        yield int(batch["next_sentence_weights"].sum())  # each sequence has a label


def collator(folder: str, length: int, cores: int, form: str) -> Iterator[int]:
    """Sequences in each batch of the collator."""
    import datasets
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    torch.set_num_threads(1)
    rows = datasets.load_from_disk(os.path.join(folder, f"rows-{length}"))
    if form == "torch":
        rows = rows.with_format("torch")
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, "tokenizer"))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    while True:
        workers = 0 if cores == 1 else cores
        loader = torch.utils.data.DataLoader(
            rows, batch_size=BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate, num_workers=workers
        )
        for batch in loader:
            yield len(batch["input_ids"])


def write_rows(corpus: str, folder: str) -> None:
    """The corpus's tokens as data sets of rows [CLS] … [SEP] of each length."""
    import shutil

    import datasets
    import numpy as np

    from data_pipeline import open_corpus
    from data_pipeline.store import join, read_block

    opened = open_corpus(corpus)
    tokens = join([read_block(opened, block) for block in opened.blocks["train"]]).tokens
    shutil.copytree(opened.path / "tokenizer", os.path.join(folder, "tokenizer"))
    for length in LENGTHS:
        count = len(tokens) // (length - 2)
        ids = np.empty((count, length), np.int32)
        ids[:, 0], ids[:, -1] = opened.cls_id, opened.sep_id
        ids[:, 1:-1] = tokens[:count * (length - 2)].reshape(count, -1)
        special = np.zeros((count, length), np.int8)
        special[:, [0, -1]] = 1
        there = np.ones_like(special)
        columns: dict[str, Any] = {"input_ids": ids, "attention_mask": there, "special_tokens_mask": special}
        rows = datasets.Dataset.from_dict({name: list(array) for name, array in columns.items()})
        rows.save_to_disk(os.path.join(folder, f"rows-{length}"))


CONTENDERS = {
    "flaxbert, token": ("ours", 1, "token"),
    "flaxbert, token, packed": ("ours", 16, "token"),
    "flaxbert, whole word": ("ours", 1, "whole-word"),
    "flaxbert, whole word, packed": ("ours", 16, "whole-word"),
    "flaxbert, span": ("ours", 1, "span"),
    "collator, lists": ("collator", "lists"),
    "collator, tensors": ("collator", "torch"),
}


def _measure(queue: Any, kind: str, source: str, length: int, cores: int, seconds: float, settings: tuple[Any, ...]
             ) -> None:  # fmt: skip
    os.sched_setaffinity(0, set(itertools.islice(sorted(os.sched_getaffinity(0)), cores)))
    counts = globals()[kind](source, length, cores, *settings)
    warm = time.perf_counter() + max(1.0, seconds / 4)
    for _ in counts:
        if time.perf_counter() > warm:
            break
    sequences, begin, processor = 0, time.perf_counter(), time.process_time()
    for count in counts:
        sequences += count
        if time.perf_counter() - begin > seconds:
            break
    wall = time.perf_counter() - begin
    queue.put({"sequences_per_second": sequences / wall, "processor_share": (time.process_time() - processor) / wall})
    queue.close()
    queue.join_thread()
    os._exit(0)


def measure(*arguments: Any) -> dict[str, float]:
    """Runs one measurement in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the measurement {arguments} failed")
    result: dict[str, float] = queue.get()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a prepared corpus")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--cores", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), help="contenders to run")
    parser.add_argument("--output", help="a JSON file for the results")
    options = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_rows(options.corpus, folder)
        for _ in range(options.rounds):
            for length, cores, name in itertools.product(options.lengths, options.cores, options.only):
                kind, *settings = CONTENDERS[name]
                source = options.corpus if kind == "ours" else folder
                result = measure(kind, source, length, cores, options.seconds, tuple(settings))
                found.setdefault(f"{length}, {cores} core(s)", {}).setdefault(name, []).append(result)
    results = {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}", "processors": os.cpu_count(),
            "python": platform.python_version(),
        },
        "batch_size": BATCH_SIZE,
        "rounds": found,
        "sequences_per_second": {
            where: {name: statistics.median(each["sequences_per_second"] for each in runs) for name, runs in by.items()}
            for where, by in found.items()
        },
    }
    report(results["sequences_per_second"])
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=1) + "\n")


def report(medians: Any) -> None:
    """Prints sequences a second, and ours as a multiple of the faster form of the peer."""
    for where, speeds in medians.items():
        print(f"\nlength {where:30}{'sequences/s':>14}{'of the collator':>18}")
        peers = [speed for name, speed in speeds.items() if name in ("collator, lists", "collator, tensors")]
        for name, speed in speeds.items():
            print(f"{name:37}{speed:>14,.0f}{f'{speed / max(peers):.1f}' if peers else '':>18}")


if __name__ == "__main__":
    main()
