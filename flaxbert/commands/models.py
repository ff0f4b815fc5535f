"""What the commands on any model take."""

import dataclasses
from typing import Annotated, Literal

import tyro

from data_pipeline.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a model as a folder that Hugging Face transformers loads."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, a Hugging Face folder, or that of flaxbert finetune for its best model."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to write."""
    step: int | None = None
    """The checkpoint of a run to export. None: the newest."""
    architecture: str | None = None
    """The class to write: BertForPreTraining, BertModel (the encoder alone), BertForMaskedLM, ... None: the one that
    holds all parts of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Turn a checkpoint of Google's BERT, or a Hugging Face folder, into a folder of ours."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A folder with bert_config.json, a TensorFlow checkpoint and vocab.txt; such a checkpoint, named without its
    endings; or a Hugging Face folder with safetensors."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to write."""
    activation: Literal["gelu", "gelu_new"] | None = None
    """`gelu` is exact, `gelu_new` the tanh form. None: what the source says; Google's configurations say `gelu` of
    both."""
    lowercase: bool | None = None
    """Whether a vocabulary without settings is that of lower-cased text. None: unless it holds capital letters."""
    allow_unused: bool = False
    """Leave out tensors that this model has no place for. False: refuse."""
    seed: int = 0
    """Of the heads that the source lacks."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print a model's losses on held-out documents or on any text, or what a fine-tuned model scores."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, or a Hugging Face folder; with --examples, a folder of flaxbert finetune."""
    corpus: str | None = None
    """A prepared corpus whose tokenizer is the model's: its held-out documents."""
    text: tuple[str, ...] = ()
    """Files of text, as `flaxbert prepare` reads them: all of it."""
    examples: str | None = None
    """A labelled file of a fine-tuned model's task."""
    step: int | None = None
    """The checkpoint of a run to evaluate. None: the newest."""
    data: DataConfig = DataConfig()
    batch_size: int = 32
    """Rows in a batch. Which sequences are drawn does not depend on it."""
    batches: int | None = None
    """How many to evaluate. None: all."""
    pseudo_perplexity: int = 0
    """Guess each token of so many sequences from all the others too (Salazar et al. 2020). A sequence is computed
    once for each of its tokens, 64 at a time."""
    json: bool = False
    """One line of JSON in place of a table."""

    def __post_init__(self) -> None:
        named = [f"--{name}" for name in ("corpus", "text", "examples") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} exclude each other")
        if self.pseudo_perplexity < 0:
            raise ValueError(f"--pseudo-perplexity {self.pseudo_perplexity} is negative")
        for field in dataclasses.fields(self) if self.examples is not None else ():
            if field.name in ("step", "batch_size", "batches", "pseudo_perplexity"):
                if getattr(self, field.name) != field.default:
                    flag = field.name.replace("_", "-")
                    raise ValueError(f"--{flag} is of no use with --examples")


@dataclasses.dataclass(frozen=True)
class Embed:
    """Write a vector for each text of a file: features for whatever learns from them."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, a Hugging Face folder, or that of flaxbert finetune for its best model."""
    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """Texts: .txt with one on each line, .tsv, .csv or .jsonl."""
    output: str
    """The file to write: .npy holds the vectors alone, .parquet and .jsonl the texts beside them."""
    pooling: Literal["mean", "cls", "tokens"] = "mean"
    """Of all tokens, of [CLS], or a vector for each token."""
    layers: str = "-1"
    """Such as -4,-3,-2,-1: the last four. 0 is what the first layer reads."""
    combine: Literal["concat", "sum", "mean"] = "concat"
    """How several layers become one vector."""
    first: str | None = None
    """The column of the text, where it has another name than usual."""
    second: str | None = None
    """The column of a second text."""
    label: str | None = None
    """A column to copy beside the vectors."""
    batch_size: int = 32
    max_length: int | None = None
    """Tokens of a text; what is longer is cut. None: as many as the model reads."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """Draw what each token of a text attends to, in every layer and head."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, a Hugging Face folder, or that of flaxbert finetune for its best model."""
    first: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    """A text, of up to 128 tokens."""
    second: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="TEXT")] = None
    """A second one, for a pair."""
    output: str = "attention.png"
    """The picture: .png or .svg."""
    html: str | None = None
    """A page that shows one layer and head at a time; it needs no network."""


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Print the likeliest words for each [MASK]."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, a Hugging Face folder, or that of flaxbert finetune for its best model."""
    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT...")]
    """Texts that hold [MASK]."""
    top: int = 5
    """Words for each mask."""
