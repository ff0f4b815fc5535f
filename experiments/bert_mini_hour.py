"""BERT-mini in about an hour on two CPU cores, from some 60 MB of text: past the bend of the curve.

flaxbert prepare TEXT --output CORPUS --vocab-size 8000
flaxbert pretrain bert_mini_hour --corpus CORPUS --workdir RUN

A model first learns frequencies, then which words share a text, and then, at a bend of the curve, to look at the
neighbours of a masked word. At length 64 that bend had not come after six million tokens: each neighbour is one of many
words that attention, uniform at first, cannot tell apart. At length 16 it comes after some 400 steps, less than a
million tokens, and what was learnt there survives each doubling of the length, within 300 to 500 steps while the rate
is high: a doubling at a third of the rate took 1,900. So the length is whole after a ninth of the run. The rate is what
256 dimensions bear: at 2e-3 queries and keys drift, and attention falls onto single tokens before it has learnt places.
The other devices are those of `quickstart`. What the run reached stands in benchmarks/results.

The hour is one of cores that multiply bfloat16 (AVX512-BF16 or AMX), 1.7 times as fast so; on others
`--train.compute-dtype float32`, and fewer `--train.steps`.
"""

import dataclasses

from flaxbert.config import PRESETS, DataConfig, Experiment, OptimizerConfig, TrainConfig
from flaxbert.phases import Phase

EXPERIMENT = Experiment(
    model=dataclasses.replace(
        PRESETS["mini"], max_length=128, dropout=0.0, attention_dropout=0.0, initializer_range=0.04,
    ),
    data=DataConfig(sequence_length=16, pairing="nsp-balanced", mask_rate=0.2, packing=2),
    optimizer=OptimizerConfig(learning_rate=9e-4, warmup_steps=150, b2=0.99, epsilon=1e-9),
    train=TrainConfig(
        steps=26_000, batch_size=128, compute_dtype="bfloat16", log_every=100, eval_every=2000, eval_batches=30,
        checkpoint_every=2000,
    ),
    phases=(
        Phase(steps=1000),
        Phase(sequence_length=32, batch_size=64, steps=800),
        Phase(sequence_length=64, batch_size=32, steps=1200),
        Phase(sequence_length=128, batch_size=16),
    ),
)  # fmt: skip
