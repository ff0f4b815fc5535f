"""Writes the batches that `python -m benchmarks.train_step` uses: rows of our own stream, in one small file.

    python -m benchmarks.make_batches --corpus CORPUS --output batches.npz [--lengths 128 512] [--packing 1 8]
        [--tokens N] [--seed N]

For each length and packing the file has the stream's first rows, N tokens of them with their padding. Any batch size
finds its batches there: the stream's rows are the same whatever the size. The file serves where there is no corpus, and
neither TensorFlow nor pyarrow to read one.
"""

import argparse
import dataclasses
import itertools
import os
from typing import Any

import numpy as np

from benchmarks.train_step import batch_file


def stream_rows(corpus: Any, length: int, packing: int, tokens: int, seed: int) -> tuple[batch_file.Batch, Any]:
    """(the stream's first rows, as one batch; the settings that they were drawn with)."""
    from data_pipeline import DataConfig, batches

    config = DataConfig(sequence_length=length, packing=packing)
    stream = batches(corpus, config, batch_size=max(1, tokens // length), seed=seed)
    batch, _ = next(stream)
    return batch, config


def describe(batch: batch_file.Batch, config: Any) -> dict[str, Any]:
    """What is in the rows of one shape."""
    used = batch["sequence_ids"] > 0
    return {
        "rows": len(used), "full_rows": int(used.all(axis=1).sum()), "fill": float(used.mean()),
        "sequences": int(batch["sequence_ids"].max(axis=1).sum()), "data": dataclasses.asdict(config),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    from data_pipeline import open_corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a prepared corpus")
    parser.add_argument("--output", required=True, help="the file to write, .npz")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--packing", type=int, nargs="+", default=[1, 8], help="most sequences to a row")
    parser.add_argument("--tokens", type=int, default=1 << 19, help="of each shape, padding included")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    corpus = open_corpus(options.corpus)
    rows, shapes = {}, {}
    for length, packing in itertools.product(options.lengths, options.packing):
        name = batch_file.shape_name(length, packing)
        batch, config = stream_rows(corpus, length, packing, options.tokens, options.seed)
        rows[name], shapes[name] = {key: np.array(array) for key, array in batch.items()}, describe(batch, config)
    metadata = {
        "vocab_size": corpus.vocab_size, "corpus": corpus.fingerprint, "seed": options.seed, "shapes": shapes,
    }  # fmt: skip
    batch_file.write(options.output, rows, metadata)
    for name, shape in shapes.items():
        print(f"{name:>8}{shape['rows']:>8,} rows, {shape['full_rows']:,} of them full, fill {shape['fill']:.1%}")
    print(f"{options.output}: {os.path.getsize(options.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
