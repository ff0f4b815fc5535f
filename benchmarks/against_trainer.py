"""The same fine-tuning by flaxbert and by transformers' Trainer: equal weights, examples, batches, rates and epochs.

    python -m benchmarks.against_trainer --init EXPORT --data DIR [--task sst2] [--learning-rate R]
        [--optimizer adam|adamw] [--batch-size N] [--epochs N] [--max-length N] [--train-examples N] [--seeds N]
        [--json RESULT.json]

The task is one of texts or pairs of texts with classes, such as sst2 and qnli, and DIR the folder of its data. EXPORT
is a folder that `flaxbert export` wrote: both begin with its encoder and a new output layer. Both take batches
of as many rows, in an order of their own, padded to the longest row of a batch (flaxbert: to the next of 32, 64, 128
tokens and so on, so that few shapes are compiled); weight decay 0.01, gradients clipped at norm 1; AdamW, or with
`--optimizer adam` flaxbert's is the reference's, without bias correction. The rate of each step is the same: linear
warm-up over a tenth of the steps and the reference's linear decay, which is measured from step 0 and so a tenth below
the Trainer's own. Seeds take turns: one by flaxbert, one by the Trainer. The clock runs from the loaded model to the
last step of training, with all that either builds or compiles for it: nothing compiled is kept from one seed to the
next. Needs the extra `bench`.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from data_pipeline.memory import keep_memory_of_steps
from flaxbert.accelerators import accelerator
from flaxbert.config import OptimizerConfig
from flaxbert.finetuning.examples import read_examples, sample
from flaxbert.finetuning.files import find_files
from flaxbert.finetuning.metrics import references, score
from flaxbert.finetuning.objective import output_count
from flaxbert.finetuning.predictions import predictions
from flaxbert.finetuning.saved import task_for
from flaxbert.finetuning.step import build_functions
from flaxbert.finetuning.tasks import find_task
from flaxbert.finetuning.tuning import (
    PREDICTION_ROWS, Cell, begin, fine_tune, learning_rates, predict, read_split,
)  # fmt: skip
from flaxbert.tools.load import load

Result = dict[str, float]


class Setting:
    """What both are given."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.init, self.rows, self.rate, self.epochs = (
            arguments.init, arguments.batch_size, arguments.learning_rate, arguments.epochs
        )  # fmt: skip
        self.optimizer = OptimizerConfig(arguments.optimizer)
        self.task = task_for(find_task(arguments.task), arguments.max_length)
        if self.task.kind != "classification":
            raise ValueError(f"--task {self.task.name} is no classification of texts: name sst2, qnli or another one")
        paths = find_files(arguments.data, self.task)
        self.train = read_examples(paths["train"], self.task)
        self.dev = read_examples(paths["dev"], self.task, self.train.labels)
        if arguments.train_examples is not None:
            self.train = sample(self.train, arguments.train_examples)


def by_flaxbert(setting: Setting, seed: int) -> Result:
    """One run of `flaxbert finetune`'s own functions."""
    model, task = load(setting.init), setting.task
    train, dev = (
        read_split(examples, task, model.tokenizer, task.max_length) for examples in (setting.train, setting.dev)
    )
    outputs = output_count(task.kind, len(setting.train.labels))
    cell = Cell(setting.rate, setting.rows, setting.epochs, seed)
    start = begin(model.checkpoint, task, setting.train.labels, seed, False)
    build_functions.cache_clear()
    jax.clear_caches()
    began = time.perf_counter()
    functions = build_functions(task.kind, model.config, outputs, setting.rows, setting.optimizer)
    found = fine_tune(cell, start, train.features, task, functions)
    seconds = time.perf_counter() - began
    predictor = build_functions(task.kind, model.config, outputs, PREDICTION_ROWS, setting.optimizer)
    said = predictions(dev.examples, dev.features, predict(dev.features, found.params, predictor), task)
    return score(task, said, references(dev.examples)) | _speed(setting, seconds)


def by_trainer(setting: Setting, seed: int) -> Result:
    """One run of transformers' Trainer."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments,
        set_seed,
    )  # fmt: skip

    set_seed(seed)
    labels, tokenizer = setting.train.labels, AutoTokenizer.from_pretrained(setting.init)
    model = AutoModelForSequenceClassification.from_pretrained(setting.init, num_labels=len(labels))

    def encoded(examples: Any) -> Any:
        texts = [[item.first for item in examples.items]]
        if setting.task.second:
            texts.append([item.second for item in examples.items])
        columns = dict(tokenizer(*texts, truncation=True, max_length=setting.task.max_length))
        return Dataset.from_dict(columns | {"labels": [labels.index(item.label) for item in examples.items]})

    train, dev = encoded(setting.train), encoded(setting.dev)
    rates = learning_rates(setting.rate, setting.epochs * -(-len(train) // setting.rows), setting.task)

    class WithOurRates(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            assert num_training_steps == len(rates)
            curve = [*(float(rate) / setting.rate for rate in rates), 0.0]  # one is asked for after the last step
            updated: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(updated, curve.__getitem__)
            return self.lr_scheduler

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_train_batch_size=setting.rows, per_device_eval_batch_size=PREDICTION_ROWS,
            learning_rate=setting.rate, num_train_epochs=setting.epochs, weight_decay=0.01,
            adam_epsilon=1e-6, seed=seed, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = WithOurRates(model, settings, DataCollatorWithPadding(tokenizer), train, processing_class=tokenizer)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        logits: Any = trainer.predict(dev.remove_columns("labels")).predictions
    said = [labels[index] for index in logits.argmax(-1)]
    return score(setting.task, said, references(setting.dev)) | _speed(setting, seconds)


def _speed(setting: Setting, seconds: float) -> Result:
    return {"seconds": seconds, "examples_per_second": setting.epochs * len(setting.train.items) / seconds}


def summary(found: dict[str, list[Result]]) -> dict[str, Any]:
    """Means and sample deviations of each side, and the ratio of the medians of their speeds."""
    sides: dict[str, Any] = {
        side: {
            name: {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}
            for name in runs[0] for values in [[run[name] for run in runs]]
        }
        for side, runs in found.items()
    }  # fmt: skip
    ours, theirs = (statistics.median(run["examples_per_second"] for run in runs) for runs in found.values())
    return sides | {"speed_ratio": ours / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--optimizer", choices=("adam", "adamw"), default="adamw")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--train-examples", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if accelerator() is None:
        keep_memory_of_steps()
    setting = Setting(arguments)
    found: dict[str, list[Result]] = {"flaxbert": [], "Trainer": []}
    for seed in range(arguments.seeds):
        for side, train in (("flaxbert", by_flaxbert), ("Trainer", by_trainer)):
            found[side].append(train(setting, seed))
            print(side, seed, json.dumps(found[side][-1]), flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    command = shlex.join(["python", "-m", "benchmarks.against_trainer", *sys.argv[1:]])
    machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    whole = {"command": command, "settings": settings, **machine, "runs": found}
    whole["summary"] = summary(found)
    print(json.dumps(whole["summary"], indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
