"""The attention that `flaxbert attention` draws equals transformers', in padded and in packed rows."""

import numpy as np
import pytest

from flaxbert.tools.attention import attention_probabilities

from .twins import LAYOUTS, TRANSFORMERS, lay_out, sequences, torch, twins

pytestmark = pytest.mark.parity

# Scores are float32 sums of six products of queries and keys, up to some tens in size, of states that differ by some
# 1e-6 in the last layer (tests/parity/test_forward.py); the softmax hands a score's difference on, times at most a
# quarter.
TOLERANCE = 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_attention_weights_equal_those_of_transformers(activation, layout, assert_parity):
    """Theirs on each sequence alone, ours on the rows that hold them all: nothing is taken from outside a sequence."""
    pair = twins(activation)
    batch, places = lay_out(layout)
    ours = np.asarray(attention_probabilities(pair.config, pair.params, batch))
    for sequence, place in zip(sequences(), places, strict=True):
        row, tokens = place.tokens
        expected = their_weights(pair.theirs, sequence)
        found = ours[:, row, :, tokens]
        assert found[..., tokens].shape == expected.shape
        worst = np.abs(found[..., tokens] - expected).max()
        assert_parity("attention weights", TRANSFORMERS, worst, TOLERANCE)
        outside = np.delete(found, np.arange(tokens.start, tokens.stop), axis=-1)
        assert not outside.any(), "a token takes nothing of another sequence, nor of padding"


def their_weights(model, sequence):
    """[L, H, S, S] of a sequence alone."""
    ids, segments = (torch.tensor(sequence[name])[None] for name in ("input_ids", "segment_ids"))
    with torch.no_grad():
        layers = model.bert(ids, token_type_ids=segments, output_attentions=True).attentions
    return np.concatenate([layer.numpy() for layer in layers])
