"""`flaxbert report`: one page on a run, be it at its end or under way."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flaxbert.tools.folders import is_search
from flaxbert.tools.outputs import check_output, write_output
from flaxbert.tools.report_masks import Filled, fill_masks
from flaxbert.tools.report_metrics import History, read_history
from flaxbert.tools.report_tuning import Tuning, read_tuning
from flaxbert.training.run import RunConfig, read_run


class Report(NamedTuple):
    """All that the page is made of."""

    name: str
    run: RunConfig
    history: History
    parameters: int
    floor: float | None
    """The unigram entropy of the held-out text in nats."""
    filled: list[Filled]
    tuned: list[Tuning]


def write_report(
    folder: str, tuned: tuple[str, ...], output: str, floor_of: Callable[[RunConfig], float | None],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Writes the page on the run of `folder` and on the fine-tuning folders `tuned`.

    `floor_of` gives the unigram entropy of a run's held-out text in nats, or None. Raises ValueError for a folder that
    is not what it should be and for a page that cannot be written: before anything slow is begun.
    """
    check_output("--output", output, (".html", ".htm"))
    path = Path(folder)
    if is_search(path):
        raise ValueError(
            f"{folder} is the folder of flaxbert finetune, and the first folder is to be that of a pretraining run; "
            f"expected: flaxbert report RUN {folder}"
        )
    run = read_run(folder)
    tables = [read_tuning(each) for each in tuned]
    history, filled = read_history(path, run), fill_masks(path, say)
    name = path.resolve().name
    report = Report(name, run, history, _parameters(run), floor_of(run), filled, tables)

    from flaxbert.tools.report_page import write_page

    write_output("--output", output, write_page(report).encode("utf-8"))
    print(f"written: {output}")


def _parameters(run: RunConfig) -> int:
    import jax

    from flaxbert.interop.architectures import Checkpoint, parameter_count
    from flaxbert.model.pretraining import initialize

    model = run.experiment.model
    return parameter_count(Checkpoint(model, jax.eval_shape(lambda: initialize(model, jax.random.key(0)))))
