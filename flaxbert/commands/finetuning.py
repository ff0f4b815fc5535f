"""What the commands on a task take."""

import dataclasses
from typing import Annotated, Literal

import tyro

from flaxbert.commands.folders import check_folder


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune a model for a task over a grid and several seeds. The same command again goes on."""

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """A preset: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, squad2, ner, pos, swag; or a task of your
    own: classification, pair, regression, tagging, qa, multiple_choice."""
    init: str
    """The model to begin with: a run's folder, an export, or a Hugging Face folder."""
    data: str
    """A folder with train and dev files (and test), or `tfds:NAME`."""
    workdir: str
    """Where results, predictions and the best model go."""
    seeds: int = 1
    """Runs of each place of the grid; their seeds are 0, 1, ..."""
    learning_rates: str | None = None
    """Such as 5e-5,3e-5,2e-5. None: the task's first; 1e-3 with --frozen and --bilstm-layers."""
    batch_sizes: str | None = None
    """Such as 16,32. None: the task's first."""
    epochs: str | None = None
    """Such as 2,3,4. None: the task's first; 10 with --frozen and --bilstm-layers."""
    max_length: int | None = None
    """Tokens of a row. None: the task's, or the model's where that is less."""
    first: str | None = None
    """The column of the text, where the task's own names do not fit."""
    second: str | None = None
    """The column of the second text."""
    label: str | None = None
    """The column of the label."""
    frozen: bool = False
    """Train the output layer alone."""
    bilstm_layers: str | None = None
    """Such as -4,-3,-2,-1: tag by a BiLSTM over these layers of a frozen encoder, as section 5.3 of the paper does."""
    fresh: bool = False
    """Begin with random parameters: what did pretraining bring?"""
    train_examples: int | None = None
    """Take so many, drawn once at random: the same for the whole grid. None: all."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """`adam`: the reference's, without bias correction. `adamw`: with it."""
    weight_decay: float = 0.01
    dropout: float | None = None
    """Of hidden states and attention alike, with --frozen of what the output layer reads. None: the model's own; one
    that was pretrained without may want 0.1."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""

    def __post_init__(self) -> None:
        check_folder("--workdir", self.workdir)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout {self.dropout} is not in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print what a fine-tuned model says of new text, a JSON line for each."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder of flaxbert finetune: the best model is taken."""
    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")] = "-"
    """A file as the task's own without labels. `-`: standard input, answered as it comes: a text on a line (a tab
    before the second text), or JSON lines with the fields that the task's files have."""
    output: str = "-"
    """The file to write, which appears once it is whole. `-`: standard output."""
