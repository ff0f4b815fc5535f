"""Where a prepared corpus meets a run: this module, the launches and the command line alone know both."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.config import DataConfig, PrepareConfig
from flaxbert.config import Experiment


def corpus_facts(corpus: Any) -> dict[str, Any]:
    """What a run remembers of its corpus."""
    from data_pipeline.statistics import count

    counts = {split: count(corpus, split) for split in corpus.blocks}
    return {
        "path": str(pathlib.Path(corpus.path).absolute()),
        "fingerprint": corpus.fingerprint,
        "tokenizer_fingerprint": corpus.tokenizer_fingerprint,
        **counts,
    }


def outlook(corpus: Any, experiment: Experiment) -> list[str]:
    """What the corpus has to say of each phase of a run."""
    from data_pipeline import statistics
    from flaxbert.phases import parts

    sentences = []
    for number, part in enumerate(parts(experiment)):
        train, data = part.experiment.train, part.experiment.data
        if experiment.phases:
            sentences.append(f"phase {number + 1}, from step {part.first_step:,} on:")
        sentences += statistics.outlook(corpus, data, train.batch_size, train.seed, evaluated=train.eval_every > 0)
    return sentences


def data_of(model: str) -> DataConfig:
    """How a run's own evaluations draw their sequences; of another model nothing is known but its length."""
    from flaxbert.interop.huggingface_config import CONFIG, read_config
    from flaxbert.tools.folders import BEST, is_run, is_search
    from flaxbert.training.run import read_run

    if is_run(pathlib.Path(model)):
        return _last_data(model, read_run(model).experiment)
    folder = pathlib.Path(model)
    if is_search(folder):
        folder = folder / BEST
    if not (folder / CONFIG).is_file():
        return DataConfig()  # no model: told of by its loading
    return DataConfig(sequence_length=min(DataConfig().sequence_length, read_config(folder).config.max_length))


def _last_data(workdir: str, experiment: Experiment) -> DataConfig:
    """How the phase of a run's newest checkpoint draws its sequences."""
    from flaxbert.phases import part_of
    from flaxbert.training.recovery import saved_steps

    data: DataConfig = part_of(experiment, max(saved_steps(workdir), default=0)).experiment.data
    return data


@contextlib.contextmanager
def corpus_to_evaluate(model: str, corpus: str | None, text: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """The corpus, and which split of it to evaluate on: documents held out, or all of a text, which is prepared with
    the model's tokenizer for as long as this lasts.
    """
    from data_pipeline.prepare import prepare
    from data_pipeline.store import open_corpus

    if corpus is not None:
        yield open_corpus(corpus), "validation"
        return
    if not text:
        raise ValueError("nothing to evaluate on: name a --corpus, files of --text, or --examples of a task")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = PrepareConfig(tokenizer=_tokenizer_of(model, folder), validation_fraction=0.0)
        prepared = prepare(config, list(text), str(folder / "corpus"), progress=False)
        yield open_corpus(prepared.path), "train"


def _tokenizer_of(model: str, folder: pathlib.Path) -> str:
    """A model's tokenizer as `prepare` reads one; that of another tool is written so into `folder`. Raises ValueError
    for one that cannot be.
    """
    from flaxbert.interop.huggingface_config import read_config
    from flaxbert.interop.huggingface_tokenizer import is_own, write_tokenizer
    from flaxbert.tools.folders import is_run, model_folder

    source = pathlib.Path(model)
    if not source.is_dir():
        raise ValueError(f"model {model} is no directory: expected that of a run, an export or a Hugging Face model")
    source = model_folder(source)
    if is_run(source) or is_own(source):
        return str(source / "tokenizer" if is_run(source) else source)
    (folder / "tokenizer").mkdir()
    write_tokenizer(source, folder / "tokenizer", read_config(source).config)
    if not is_own(folder / "tokenizer"):
        raise ValueError(f"the tokenizer of {model} is not BERT's WordPiece: no text can be prepared with it")
    return str(folder / "tokenizer")


def held_out_batch(model: str) -> dict[str, Any] | None:
    """Held-out text of a run's own corpus, masked as in its evaluation; None where model or corpus is not there."""
    from data_pipeline.stream import first_batch
    from flaxbert.tools.folders import is_run
    from flaxbert.training.run import read_run

    if not is_run(pathlib.Path(model)):
        return None
    run = read_run(model)
    corpus = _corpus_of(run)
    if corpus is None:
        return None
    try:
        return first_batch(corpus, _last_data(model, run.experiment), 4, "validation")
    except ValueError:
        return None  # too little held-out text for a batch


def unigram_entropy(run: Any) -> float | None:
    """That of a run's held-out text in nats; None where the corpus is not there any more, or holds none out."""
    from data_pipeline import statistics

    corpus = _corpus_of(run)
    if corpus is None or not corpus.blocks["validation"]:
        return None
    return statistics.unigram_entropy(corpus, "validation")


def _corpus_of(run: Any) -> Any:
    """The corpus of a `RunConfig`; None where it is moved, deleted or another since."""
    from data_pipeline.store import open_corpus

    try:
        corpus = open_corpus(run.corpus["path"])
    except ValueError:
        return None
    return corpus if corpus.fingerprint == run.corpus["fingerprint"] else None


def streams(corpus: Any, experiment: Experiment) -> Any:
    """The corpus's streams as the loop takes them. A phase whose sequences are drawn in another way begins an epoch."""
    from data_pipeline.stream import batches
    from data_pipeline.windows import Position
    from flaxbert.phases import parts
    from flaxbert.sharding import host_share, make_mesh
    from flaxbert.training.part import Streams

    phases = [part.experiment for part in parts(experiment)]
    index, count = host_share(make_mesh(experiment.mesh))

    def draw(phase: int, **options: Any) -> Iterator[Any]:
        size = phases[phase].train.batch_size
        return batches(corpus, phases[phase].data, batch_size=size, host_index=index, host_count=count, **options)

    def train(phase: int, position: dict[str, int] | None) -> Iterator[Any]:
        found = dict(position or {"phase": phase})
        before = found.pop("phase")
        start = Position(**found)
        if phases[before].data != phases[phase].data:
            start = Position(start.epoch + 1)
        for batch, after in draw(phase, seed=experiment.train.seed, position=start):
            yield batch, {"phase": phase, **after._asdict()}

    def validation(phase: int) -> Iterator[Any]:
        return (batch for batch, _ in draw(phase, seed=0, split="validation", epochs=1))

    return Streams(train, validation)
