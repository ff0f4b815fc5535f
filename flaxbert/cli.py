"""The command line: parses, and leaves the work to the rooms it belongs to."""

import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from data_pipeline.memory import keep_memory_of_steps
from flaxbert import flags, joins
from flaxbert.accelerators import accelerator
from flaxbert.commands import (
    Attention, Doctor, Embed, Evaluate, Export, FillMask, Finetune, Import, Plan, Predict, Prepare, Pretrain,
    Quickstart, Report,
)  # fmt: skip
from flaxbert.config import with_vocabulary
from flaxbert.console import errors_need_no_reader

DONE, USER_ERROR, STOPPED = 0, 1, 75


def prepare(arguments: Prepare) -> int:
    from data_pipeline.prepare import prepare as run

    run(
        arguments.settings, list(arguments.inputs), arguments.output, workers=arguments.workers,
        engine=arguments.engine, beam_flags=arguments.beam_flags,
    )
    return DONE


def pretrain(arguments: Pretrain) -> int:
    from flaxbert.launches import pretrain as run
    from flaxbert.training.signals import stop_requested

    with stop_requested() as stop:  # before the seconds, or minutes, that the rest of a launch may take
        return STOPPED if run(arguments, stop) else DONE


def plan(arguments: Plan) -> int:
    from data_pipeline.progress import Progress
    from data_pipeline.store import open_corpus
    from flaxbert.tools.doctor import check_outputs

    check_outputs(arguments.json, None)
    experiment = arguments.settings
    if arguments.corpus is not None:
        experiment = with_vocabulary(experiment, open_corpus(arguments.corpus).vocab_size)
    if arguments.topology is not None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the slice is compiled for: nothing here is to be taken up

    from flaxbert.tools import plan_tables
    from flaxbert.tools.plan import plan as run

    waiting = Progress(visible=True).waiting
    found = run(
        experiment, arguments.topology, arguments.mfu, arguments.search, waiting=waiting, peak=arguments.peak_flops
    )
    plan_tables.show(found, arguments.json)
    return DONE


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
        joins.held_out_batch(arguments.model),
    )
    return DONE


def import_(arguments: Import) -> int:
    from data_pipeline.tensorflow_import import open_variables
    from flaxbert.tools.import_model import import_model

    import_model(
        arguments.source, arguments.output, open_variables, activation=arguments.activation,
        lowercase=arguments.lowercase, allow_unused=arguments.allow_unused, seed=arguments.seed,
    )
    return DONE


def evaluate(arguments: Evaluate) -> int:
    if arguments.examples is None:
        from flaxbert.launches import evaluate as run

        found = run(arguments)
    else:
        from flaxbert.finetuning.evaluation import evaluate_file

        if arguments.data != joins.data_of(arguments.model):
            raise ValueError("flags of --data are of no use with --examples: the rows are those of the task")
        found = evaluate_file(arguments.model, arguments.examples, _say)
    from flaxbert.tools.evaluate import show  # JAX comes with it: a mistyped path is told of before

    show(found, arguments.json)
    return DONE


def finetune(arguments: Finetune) -> int:
    from flaxbert.training.signals import stop_requested

    with stop_requested() as stop:
        from flaxbert.finetuning.grid import Stopped
        from flaxbert.finetuning.launch import launch
        from flaxbert.training.compilation import keep_compilations

        for sentence in keep_compilations():
            _say(sentence)
        try:
            launch(arguments, stop, _say)
        except Stopped:
            print("stopped; the runs that had ended are kept: the same command goes on from here", file=sys.stderr)
            return STOPPED
    return DONE


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def predict(arguments: Predict) -> int:
    from flaxbert.finetuning.predict import predict_file

    predict_file(arguments.model, arguments.input, arguments.output, _say)
    return DONE


def embed(arguments: Embed) -> int:
    from flaxbert.tools.embed import embed as run

    flags = dataclasses.asdict(arguments)
    model, source, output = (flags.pop(name) for name in ("model", "input", "output"))
    run(model, source, output, **flags, say=_say)
    return DONE


def fill_mask(arguments: FillMask) -> int:
    from flaxbert.tools.fill_mask import fill_mask as run

    run(arguments.model, list(arguments.texts), top=arguments.top)
    return DONE


def attention(arguments: Attention) -> int:
    from flaxbert.tools.attention import draw_attention

    texts = (arguments.first,) if arguments.second is None else (arguments.first, arguments.second)
    draw_attention(arguments.model, texts, arguments.output, arguments.html)
    return DONE


def report(arguments: Report) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the run that is told of may be using all the devices

    from flaxbert.tools.report import write_report

    write_report(
        arguments.run, arguments.more, arguments.output, joins.unigram_entropy,
        lambda sentence: print(sentence, file=sys.stderr),
    )
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
    "plan": (Plan, plan),
    "doctor": (Doctor, doctor),
    "export": (Export, export),
    "import": (Import, import_),
    "evaluate": (Evaluate, evaluate),
    "finetune": (Finetune, finetune),
    "predict": (Predict, predict),
    "embed": (Embed, embed),
    "fill-mask": (FillMask, fill_mask),
    "attention": (Attention, attention),
    "report": (Report, report),
    "quickstart": (Quickstart, quickstart),
}


# They say on standard output what they have found or done, and nothing is left to do once its reader has gone.
SPEAKERS = ("plan", "doctor", "export", "import", "evaluate", "predict", "fill-mask", "attention", "report")

# They take one step after the other, each in the same memory.
STEPPERS = ("pretrain", "evaluate", "finetune", "predict", "embed", "quickstart")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. A user's error is one sentence, unless `--traceback` is given."""
    with errors_need_no_reader():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
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
        if argv[0] in STEPPERS and accelerator() is None:
            keep_memory_of_steps()  # before there are threads
        kind, run = COMMANDS[argv[0]]
        return run(_parse(kind, argv[0], argv[1:]))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _only_speaks(argv):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
            return DONE
        if traceback:
            raise
        print(f"flaxbert: {_sentence(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("flaxbert: interrupted", file=sys.stderr)
        return 130


def _only_speaks(argv: list[str]) -> bool:
    return not argv or argv[0] in (*SPEAKERS, "--version") or "-h" in argv or "--help" in argv


def _usage() -> str:
    lines = ["usage: flaxbert COMMAND ...", ""]
    lines += [f"  {name:11} {(kind.__doc__ or '').splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    last = "flaxbert COMMAND --help lists a command's flags; --traceback shows where an error arose."
    return "\n".join([*lines, "", last])


def _parse(kind: Any, name: str, argv: list[str]) -> Any:
    """The command's dataclass. An experiment's values are the defaults of the flags that follow its name, and a run's
    the defaults of its evaluation; what follows a bare `--` of prepare is Beam's.
    """
    if kind is Prepare and "--" in argv:
        border = argv.index("--")
        return dataclasses.replace(_parse(kind, name, argv[:border]), beam_flags=tuple(argv[border + 1:]))
    default: Any = None
    if kind in (Pretrain, Plan, Evaluate) and argv and argv[0] not in ("-h", "--help"):
        first = "MODEL" if kind is Evaluate else "EXPERIMENT"
        if argv[0].startswith("-"):
            raise ValueError(f"found {argv[0]} before the {first}: flaxbert {name} {first} {argv[0]} ...")
        if kind is Pretrain:
            default = Pretrain(argv[0], tyro.MISSING, tyro.MISSING, settings=flags.load_experiment(argv[0]))
        elif kind is Plan:
            default = Plan(argv[0], settings=flags.load_experiment(argv[0]))
        else:
            default = Evaluate(argv[0], data=joins.data_of(argv[0]))
    arguments = flags.parse(kind, f"flaxbert {name}", argv, default)
    if kind in (Pretrain, Plan):
        flags.check_effect(arguments.settings, default.settings if default is not None else arguments.settings)
    return arguments


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
