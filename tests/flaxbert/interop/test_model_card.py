"""The card of an export."""

import dataclasses
from typing import Any

import pytest
from huggingface_hub import ModelCard

from data_pipeline.tokenizer import Difference
from flaxbert.config import PRESETS, Experiment, OptimizerConfig, TrainConfig
from flaxbert.interop.model_card import Facts, model_card
from flaxbert.phases import Phase

RESULTS = {"mlm_loss": 3.25, "perplexity": 25.79, "mlm_accuracy": 0.41, "nsp_accuracy": 0.75, "step": 900, "loss": 4.0}


def header(card: str) -> Any:
    return ModelCard(card).data


@pytest.fixture
def facts():
    experiment = Experiment(
        model=dataclasses.replace(PRESETS["tiny"], vocab_size=90),
        optimizer=OptimizerConfig(warmup_steps=10),
        train=TrainConfig(steps=1000),
    )
    corpus = {"name": "tales", "fingerprint": "c0ffee", "train": {"documents": 12_345, "tokens": 678_901}}
    tokenizer, same = {"kind": "unigram", "vocab_size": 90}, Difference("runes", 2000, 0)
    return Facts("fable", experiment, 1000, 4_400_000, corpus, tokenizer, [same], RESULTS)


def test_the_hub_reads_the_header(facts):
    data = header(model_card(facts))
    assert data.library_name == "transformers" and data.pipeline_tag == "fill-mask" and data.model_name == "fable"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        key: value for key, value in RESULTS.items() if key not in ("step", "loss")
    }


def test_no_licence_and_no_language_is_invented(facts):
    data = header(model_card(facts))
    assert data.license is None and data.language is None
    assert header(model_card(facts._replace(corpus={"language": "de"}))).language == "de"


def test_every_setting_stands_in_the_recipe(facts):
    card = model_card(facts)
    for section in dataclasses.fields(facts.experiment):
        settings = getattr(facts.experiment, section.name)
        for field in dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ():
            assert f"| {section.name}.{field.name} |" in card


def test_a_run_of_phases_has_a_row_for_each_setting_and_says_which_length_was_measured(facts):
    phases = (Phase(steps=900), Phase(sequence_length=512, batch_size=32))
    card = model_card(facts._replace(experiment=dataclasses.replace(facts.experiment, phases=phases)))
    assert "| phases.0.steps | 900 |" in card and "| phases.1.sequence_length | 512 |" in card
    assert "at step 900, in sequences of 128 tokens" in card and "Phase(" not in card


def test_corpus_tokenizer_and_results_stand_in_the_card(facts):
    card = model_card(facts)
    for row in ("| train.documents | 12,345 |", "| fingerprint | c0ffee |", "| kind | unigram |"):
        assert row in card
    assert "| masked-token loss (nat) | 3.2500 |" in card and "at step 900" in card
    assert "next-sentence loss" not in card and "commoner" not in card


@pytest.mark.parametrize("pairing, words", [("sop", "sentence order"), ("none", "not trained"), ("nsp", None)])
def test_a_next_sentence_head_that_is_none_is_said_to_be_none(facts, pairing, words):
    data = dataclasses.replace(facts.experiment.data, pairing=pairing)
    card = model_card(facts._replace(experiment=dataclasses.replace(facts.experiment, data=data)))
    assert ("next-sentence head was" in card.replace("were", "was")) == (words is not None)
    assert words is None or words in card


def test_how_often_ids_differ_stands_under_limitations_where_they_do(facts):
    row = "| strings of runes whose ids are not those of the corpus | 0 of 2,000 |"
    assert row in model_card(facts) and "does not read every text" not in model_card(facts)
    card = model_card(facts._replace(differences=[*facts.differences, Difference("marks", 2000, 57)]))
    assert row in card and "| strings of marks whose ids are not those of the corpus | 57 of 2,000 |" in card
    assert "gives other ids to 2.85% of strings of marks." in card.partition("## Limitations")[2]


def test_next_sentence_accuracy_stands_beside_the_majority_label(facts):
    card = model_card(facts._replace(results=RESULTS | {"nsp_random": 0.375}))
    assert "| next-sentence accuracy | 0.7500 |\n| for comparison: always saying the commoner" in card
    assert "label | 0.6250 |" in card


def test_sentence_order_is_not_called_next_sentence(facts):
    data = dataclasses.replace(facts.experiment.data, pairing="sop")
    experiment = dataclasses.replace(facts.experiment, data=data)
    results = RESULTS | {"nsp_loss": 0.5, "nsp_random": 0.375}
    card = model_card(facts._replace(experiment=experiment, results=results))
    table = card.partition("## Results")[2].partition("## Use")[0]
    for row in ("| sentence-order loss (nat) | 0.5000 |", "| sentence-order accuracy | 0.7500 |"):
        assert row in table
    assert "always saying the commoner sentence-order label | 0.6250 |" in table and "next-sentence" not in table
    names = {result.metric_type: result.metric_name for result in header(card).eval_results}
    assert (names["nsp_loss"], names["nsp_accuracy"]) == ("sentence-order loss (nat)", "sentence-order accuracy")


def test_what_later_launches_changed_stands_in_the_recipe(facts):
    changes = (
        {"step": 40, "settings": {"train.steps": [40, 44], "train.eval_batches": [100, None]}},
        {"step": 2_000, "settings": {"train.steps": [44, 1000]}},
    )
    recipe = model_card(facts._replace(changes=changes)).partition("## Recipe")[2].partition("| setting")[0]
    assert recipe.splitlines()[4:-1] == [
        "- From step 40 on, train.steps was 44 instead of 40",
        "- From step 40 on, train.eval_batches was default instead of 100",
        "- From step 2,000 on, train.steps was 1000 instead of 44",
    ]
    assert "From step" not in model_card(facts)


def test_a_run_that_was_never_evaluated_says_so(facts):
    card = model_card(facts._replace(results={}))
    assert "was not evaluated" in card
    assert header(card).eval_results is None


def test_an_unfinished_and_a_small_model_say_so(facts):
    assert "4.4 million parameters it is small" in model_card(facts)
    assert "had not run to its end" in model_card(facts._replace(step=500))
    full = model_card(facts._replace(parameters=110_000_000))
    assert "it is small" not in full and "had not run to its end" not in full


def test_a_value_with_a_bar_or_a_line_break_stays_in_its_cell(facts):
    assert "| kind | a\\|b c |" in model_card(facts._replace(tokenizer={"kind": "a|b\nc"}))
