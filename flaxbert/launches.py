"""The commands that read a prepared corpus for a model: pretraining and evaluation."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.config import DataConfig
from flaxbert import joins
from flaxbert.commands import Evaluate, Pretrain
from flaxbert.config import Experiment, with_vocabulary


def pretrain(arguments: Pretrain, stop: Callable[[], bool]) -> bool:
    """Begins a run, or goes on with it, until its last step or until `stop` says so; returns whether it was stopped."""
    from data_pipeline.store import open_corpus

    # Before JAX is imported: a mistyped path is told of at once.
    corpus = open_corpus(arguments.corpus, arguments.verify)
    experiment, facts = with_vocabulary(arguments.settings, corpus.vocab_size), joins.corpus_facts(corpus)

    from flaxbert.training.distributed import joined
    from flaxbert.training.lock import check_no_launch

    check_no_launch(arguments.workdir)
    with joined(arguments.peers):  # after what each process can be refused for alone, before any device is looked for
        return _train(arguments, corpus, experiment, facts, stop)


def _train(
    arguments: Pretrain, corpus: Any, experiment: Experiment, facts: dict[str, Any], stop: Callable[[], bool]
) -> bool:
    from flaxbert.training.checkpoint import saved_steps
    from flaxbert.training.compilation import keep_compilations
    from flaxbert.training.distributed import wait_for_all
    from flaxbert.training.lock import only_launch
    from flaxbert.training.loop import DeviceMemoryError, check_devices, train
    from flaxbert.training.run import begin_or_resume, check_run, check_same, check_space, describe_changes

    import jax

    told = keep_compilations()
    workdir, first = arguments.workdir, jax.process_index() == 0
    init = str(pathlib.Path(arguments.init).absolute()) if arguments.init is not None else None
    changed = check_run(workdir, experiment, facts, init) if first else None
    state_bytes = check_devices(experiment)
    begin = None
    if init is not None and not saved_steps(workdir):
        begin, sentences = _begin_with(init, experiment, corpus)
        told += sentences
    if first:  # it alone speaks and writes, but for the checkpoints, which all write together
        check_space(workdir, state_bytes)
        for sentence in [*joins.outlook(corpus, experiment), *describe_changes(changed or {}), *told]:
            print(sentence, file=sys.stderr)
    with only_launch(workdir) if first else contextlib.nullcontext():
        if first:
            begin_or_resume(workdir, experiment, facts, str(pathlib.Path(corpus.path) / "tokenizer"), init)
        wait_for_all("the run's folder is there")
        if not first:
            check_same(workdir, experiment, facts, init)
        try:
            outcome = train(experiment, workdir, joins.streams(corpus, experiment), stop, begin)
        except DeviceMemoryError as error:
            raise ValueError(f"{error}: {_what_would_fit(error.experiment, error.phase, error.step_bytes)}") from error
    return bool(outcome.stopped)


def _what_would_fit(experiment: Experiment, phase: int | None, step_bytes: int | None) -> str:
    """In the flags of the phase where the run has phases."""
    own = "--train." if phase is None else f"--phases.{phase}."
    import jax

    from flaxbert.sharding import make_mesh
    from flaxbert.tools.plan import gigabytes, what_would_fit

    if jax.process_count() > 1:  # the others end in seconds: there is no time to compile
        needs = "" if step_bytes is None else f"the step needs {gigabytes(step_bytes)} GB of each device; "
        return f"{needs}a larger {own}microbatches, a smaller {own}batch-size or `flaxbert plan` help"
    return what_would_fit(experiment, make_mesh(experiment.mesh)).replace("--train.", own)


def _begin_with(model: str, experiment: Experiment, corpus: Any) -> tuple[Any, list[str]]:
    """The parameters of a model for a run's first step, and what is to be said of them."""
    from flaxbert.interop.huggingface_tokenizer import check_same, read_tokenizer
    from flaxbert.tools.load import load
    from flaxbert.training.initial import initial_params

    loaded = load(model)
    check_same(model, loaded.tokenizer, read_tokenizer(corpus.path / "tokenizer", experiment.model))
    return initial_params(model, loaded.checkpoint, experiment.model, experiment.train.seed)


def evaluate(arguments: Evaluate) -> dict[str, Any]:
    """What a model scores on held-out documents, or on texts."""
    with joins.corpus_to_evaluate(arguments.model, arguments.corpus, arguments.text) as (corpus, split):
        return _evaluate(arguments, corpus, split)


def _evaluate(arguments: Evaluate, corpus: Any, split: str) -> dict[str, Any]:
    from data_pipeline.stream import batches
    from flaxbert.interop.huggingface_tokenizer import check_same, read_tokenizer
    from flaxbert.tools.evaluate import evaluate as run
    from flaxbert.tools.load import load

    model = load(arguments.model, arguments.step)
    check_same(arguments.model, model.tokenizer, read_tokenizer(corpus.path / "tokenizer", model.config))
    if arguments.data.sequence_length > model.config.max_length:
        raise ValueError(
            f"data.sequence_length {arguments.data.sequence_length} exceeds the model's {model.config.max_length}"
        )

    def drawn(data: DataConfig) -> Iterator[Any]:
        found = batches(corpus, data, batch_size=arguments.batch_size, seed=0, split=split, epochs=1)
        return (batch for batch, _ in found)

    found = run(model, drawn(arguments.data), arguments.batches)
    if arguments.pseudo_perplexity:
        from flaxbert.tools.pseudo_perplexity import pseudo_perplexity

        # Whole texts: of a pair one half may be a stranger to the other.
        alone = dataclasses.replace(arguments.data, pairing="none", packing=1)
        found |= pseudo_perplexity(model, drawn(alone), arguments.pseudo_perplexity)
    return found
