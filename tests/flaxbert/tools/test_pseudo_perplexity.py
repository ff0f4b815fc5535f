"""Pseudo-perplexity against a row at a time, a token at a time."""

import math

import numpy as np
import pytest

from flaxbert.tools import pseudo_perplexity as tool
from flaxbert.tools.load import everything, load

IDS = ("segment_ids", "sequence_ids", "position_ids")


@pytest.fixture(scope="module")
def model(small_export):
    return load(small_export)


@pytest.fixture(scope="module")
def whole(model):
    """Three rows of 24 tokens before they are masked, the last one with padding."""
    generator = np.random.default_rng(0)
    cls, sep = (model.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    ids = generator.integers(5, model.config.vocab_size, (3, 24)).astype(np.int32)
    ids[:, 0], ids[:, -1], ids[2, 9] = cls, sep, sep
    sequences = np.ones_like(ids)
    ids[2, 10:], sequences[2, 10:] = 0, 0
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), ids.shape)
    return {"input_ids": ids, "sequence_ids": sequences, "segment_ids": np.zeros_like(ids), "position_ids": positions}


@pytest.fixture(scope="module")
def batch(model, whole):
    """The same as the stream gives them: some tokens masked, with a place for predictions that is not used."""
    masked = whole | {"masked_positions": np.array([[3, 7, 0], [1, 2, 22], [4, 0, 0]], np.int32)}
    masked["masked_weights"] = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    masked["masked_ids"] = np.take_along_axis(whole["input_ids"], masked["masked_positions"], 1)
    masked["input_ids"] = whole["input_ids"].copy()
    for row, place in zip(*np.nonzero(masked["masked_weights"])):
        masked["input_ids"][row, masked["masked_positions"][row, place]] = model.tokenizer.token_to_id("[MASK]")
    masked["masked_ids"][masked["masked_weights"] == 0] = 0
    return masked


def expected(model, whole, rows):
    """(the sum of log probabilities, how many), each from a batch of its own."""
    total, count = 0.0, 0
    for row in range(rows):
        last = int(whole["sequence_ids"][row].sum()) - 1
        for place in range(1, last):
            ids = whole["input_ids"][row].copy()
            true, ids[place] = ids[place], model.tokenizer.token_to_id("[MASK]")
            one = {"input_ids": ids[None], "masked_positions": np.array([[place]])}
            one |= {name: whole[name][row][None] for name in IDS}
            logits = everything(model, one)["mlm"][0, 0].astype(np.float64)
            total += logits[true] - math.log(np.exp(logits - logits.max()).sum()) - logits.max()
            count += 1
    return total, count


@pytest.mark.parametrize("rows, tokens", [(1, 22), (3, 52), (9, 52)])
def test_each_token_is_guessed_from_all_the_others(model, whole, batch, rows, tokens, monkeypatch):
    monkeypatch.setattr(tool, "_AT_ONCE", 8)  # 22 places: the last chunk is not full
    total, count = expected(model, whole, min(rows, 3))
    found = tool.pseudo_perplexity(model, iter([batch]), rows)
    assert found["pseudo_perplexity_tokens"] == count == tokens
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-5)


def test_without_a_token_there_is_no_perplexity(model):
    with pytest.raises(ValueError, match="there is no token to guess"):
        tool.pseudo_perplexity(model, iter([]), 4)
    with pytest.raises(ValueError, match="BertModel: it lacks the masked-language-model head"):
        tool.pseudo_perplexity(model._replace(params={}, architecture="BertModel"), iter([]), 4)
