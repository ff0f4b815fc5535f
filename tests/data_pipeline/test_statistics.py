"""Facts about a prepared corpus against what its batches hold."""

import numpy as np
import pytest
from scipy import stats
from synthetic import make_corpus

from data_pipeline import stream
from data_pipeline.config import DataConfig
from data_pipeline.statistics import unigram_entropy, window_facts
from data_pipeline.store import read_block


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("statistics") / "corpus", [[40, 40], [40, 40, 40]], vocab_size=300)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_unigram_entropy_is_that_of_the_token_frequencies_in_nats(corpus, split):
    tokens = np.concatenate([read_block(corpus, block).tokens for block in corpus.blocks[split]])
    expected = stats.entropy(np.unique(tokens, return_counts=True)[1])
    assert unigram_entropy(corpus, split) == pytest.approx(expected, rel=1e-12)


def test_an_empty_split_has_no_entropy(tmp_path):
    assert unigram_entropy(make_corpus(tmp_path / "corpus", [[3]], validation=[]), "validation") == 0


@pytest.mark.parametrize("length", [16, 128])
@pytest.mark.parametrize("window_tokens", [4_000, 1_000_000])
def test_window_facts_are_those_of_the_first_window_s_batches(corpus, length, window_tokens):
    config, seed = DataConfig(sequence_length=length, window_tokens=window_tokens), 5
    facts = window_facts(corpus, config, seed)
    window = stream.plan_window(corpus, config, "train", seed, 0, 0)
    batch = stream._build([(window, 0, window.rows)], corpus, config, window.rows)
    assert facts.random_labels == pytest.approx(batch["next_sentence_labels"].mean(), rel=1e-6)
    assert facts.fill == pytest.approx((batch["sequence_ids"] > 0).mean(), rel=1e-6)


def test_rows_per_epoch_are_exact_for_one_window_and_near_for_several(corpus):
    whole = DataConfig(sequence_length=64)
    rows = stream.plan_window(corpus, whole, "train", 0, 0, 0).rows
    assert window_facts(corpus, whole, 0).rows_per_epoch == pytest.approx(rows)
    part = window_facts(corpus, DataConfig(sequence_length=64, window_tokens=6_000), 0)
    assert part.rows_per_epoch == pytest.approx(rows, rel=0.15)


def test_facts_of_a_corpus_without_two_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="next-sentence pairs need two"):
        window_facts(make_corpus(tmp_path / "corpus", [[1]]), DataConfig(), 0)
