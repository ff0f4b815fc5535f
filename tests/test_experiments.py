"""The recipes: each can be run by its name, says how, and holds the figures of its source."""

import importlib
import pathlib

import pytest

from flaxbert.config import Experiment, OptimizerConfig
from flaxbert.flags import load_experiment
from flaxbert.phases import curves, parts

NAMES = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / "experiments").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_by_its_name_and_says_how_it_is_run(name):
    assert isinstance(load_experiment(name), Experiment)
    said = importlib.import_module(f"experiments.{name}").__doc__
    assert f"flaxbert pretrain {name} --corpus CORPUS --workdir RUN" in said.splitlines()


@pytest.mark.parametrize("field", ["name", "decay_from", "decay_power", "final_fraction", "weight_decay", "clip_norm"])
def test_an_option_of_the_optimizer_enters_with_a_recipe_that_varies_it(field):
    found = {getattr(load_experiment(name).optimizer, field) for name in NAMES}
    assert found > {getattr(OptimizerConfig(), field)}


def test_every_optimizer_has_its_recipe():
    assert {load_experiment(name).optimizer.name for name in NAMES} == {"adam", "adamw", "lamb"}


def test_the_recipe_for_large_batches_has_the_published_figures():
    """NVIDIA's: 7,038 steps of 65,536, warm-up 0.2843, then 1,563 of 32,768, warm-up 0.128; a warm-up is over at the
    first whole step behind its share.
    """
    recipe = load_experiment("bert_large_lamb")
    first, second = parts(recipe)
    for part, curve, steps, rows, share, peak, predictions, length in (
        (first, curves(recipe)[0], 7038, 65_536, 0.2843, 6e-3, 20, 128),
        (second, curves(recipe)[1], 1563, 32_768, 0.128, 4e-3, 80, 512),
    ):
        data = part.experiment.data
        assert part.last_step - part.first_step == curve.last_step - curve.first_step == steps
        assert part.experiment.train.batch_size == rows
        assert curve.optimizer.warmup_steps - 1 < share * steps <= curve.optimizer.warmup_steps
        assert curve.optimizer.learning_rate == peak
        assert (data.predictions_per_row, data.sequence_length) == (predictions, length)


def test_the_paper_trains_nine_tenths_of_the_steps_at_128_and_the_rest_at_512():
    recipe = load_experiment("bert_base_phases")
    assert [(part.last_step, part.experiment.data.sequence_length) for part in parts(recipe)] == [
        (900_000, 128), (1_000_000, 512)
    ]  # fmt: skip
    assert len(curves(recipe)) == 1, "one curve over both"


def test_the_recipe_of_mosaicbert_has_the_published_figures():
    recipe = load_experiment("bert_base_mosaic")
    assert recipe.train.steps * recipe.train.batch_size == 286_720_000
    assert recipe.optimizer.warmup_steps == 0.06 * recipe.train.steps
    shrinking = recipe.optimizer.learning_rate * recipe.optimizer.weight_decay
    assert shrinking == pytest.approx(1e-5), "of a weight in a step at the peak rate"
