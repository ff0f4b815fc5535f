"""What is timed: a model, the rows that it sees, and the settings that all contenders share."""

import dataclasses
from typing import Literal

import numpy as np

from benchmarks.train_step import batch_file
from data_pipeline.config import DataConfig
from flaxbert.config import PRESETS, Experiment, OptimizerConfig, TrainConfig

Attention = Literal["auto", "xla", "fused", "splash", "cudnn"]

LEARNING_RATE = 1e-4
BATCHES = 8  # distinct ones at most, used in turn

PRODUCT_SIZE = {"cpu": 2_048, "gpu": 8_192}  # of a square one, for the machine's own speed
PRODUCTS = {"cpu": 2, "gpu": 20}  # in one measurement

# Rows times length of a step. On a GPU the optimizer's milliseconds do not shrink with the batch: below 32k tokens they
# are no longer small beside the products.
_GPU_TOKENS, _CPU_TOKENS = 32_768, {"base": 1_024, "large": 512}
_SMALL_MODEL_CPU_TOKENS = 4_096


@dataclasses.dataclass(frozen=True)
class Case:
    """One model at one length."""

    name: str
    """`base-128`."""
    experiment: Experiment
    batches: str
    """The file of `python -m benchmarks.make_batches`."""
    full_rows: bool
    """Only rows without padding, for which torch needs no attention mask."""
    device: str
    """`cpu` or `gpu`."""
    cores: int
    """Of the processor, for each contender in its turn; on a GPU the system shares them out."""
    compile_mode: str
    """Of `torch.compile`."""


def default_batch_size(preset: str, length: int, device: str) -> int:
    """Rows of a step."""
    tokens = _GPU_TOKENS if device == "gpu" else _CPU_TOKENS.get(preset, _SMALL_MODEL_CPU_TOKENS)
    return max(1, tokens // length)


def make_experiment(
    name: str, batches: str, vocab_size: int | None, batch_size: int | None, dropout: float | None, device: str,
    compute_dtype: Literal["float32", "bfloat16"] | None = None, attention: Attention = "auto",
    attention_dropout: float | None = None,
) -> Experiment:
    """The experiment of a case such as `base-128`, its rows as wide as those of the file; up to eight sequences share a
    row of `base-128x8`.

    Ours runs `adamw` with a constant rate, which is torch's AdamW. Raises ValueError for a case that cannot be run.
    """
    preset, _, shape = name.rpartition("-")
    length, _, packing = shape.partition("x")
    if preset not in PRESETS or not (length + packing).isdecimal():
        raise ValueError(f"case {name} is not one of {', '.join(PRESETS)} and a length, such as base-128 or base-128x8")
    rows = batch_file.read(batches, shape)
    found = batch_file.read_metadata(batches)["vocab_size"]
    if vocab_size is not None and vocab_size < found:
        raise ValueError(f"--vocab-size {vocab_size} is less than that of {batches}, {found}")
    model = dataclasses.replace(
        PRESETS[preset], vocab_size=vocab_size or found, max_length=max(int(length), PRESETS[preset].max_length)
    )
    of_attention = dropout if attention_dropout is None else attention_dropout
    if dropout is not None:
        model = dataclasses.replace(model, dropout=dropout)
    if of_attention is not None:
        model = dataclasses.replace(model, attention_dropout=of_attention)
    return Experiment(
        model=model,
        data=DataConfig(
            sequence_length=int(length), packing=int(packing or 1), max_predictions=rows["masked_ids"].shape[1]
        ),
        optimizer=OptimizerConfig("adamw", learning_rate=LEARNING_RATE, warmup_steps=0, final_fraction=1.0),
        train=TrainConfig(
            batch_size=batch_size or default_batch_size(preset, int(length), device),
            compute_dtype=compute_dtype or ("bfloat16" if device == "gpu" else "float32"), attention=attention,
        ),
    )


def without_dropout(case: Case) -> Case:
    """The same case at a rate of 0."""
    model = dataclasses.replace(case.experiment.model, dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(case, experiment=dataclasses.replace(case.experiment, model=model))


def product_factors(case: Case) -> list[np.ndarray]:
    """Two matrices for the machine's own speed. Zeros are multiplied faster: they take less power."""
    size, generator = PRODUCT_SIZE[case.device], np.random.default_rng(0)
    return [generator.standard_normal((size, size), np.float32) for _ in range(2)]


def batches_of(case: Case) -> list[batch_file.Batch]:
    """The batches of a case, in the order in which every contender uses them. Raises ValueError where there is none."""
    data = case.experiment.data
    rows = batch_file.read(case.batches, batch_file.shape_name(data.sequence_length, data.packing))
    chosen = np.arange(len(rows["input_ids"]))
    if case.full_rows:
        chosen = np.flatnonzero((rows["sequence_ids"] > 0).all(axis=1))
    size = case.experiment.train.batch_size
    if len(chosen) < size:
        kind = "rows without padding" if case.full_rows else "rows"
        raise ValueError(f"case {case.name}: a batch of {size} is more than the {len(chosen)} {kind} of {case.batches}")
    starts = range(0, min(len(chosen) // size, BATCHES) * size, size)
    return [{key: array[chosen[start:start + size]] for key, array in rows.items()} for start in starts]
