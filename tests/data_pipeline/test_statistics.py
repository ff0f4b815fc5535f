"""Facts about a prepared corpus against what its batches hold."""

import numpy as np
import pytest
from scipy import stats
from synthetic import built, flat, make_corpus, planned, write_corpus

from data_pipeline import pairing
from data_pipeline.config import DataConfig
from data_pipeline.statistics import unigram_entropy, window_facts
from data_pipeline.store import Corpus, read_block
from data_pipeline.windows import Run


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


def first_window(corpus: Corpus, config: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """The whole of it as one batch."""
    window = planned(corpus, config, seed, 0, 0)
    return built(corpus, config, [Run(window, 0, window.rows)], window.rows)


@pytest.mark.parametrize("length", [16, 128])
@pytest.mark.parametrize("window_tokens", [4_000, 1_000_000])
@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("packing", [1, 4])
def test_window_facts_are_those_of_the_first_window_s_batches(corpus, length, window_tokens, name, packing):
    config = DataConfig(sequence_length=length, window_tokens=window_tokens, pairing=name, packing=packing)
    facts, batch = window_facts(corpus, config, 5), first_window(corpus, config, 5)
    labels = batch["next_sentence_labels"][batch["next_sentence_weights"] > 0]
    if name in ("none", "none-across"):
        assert facts.random_labels is None and not len(labels)
    else:
        assert facts.random_labels == pytest.approx(labels.mean(), rel=1e-6)
    assert facts.fill == pytest.approx((batch["sequence_ids"] > 0).mean(), rel=1e-6)


@pytest.mark.parametrize("packing", [1, 4])
def test_rows_per_epoch_are_exact_for_one_window_and_near_for_several(corpus, packing):
    whole = DataConfig(sequence_length=64, packing=packing)
    rows = planned(corpus, whole, 0, 0, 0).rows
    assert window_facts(corpus, whole, 0).rows_per_epoch == pytest.approx(rows)
    part = window_facts(corpus, DataConfig(sequence_length=64, packing=packing, window_tokens=6_000), 0)
    assert part.rows_per_epoch == pytest.approx(rows, rel=0.15)


def test_facts_of_a_corpus_without_two_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="next-sentence pairs need two"):
        window_facts(make_corpus(tmp_path / "corpus", [[1]]), DataConfig(), 0)


def test_facts_of_a_corpus_without_sequences_are_none(tmp_path):
    """Documents of one token have no second half: there is no label and nothing that fills a row."""
    single = flat([[1]] * 4)._replace(tokens=np.full(4, 9, np.uint16))
    corpus = write_corpus(tmp_path / "corpus", [[single]], vocab_size=100)
    assert window_facts(corpus, DataConfig(pairing="sop"), 0) == (None, 0.0, 0.0)
