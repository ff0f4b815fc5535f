"""The command line: parses, joins the stream to the loop, and leaves the work to the rooms it belongs to."""

import dataclasses
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import tyro

from data_pipeline.config import PrepareConfig
from flaxbert import flags
from flaxbert.config import Experiment, with_vocabulary

DONE, USER_ERROR, STOPPED = 0, 1, 75


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
class Pretrain:
    """Pretrain a model on a prepared corpus. The same command again resumes."""

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
    """A name in experiments/ or the path of a Python file that defines EXPERIMENT."""
    corpus: str
    """A prepared corpus."""
    workdir: str
    """The run's folder: settings, checkpoints, metrics."""
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
    """A run's folder, an export, or a Hugging Face folder."""
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
class FillMask:
    """Print the likeliest words for each [MASK]."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder, an export, or a Hugging Face folder."""
    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT...")]
    """Texts that hold [MASK]."""
    top: int = 5
    """Words for each mask."""


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Prepare, pretrain, look at and export a tiny BERT on Python's documentation, in minutes."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")] = "runs/quickstart"
    """Where everything goes."""


def prepare(arguments: Prepare) -> int:
    from data_pipeline.prepare import prepare as run

    run(
        arguments.settings, list(arguments.inputs), arguments.output, workers=arguments.workers,
        engine=arguments.engine, beam_flags=arguments.beam_flags,
    )
    return DONE


def pretrain(arguments: Pretrain) -> int:
    from flaxbert.training.signals import stop_requested

    with stop_requested() as stop:  # before the seconds, or minutes, that the rest of a launch may take
        return _pretrain(arguments, stop)


def _pretrain(arguments: Pretrain, stop: Callable[[], bool]) -> int:
    from data_pipeline.statistics import outlook
    from data_pipeline.store import open_corpus

    corpus = open_corpus(arguments.corpus)  # before JAX is imported: a mistyped path is told of at once
    experiment, facts = with_vocabulary(arguments.settings, corpus.vocab_size), _corpus_facts(corpus)

    from flaxbert.training.loop import check_devices, train
    from flaxbert.training.run import begin_or_resume, check_run, describe_changes, only_launch

    changed = check_run(arguments.workdir, experiment, facts)
    check_devices(experiment)
    plan = experiment.train
    sentences = outlook(corpus, experiment.data, plan.batch_size, plan.seed, evaluated=plan.eval_every > 0)
    for sentence in [*sentences, *describe_changes(changed or {})]:
        print(sentence, file=sys.stderr)
    with only_launch(arguments.workdir):
        begin_or_resume(arguments.workdir, experiment, facts, str(pathlib.Path(corpus.path) / "tokenizer"))
        outcome = train(experiment, arguments.workdir, _streams(corpus, experiment), stop)
    return STOPPED if outcome.stopped else DONE


def doctor(arguments: Doctor) -> int:
    """Status 0 with troubles found, too: they are an answer, not an error."""
    from data_pipeline import health, progress, verdicts
    from flaxbert.tools import doctor as tool

    tool.check_outputs(arguments.json, arguments.plot)
    with progress.Progress(visible=True).waiting(f"examining {arguments.corpus}"):
        found = health.examine(arguments.corpus, arguments.batch_size, arguments.lengths, arguments.sample_tokens)
    tool.show(verdicts.report(found), arguments.json, arguments.plot)
    return DONE


def export(arguments: Export) -> int:
    from flaxbert.tools.export import export as run

    run(
        arguments.model, arguments.output, arguments.step, arguments.architecture, arguments.dtype,
        _held_out_batch(arguments.model),
    )
    return DONE


def import_(arguments: Import) -> int:
    from flaxbert.tools.import_model import import_model

    import_model(
        arguments.source, arguments.output, _open_variables, activation=arguments.activation,
        lowercase=arguments.lowercase, allow_unused=arguments.allow_unused, seed=arguments.seed,
    )
    return DONE


def fill_mask(arguments: FillMask) -> int:
    from flaxbert.tools.fill_mask import fill_mask as run

    run(arguments.model, list(arguments.texts), top=arguments.top)
    return DONE


def quickstart(arguments: Quickstart) -> int:
    from data_pipeline.statistics import unigram_entropy
    from data_pipeline.store import open_corpus
    from flaxbert.tools import quickstart as tour

    for command in tour.commands(arguments.folder):
        tour.announce(command)
        status = main(command)
        if status != DONE:
            return status
        if command[0] == "pretrain":
            corpus = open_corpus(tour.corpus_folder(arguments.folder))
            tour.show_what_it_learnt(arguments.folder, unigram_entropy(corpus, "validation"))
    tour.say_what_is_next(arguments.folder)
    return DONE


COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "prepare": (Prepare, prepare),
    "pretrain": (Pretrain, pretrain),
    "doctor": (Doctor, doctor),
    "export": (Export, export),
    "import": (Import, import_),
    "fill-mask": (FillMask, fill_mask),
    "quickstart": (Quickstart, quickstart),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's error is one sentence, unless `--traceback` is given."""
    argv = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return DONE
        if argv[0] == "--version":
            print(f"flaxbert {importlib.metadata.version('flaxbert')}")
            return DONE
        if argv[0] not in COMMANDS:
            raise ValueError(f"{argv[0]!r} is no command; flaxbert has {', '.join(COMMANDS)}")
        kind, run = COMMANDS[argv[0]]
        return run(_parse(kind, argv[0], argv[1:]))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, OSError) as error:
        if traceback:
            raise
        print(f"flaxbert: {_sentence(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("flaxbert: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: flaxbert COMMAND ...", ""]
    lines += [f"  {name:11} {(kind.__doc__ or '').splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    last = "flaxbert COMMAND --help lists a command's flags; --traceback shows where an error arose."
    return "\n".join([*lines, "", last])


def _parse(kind: Any, name: str, argv: list[str]) -> Any:
    """The command's dataclass. An experiment's values are the defaults of the flags that follow its name; what follows
    a bare `--` of prepare is Beam's.
    """
    if kind is Prepare and "--" in argv:
        border = argv.index("--")
        return dataclasses.replace(_parse(kind, name, argv[:border]), beam_flags=tuple(argv[border + 1:]))
    default = None
    if kind is Pretrain and argv and argv[0] not in ("-h", "--help"):
        if argv[0].startswith("-"):
            raise ValueError(f"found {argv[0]} before the EXPERIMENT: flaxbert pretrain EXPERIMENT {argv[0]} ...")
        default = Pretrain(argv[0], tyro.MISSING, tyro.MISSING, flags.load_experiment(argv[0]))
    return flags.parse(kind, f"flaxbert {name}", argv, default)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _corpus_facts(corpus: Any) -> dict[str, Any]:
    """What a run remembers of its corpus."""
    from data_pipeline.statistics import count

    counts = {split: count(corpus, split) for split in corpus.blocks}
    return {
        "path": str(pathlib.Path(corpus.path).absolute()),
        "fingerprint": corpus.fingerprint,
        "tokenizer_fingerprint": corpus.tokenizer_fingerprint,
        **counts,
    }


def _held_out_batch(model: str) -> dict[str, Any] | None:
    """Held-out text of a run's own corpus, masked as in its evaluation; None where model or corpus is not there."""
    from data_pipeline.store import open_corpus
    from data_pipeline.stream import first_batch
    from flaxbert.tools.load import is_run
    from flaxbert.training.run import read_run

    if not is_run(pathlib.Path(model)):
        return None
    run = read_run(model)
    try:
        corpus = open_corpus(run.corpus["path"])
    except ValueError:
        return None  # moved or deleted since
    if corpus.fingerprint != run.corpus["fingerprint"]:
        return None
    return first_batch(corpus, run.experiment.data, 8, "validation") if corpus.blocks["validation"] else None


def _open_variables(prefix: str) -> Any:
    """A TensorFlow checkpoint: the rooms of flaxbert know nothing of TensorFlow."""
    from data_pipeline.tensorflow_import import import_tensorflow
    from flaxbert.interop.google import Variables

    try:
        tf = import_tensorflow()
    except ImportError:
        raise ValueError("reading a TensorFlow checkpoint needs TensorFlow: install tensorflow-cpu") from None
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except (tf.errors.OpError, ValueError) as error:
        raise ValueError(f"{prefix} is no TensorFlow checkpoint, or damaged: {error}") from None

    def read(name: str) -> Any:
        try:
            return reader.get_tensor(name)
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"{prefix} is damaged: variable {name} cannot be read: {error}") from None

    return Variables(shapes, read)


def _streams(corpus: Any, experiment: Experiment) -> Any:
    """The corpus's streams as the loop takes them."""
    import jax

    from data_pipeline.stream import batches
    from data_pipeline.windows import Position
    from flaxbert.training.loop import Streams

    hosts = dict(host_index=jax.process_index(), host_count=jax.process_count())
    shared = dict(batch_size=experiment.train.batch_size, **hosts)

    def train(position: dict[str, int] | None) -> Iterator[Any]:
        start = Position(**(position or {}))
        for batch, after in batches(corpus, experiment.data, seed=experiment.train.seed, position=start, **shared):
            yield batch, after._asdict()

    def validation() -> Iterator[Any]:
        for batch, _ in batches(corpus, experiment.data, seed=0, split="validation", epochs=1, **shared):
            yield batch

    return Streams(train, validation)


if __name__ == "__main__":
    sys.exit(main())
