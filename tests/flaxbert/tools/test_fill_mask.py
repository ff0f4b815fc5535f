"""Filling masks, and the command that prints them."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxbert.tools.fill_mask import fill_mask
from flaxbert.tools.load import Model, load


@pytest.fixture(scope="module")
def model(small_export) -> Model:
    return load(small_export)


def test_guesses_are_the_likeliest_of_the_softmax_at_the_mask(model, small_config):
    text = "The [MASK] sleeps."
    (fills,) = model.fill_mask(text, top=small_config.vocab_size)
    position = model.tokenizer.encode(text).tokens.index("[MASK]")
    expected = np.asarray(jax.nn.softmax(model.logits([text]).mlm[0, position]))
    found = [fill.probability for fill in fills]
    assert found == sorted(found, reverse=True) and sum(found) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose([expected[fill.id] for fill in fills], found, rtol=1e-4)


def test_each_mask_has_guesses_of_its_own(model):
    first, second = model.fill_mask("[MASK] runs to the [MASK], again", top=3)
    assert len(first) == len(second) == 3
    assert all(fill.text.endswith(" runs to the [MASK], again") for fill in first)
    assert all(fill.text.startswith("[MASK] runs") and fill.text.endswith(", again") for fill in second)


def test_the_rest_of_the_text_is_kept_letter_by_letter(model):
    (fills,) = model.fill_mask("ÄÖ  \u00bdÉ [MASK] 😀\tZ", top=90)
    for fill in fills:
        assert fill.text.startswith("ÄÖ  \u00bdÉ") and fill.text.endswith(" 😀\tZ")


def test_words_stand_apart_and_continuations_are_glued_on(model):
    (fills,) = model.fill_mask("the [MASK] sea", top=90)
    pieces = {fill.id: fill for fill in fills}
    tokens = [model.tokenizer.id_to_token(index) for index in range(90)]
    sentencepiece = any(token.startswith("▁") for token in tokens)
    for index in range(5, 90):
        token = tokens[index]
        glued = not token.startswith("▁") if sentencepiece else token.startswith("##")
        word = token.removeprefix("▁").removeprefix("##")
        assert pieces[index].text == f"the{'' if glued else ' '}{word} sea"
        assert pieces[index].token == (token.removeprefix("▁") or "▁")


@pytest.mark.parametrize(
    "text, top, message",
    [
        ("no mask here", 5, "text 'no mask here' has no \\[MASK\\]"),
        ("a [mask] in lower case", 5, "has no \\[MASK\\]"),
        ("[MASK]", 0, r"top 0 is not in \[1, 90\]"),
        ("[MASK]", 91, r"top 91 is not in \[1, 90\]"),
        ("the dog " * 60 + "[MASK]", 5, r"as token \d+ of \d+, and the model reads 48: shorten the text"),
        ("\udcff [MASK]", 5, "is not valid Unicode at character 1"),
    ],
)
def test_a_text_that_cannot_be_filled_is_refused(model, text, top, message):
    with pytest.raises(ValueError, match=message):
        model.fill_mask(text, top)


def test_a_long_text_with_an_early_mask_is_filled(model):
    (fills,) = model.fill_mask("the [MASK] " + "the dog " * 60)
    assert len(fills) == 5


def test_the_command_prints_a_table_for_each_mask(small_export, capsys):
    fill_mask(str(small_export), ["The [MASK] and the [MASK].", "[MASK] [bold]dog[/bold]"], top=2)
    printed = capsys.readouterr().out
    assert "[MASK] 1 of 2" in printed and "[MASK] 2 of 2" in printed
    assert "The [MASK] and the [MASK]." in printed and "[bold]dog[/bold]" in printed
    assert printed.count("probability") == 3


def test_the_command_refuses_before_it_prints(small_export, capsys):
    with pytest.raises(ValueError, match="no \\[MASK\\]"):
        fill_mask(str(small_export), ["[MASK] is fine", "this is not"])
    with pytest.raises(ValueError, match="no text given"):
        fill_mask(str(small_export), [])
    assert capsys.readouterr().out == ""


def test_filling_masks_from_an_export_imports_nothing_heavy(small_export):
    code = (
        "import sys; from flaxbert.tools.fill_mask import fill_mask\n"
        "assert 'jax' not in sys.modules\n"
        f"fill_mask({str(small_export)!r}, ['the [MASK]'])\n"
        "heavy = {'tensorflow', 'torch', 'transformers', 'orbax', 'optax', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
