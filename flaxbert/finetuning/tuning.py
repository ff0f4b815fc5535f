"""One run of fine-tuning: a pretrained encoder, a new output layer, a few passes over the training examples."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.batching import batches, bucket_lengths, steps_per_epoch
from flaxbert.finetuning.encoding import encode
from flaxbert.finetuning.features import Feature
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.objective import ARCHITECTURE, TAGGER, output_count
from flaxbert.finetuning.predictions import place_logits
from flaxbert.finetuning.step import TuningFunctions
from flaxbert.finetuning.tasks import Task
from flaxbert.interop.architectures import ENCODER_ALONE, Checkpoint
from flaxbert.interop.initialization import completed
from flaxbert.model.finetuning import initialize_bilstm
from flaxbert.training.schedule import learning_rate_schedule

_OF_THE_OUTPUT_LAYER = ("problem_type", "classifier_dropout")  # fields of config.json: another one's say nothing here

PREDICTION_ROWS = 64  # in a batch of prediction; the answers do not depend on it


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of the grid that is searched."""

    learning_rate: float
    """The peak; reached after the warm-up, then it falls linearly to zero."""
    batch_size: int
    epochs: int
    seed: int
    """Of the output layer, the order of examples and dropout."""

    @property
    def described(self) -> str:
        """For a person."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"learning rate {self.learning_rate!r}, batch {self.batch_size}, {epochs}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Of its files."""
        # The shortest digits that are this rate and no other one: two of a fine grid must not share a file.
        return f"lr{self.learning_rate!r}-batch{self.batch_size}-epochs{self.epochs}-seed{self.seed}"


class Split(NamedTuple):
    """Examples of a task and what the model reads of them."""

    examples: Examples
    features: list[Feature]


class Found(NamedTuple):
    """What a run of fine-tuning came to."""

    params: Any
    loss: float
    """Mean of the last epoch's batches; where it is not finite, training ended there."""
    steps: int
    seconds: float
    """Of training alone, compilation included."""
    examples_per_second: float
    """Over the steps whose shape was compiled before; NaN where there is none."""


def read_split(examples: Examples, task: Task, tokenizer: Any, max_length: int) -> Split:
    """Encodes the examples of one file."""
    return Split(examples, encode(examples, task, tokenizer, max_length))


def begin(
    pretrained: Checkpoint, task: Task, labels: Sequence[str], seed: int, fresh: bool, bilstm_layers: int = 0
) -> Checkpoint:  # fmt: skip
    """The model before its first step: the encoder, and a new output layer; all of it new where `fresh`. With a BiLSTM
    over so many layers it is a BertModel, and `TAGGER` stands beside its parts.
    """
    width = output_count(task.kind, len(labels))
    names = tuple(labels) if task.kind in ("classification", "tagging") else tuple(map(str, range(width)))
    params = {name: part for name, part in pretrained.params.items() if name in ("encoder", "pooler")}
    kept = {name: value for name, value in pretrained.kept.items() if name not in _OF_THE_OUTPUT_LAYER}
    whole = pretrained._replace(params={} if fresh else params, labels=names, kept=kept)
    if not bilstm_layers:
        return completed(whole, ARCHITECTURE[task.kind], seed)[0]
    found, _ = completed(whole, ENCODER_ALONE, seed)
    tagger = initialize_bilstm(pretrained.config, width, bilstm_layers, jax.random.key(seed))
    return found._replace(params=found.params | {TAGGER: jax.tree.map(np.asarray, tagger)})


def learning_rates(peak: float, steps: int, task: Task) -> np.ndarray:
    """The rate of each step [steps]: the reference's curve, whose decay is measured from step 0 (run_classifier.py)."""
    config = OptimizerConfig(learning_rate=peak, warmup_steps=int(steps * task.warmup_share))
    return np.asarray(jax.vmap(learning_rate_schedule(config, steps))(np.arange(steps)))


def fine_tune(
    cell: Cell, start: Checkpoint, train: list[Feature], task: Task, functions: TuningFunctions,
    stopped: Callable[[], None] = lambda: None, told: Callable[[int, int, float], None] = lambda *_: None,
) -> Found:  # fmt: skip
    """Trains from `start` on all features, `cell.epochs` times, in an order that is a pure function of seed and epoch.

    `stopped` is asked before each step and raises where a signal came; `told` hears the step, all steps and the loss,
    now and then.
    """
    steps = steps_per_epoch(train, cell.batch_size) * cell.epochs
    rates = learning_rates(cell.learning_rate, steps, task)
    lengths = bucket_lengths(max(feature.length for feature in train))
    state, key = functions.begin(start.params), jax.random.key(cell.seed, impl="threefry2x32")
    clock, last, step = _Clock(cell.batch_size), math.nan, 0
    for epoch in range(cell.epochs):
        losses = list[Any]()
        for batch in batches(train, cell.batch_size, cell.seed, epoch, lengths=lengths):
            stopped()
            state, loss = functions.train(state, batch, rates[step], key)
            losses.append(loss)
            step += 1
            clock.after(batch["input_ids"].shape, loss)
            if step % 50 == 0 or step == steps:
                told(step, steps, float(loss))
        last = float(np.mean(jax.device_get(losses)))
        if not math.isfinite(last):
            break  # nothing brings its parameters back
    return Found(jax.device_get(state.params), last, step, clock.seconds, clock.examples_per_second)


class _Clock:
    """Times steps, those of a new shape apart."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.begun, self.last = batch_size, time.perf_counter(), time.perf_counter()
        self.known: set[Any] = set()
        self.rows, self.busy = 0, 0.0

    def after(self, shape: Any, loss: jax.Array) -> None:
        """A step of this shape has been sent off."""
        jax.block_until_ready(loss)
        now = time.perf_counter()
        if shape in self.known:
            self.rows, self.busy = self.rows + self.batch_size, self.busy + now - self.last
        self.known.add(shape)
        self.last = now

    @property
    def seconds(self) -> float:
        return self.last - self.begun

    @property
    def examples_per_second(self) -> float:
        return self.rows / self.busy if self.busy else float("nan")


def predict(
    features: list[Feature], params: Any, functions: TuningFunctions, rows: int = PREDICTION_ROWS,
    lengths: Sequence[int] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """The logits of each feature, in their order, as `predictions` reads them. Rows are padded to one of `lengths`;
    None: those that the longest asks for.
    """
    found: list[np.ndarray | None] = [None] * len(features)
    lengths = lengths or bucket_lengths(max(feature.length for feature in features))
    params = jax.device_put(params)
    for batch in batches(features, rows, shuffle=False, lengths=lengths):
        place_logits(found, features, batch, np.asarray(functions.predict(params, batch)))
    return [logits for logits in found if logits is not None]
