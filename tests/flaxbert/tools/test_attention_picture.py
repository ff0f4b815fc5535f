"""`flaxbert attention`: the weights are those of the model, the picture and the page show them."""

import html.parser
import io
import re

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from flaxbert import cli
from flaxbert.model.encoder import Encoder
from flaxbert.tools.attention import Attention, attention_of, attention_probabilities
from flaxbert.tools.attention_picture import colour_table, draw
from flaxbert.tools.load import load
from flaxbert.tools.texts import tokenize

PAIR = ("the quick brown fox", "rivers run to <the> sea")


def test_rows_add_up_to_one_and_nothing_looks_at_padding(small_export):
    model = load(small_export)
    batch, mask = tokenize(model.tokenizer, ["the fox", "rivers run to the sea and the sea is never full"], None, 48)
    weights = np.asarray(attention_probabilities(model.config, model.params, batch))
    assert weights.shape == (3, 2, 4, mask.shape[1], mask.shape[1])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    short = int(mask[0].sum())
    assert short < mask.shape[1] and weights[:, 0, :, :short, short:].max() == 0


def test_the_layers_that_are_given_end_in_what_the_encoder_gives(small_export):
    """The weights are computed from these states."""
    model = load(small_export)
    batch, _ = tokenize(model.tokenizer, [PAIR], None, 48)
    last, states = (
        Encoder(model.config, True, jnp.float32, keeps_layers=keeps).apply({"params": model.params["encoder"]}, batch)
        for keeps in (False, True)
    )
    assert states.shape == (4, *last.shape)
    np.testing.assert_allclose(states[-1], last, rtol=1e-5, atol=1e-5)


def test_a_pair_is_drawn_and_the_page_needs_no_network(small_export, tmp_path):
    picture, page = tmp_path / "a.svg", tmp_path / "a.html"
    command = ["attention", str(small_export), *PAIR, "--output", str(picture), "--html", str(page)]
    assert cli.main(command) == cli.DONE
    drawn = picture.read_text()
    assert "layer 3" in drawn and "head 4" in drawn
    text = page.read_text(encoding="utf-8")
    html.parser.HTMLParser().feed(text)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text) and "<the>" not in text
    found = attention_of(load(small_export), PAIR, "x")
    assert found.tokens[0] == "[CLS]" and found.segments[-1] == 1
    assert found.weights.shape == (3, 4, len(found.tokens), len(found.tokens))


def test_a_head_that_spreads_its_attention_is_not_one_flat_colour():
    """Each map has a scale of its own, whose end it says, however sharp another head is."""
    weights = np.zeros((2, 1, 4, 4), np.float32)
    weights[0, 0], weights[1, 0] = np.eye(4), [[0.2, 0.3, 0.25, 0.25]] * 4
    picture, _ = draw(Attention("t", list("abcd"), [0] * 4, weights), "png")
    pixels = matplotlib.image.imread(io.BytesIO(picture))[:, :, :3]
    drawn = set(map(tuple, np.unique(np.round(255 * pixels).astype(int).reshape(-1, 3), axis=0).tolist()))
    table = [tuple(map(int, each)) for each in colour_table()]
    shares = [0.0, 1.0, 0.2 / 0.3, 0.25 / 0.3]
    assert all(drawn & set(table[max(0, round(255 * share) - 2):round(255 * share) + 3]) for share in shares)
    vectors, _ = draw(Attention("t", list("abcd"), [0] * 4, weights), "svg")
    assert b"max 1.00" in vectors and b"max 0.30" in vectors


@pytest.mark.parametrize("arguments, words", [
    (("",), "a text is empty"), (("sea " * 100,), "the model reads 48: shorten it"),
    (("the fox", "--output", "a.gif"), ".png"), (("the fox", "--html", "a.txt"), ".html"),
    (("the fox", "--output", "no/such/a.png"), "no"),
])  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence(small_export, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["attention", str(small_export), *arguments]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []
