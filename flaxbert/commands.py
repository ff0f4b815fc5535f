"""What each command of the command line takes: a dataclass each, whose docstrings are the help."""

import dataclasses
import glob
import os
from typing import Annotated, Literal

import tyro

from data_pipeline.config import DataConfig, PrepareConfig
from flaxbert.config import Experiment


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Text → a prepared corpus that any experiment can train on."""

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="INPUT...")]
    """Files, globs, directories or URLs of text, JSON lines or Parquet, plain or compressed; `tfds:NAME@SPLIT#FIELD`;
    or `python-docs`."""
    output: str
    """The folder to write."""
    settings: Annotated[PrepareConfig, tyro.conf.arg(name="")] = PrepareConfig()
    workers: int | None = None
    """Processes. None: one for each core."""
    engine: Literal["local", "beam"] = "local"
    """Processes here, or Apache Beam: what follows a bare `--` are the flags of its runner."""
    beam_flags: tyro.conf.Suppress[tuple[str, ...]] = ()


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of one run."""

    coordinator: str | None = None
    """HOST:PORT of process 0, free there, of several that are told of each other by these three flags. None: by TPU
    hosts, SLURM, Open MPI or an indexed job of Kubernetes; one process where there is none of them."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which of them this is: 0 to one less than there are."""
    heartbeat_seconds: int = 100
    """How long a silent process is waited for before the others end."""
    start_seconds: int = 300
    """How long all are waited for at the start."""

    def __post_init__(self) -> None:
        for name in ("heartbeat_seconds", "start_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is not positive")
        missing = [name for name in ("coordinator", "processes", "process") if getattr(self, name) is None]
        if missing and len(missing) < 3:
            flags = " and ".join(f"--{name}" for name in missing)
            raise ValueError(f"{flags} missing: --coordinator, --processes and --process go together")
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator {self.coordinator} is not HOST:PORT")
        if self.processes <= 0:
            raise ValueError(f"--processes {self.processes} is not positive")
        if not 0 <= self.process < self.processes:
            raise ValueError(f"--process {self.process} is not one of the {self.processes} that --processes says")


def _check_folder(flag: str, path: str) -> None:
    """A bucket's URL would be taken for the name of a folder here."""
    if isinstance(path, str) and "://" in path:
        raise ValueError(f"{flag} {path} is a URL: expected a folder of a mounted file system")


def _check_no_pattern(flag: str, path: str) -> None:
    """Orbax looks for the files of a checkpoint by a pattern that begins with its folder's name as it is."""
    if isinstance(path, str) and glob.escape(os.path.abspath(path)) != os.path.abspath(path):
        raise ValueError(
            f"{flag} {os.path.abspath(path)} holds one of * ? [ in its name, and no checkpoint could be saved there: "
            "choose another folder"
        )


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pretrain a model on a prepared corpus. The same command again resumes."""

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """A name in experiments/ or the path of a Python file that defines EXPERIMENT."""
    corpus: str
    """A prepared corpus."""
    workdir: str
    """The run's folder: settings, checkpoints, metrics."""
    init: str | None = None
    """Begin with the parameters of a model: a run's folder, an export, or a Hugging Face folder. Read by the first
    launch alone; the optimizer begins anew."""
    verify: Literal["size", "content"] = "size"
    """How the corpus's shards are compared with what was prepared: their sizes, or all of it, by checksum."""
    peers: Annotated[Peers, tyro.conf.arg(name="")] = Peers()
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()

    def __post_init__(self) -> None:
        _check_folder("--workdir", self.workdir)
        _check_no_pattern("--workdir", self.workdir)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile the train step without running it: memory, FLOPs, traffic, the largest batch, device hours."""

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """A name in experiments/ or the path of a Python file that defines EXPERIMENT."""
    topology: str | None = None
    """A TPU slice that need not be there, such as v5e:4x4, v6e:2x4 or v5p:2x2x2; needs the extra `tpu`. None: the
    devices of this machine."""
    corpus: str | None = None
    """A prepared corpus, for the size of its vocabulary. None: `--model.vocab-size`, or 30,522."""
    mfu: float = 0.5
    """The share of the devices' peak that speeds and hours are told at."""
    peak_flops: float | None = None
    """The peak of one device in FLOP/s, such as 989e12. None: that of its kind, where it is known."""
    search: int = 8
    """Compilations that the search for the largest batch may take. 0: no search."""
    json: str | None = None
    """Write the plan as JSON. `-`: to standard output, and nothing else."""
    settings: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Examine a prepared corpus: what makes runs fail, and what mends it."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """A prepared corpus. The checksum of every shard is compared first."""
    batch_size: int = 256
    """Rows in a batch: what steps are counted in."""
    lengths: tuple[int, ...] = (128, 512)
    """The sequence lengths to draw sequences at; the default is that of the paper's two phases."""
    sample_tokens: int = 200_000_000
    """Training tokens that are read; of a larger corpus, blocks spread evenly over it."""
    json: str | None = None
    """Write all that was measured as JSON. `-`: to standard output, and nothing else."""
    plot: str | None = None
    """Draw histograms into this file, which ends in .png."""


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
            if field.name in ("batch_size", "batches", "pseudo_perplexity"):
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
class Report:
    """Write one page on a run: curves, recipe, filled masks, fine-tuning tables. The run may be going on."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The folder of a pretraining run."""
    more: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TUNED...")] = ()
    """Folders of flaxbert finetune, for their tables."""
    output: str = "report.html"
    """The page; it needs no network."""


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Print the likeliest words for each [MASK]."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, a Hugging Face folder, or that of flaxbert finetune for its best model."""
    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT...")]
    """Texts that hold [MASK]."""
    top: int = 5
    """Words for each mask."""


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
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""

    def __post_init__(self) -> None:
        _check_folder("--workdir", self.workdir)


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


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Prepare, pretrain, look at and export a tiny BERT on Python's documentation, in minutes."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")] = "runs/quickstart"
    """Where everything goes."""
