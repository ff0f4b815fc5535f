"""The data as a whole against the reference in plain loops: 100,000 sequences of ours, drawn, assembled and masked, and
thousands of the reference's under its own dice, have the same distributions.
"""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import reference
from scipy import stats
from synthetic import IDS, nested, text_like, with_tokens, word_pieces

from data_pipeline import assembly, masking, pairing, randomness
from data_pipeline.candidates import Candidates
from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.packing import Rows
from data_pipeline.prepare import prepare
from data_pipeline.sequences import Sequences
from data_pipeline.store import Documents, join, open_corpus, read_block
from data_pipeline.stream import vocabulary_of
from data_pipeline.word_starts import word_starts

P_VALUE = 0.01  # seeds are fixed: what agrees now agrees for good
OURS, ROWS_AT_ONCE = 100_000, 2_000
Facts = dict[str, np.ndarray]


class Text(NamedTuple):
    """Documents, what masking knows of their tokens, and how many passes of the reference over them are affordable."""

    documents: Documents
    vocabulary: masking.Vocabulary
    passes: int


@functools.cache
def synthetic_text() -> Text:
    rng, pieces = np.random.default_rng(0), word_pieces(2_000)
    ids = {name: IDS[name] for name in ("cls_id", "sep_id", "mask_id")}
    vocabulary = masking.Vocabulary(len(pieces), **ids, word_starts=word_starts("wordpiece", pieces))
    return Text(with_tokens(text_like("encyclopedia", 1000, seed=0), rng, len(pieces)), vocabulary, 4)


@pytest.fixture(scope="module")
def encyclopedia(shared_data: Path, tmp_path_factory) -> Text:
    """107 articles in the pieces of BERT's own uncased vocabulary."""
    source, vocabulary = shared_data / "corpus-enwiki2015/valid.txt", shared_data / "vocab/bert-base-uncased-vocab.txt"
    if not source.is_file() or not vocabulary.is_file():
        pytest.skip(f"no encyclopedia text or no vocabulary in {shared_data}")
    folder = tmp_path_factory.mktemp("faithfulness") / "corpus"
    prepare(PrepareConfig(str(vocabulary), validation_fraction=0), [str(source)], str(folder), 1, progress=False)
    corpus = open_corpus(folder)
    documents = join([read_block(corpus, block) for block in corpus.blocks["train"]])
    return Text(documents, vocabulary_of(corpus, DataConfig(masking="whole-word")), 40)


# --- ours ------------------------------------------------------------------------------------------------------------


def ours(text: Text, config: DataConfig, seed: int) -> Facts:
    """One sequence of each document and pass, so that all are independent of each other."""
    passes = -(-OURS // (len(text.documents.document_offsets) - 1))
    parts = [_pass_of_ours(text.documents, config, seed, number) for number in range(passes)]
    sequences = Sequences(*np.concatenate([picked for picked, _ in parts], axis=1))
    facts = {name: np.concatenate([whole[name] for _, whole in parts]) for name in parts[0][1]}
    masks = [
        _masks_of_ours(text, Sequences(*(array[n : n + ROWS_AT_ONCE] for array in sequences)), config, seed + n)
        for n in range(0, len(sequences.a_start), ROWS_AT_ONCE)
    ]
    return facts | _facts_of_pairs(*sequences[1::2], sequences.next_sentence_labels) | {
        name: np.concatenate([each[name] for each in masks]) for name in masks[0]
    }  # fmt: skip


def _pass_of_ours(documents: Documents, config: DataConfig, seed: int, number: int) -> tuple[Sequences, Facts]:
    """(a sequence of each document, what each document gives as a whole)."""
    pairs = pairing.next_sentence_pairs(documents, config, randomness.key(seed, number, 1))
    first = documents.sentence_offsets[documents.document_offsets]
    begin = np.searchsorted(pairs.a_start, first)  # of each document's sequences
    count = np.diff(begin)
    picked = begin[:-1] + randomness.integers(randomness.key(seed, number, 2), np.arange(len(count)), count)
    randoms, tokens = (
        np.add.reduceat(each, begin[:-1]) for each in (pairs.next_sentence_labels, pairs.lengths)
    )
    whole = _facts_of_document(count, randoms, tokens, config)
    return Sequences(*(array[picked] for array in pairs)), whole


def _facts_of_document(count: np.ndarray, randoms: np.ndarray, tokens: np.ndarray, config: DataConfig) -> Facts:
    return {
        "sequences of a document": count,
        "label 1 in a document": randoms,
        "fill of a document's rows": tokens / (count * config.sequence_length),
    }


def _facts_of_pairs(a_length: np.ndarray, b_length: np.ndarray, label: np.ndarray) -> Facts:
    return {
        "length of A": a_length,
        "length of B": b_length,
        "length of a sequence": a_length + b_length + 3,
        "label": label,
        "length where the label is 1": (a_length + b_length)[label == 1],
    }


def _masks_of_ours(text: Text, sequences: Sequences, config: DataConfig, seed: int) -> Facts:
    """Assembles and masks the sequences."""
    count, special = len(sequences.a_start), [text.vocabulary.cls_id, text.vocabulary.sep_id]
    rows, key = Rows(np.arange(count), np.arange(count + 1)), randomness.key(seed)
    window = assembly.window_of(text.documents.tokens, tuple(special), sequences, rows, key, config.sequence_length)
    batch, layout = assembly.assemble(window, 0, count, config.sequence_length, config.packing)
    keys = randomness.bits(window.mask_key, np.arange(count))
    found = masking.mask(batch, layout, keys, text.vocabulary, config)

    eligible = (batch["sequence_ids"] > 0) & ~np.isin(batch["input_ids"], special)
    opens = eligible.copy()
    if config.masking == "whole-word":
        opens[:, 1:] &= text.vocabulary.word_starts[batch["input_ids"]][:, 1:] | ~eligible[:, :-1]
    quota = masking.predictions_of_length(config)[layout.length]
    chosen = np.zeros(eligible.shape, bool)
    row, slot = np.nonzero(found["masked_weights"])
    chosen[row, found["masked_positions"][row, slot]] = True
    # Candidates in the order in which they were drawn, row by row, up to the one that filled the quota.
    cells, counts = Candidates(eligible, layout, quota, keys, config.packing).shuffled(opens)
    words = (opens & chosen).sum(axis=1)
    drawn = np.split(chosen.ravel()[cells], np.cumsum(counts)[:-1])
    predictions = chosen.sum(axis=1)
    skipped = [
        int((~taken[: np.flatnonzero(taken)[-1]]).sum()) if full else int((~taken).sum())
        for taken, full in zip(drawn, predictions == quota)
    ]
    now = np.take_along_axis(found["input_ids"], found["masked_positions"], axis=1)[row, slot]
    positions = found["masked_positions"][row, slot]
    return _facts_of_masks(
        np.stack([predictions, words, skipped, layout.length]), row,
        np.stack([positions, now, found["masked_ids"][row, slot], opens[row, positions]]), text.vocabulary, seed,
    )  # fmt: skip


def _facts_of_masks(
    per_sequence: np.ndarray, row: np.ndarray, per_prediction: np.ndarray, vocabulary: masking.Vocabulary, seed: int
) -> Facts:
    """From (predictions, words, skipped words, length) of each sequence [4, n], and for each prediction the number of
    its sequence [p] and (position, new token, old token, whether it opens a word) [4, p], in reading order.
    """
    (count, words, skipped, length), (positions, now, was, opens) = per_sequence, per_prediction
    masked = now == vocabulary.mask_id
    kind = np.select([masked, now == was], [0, 1], 2)
    begin = np.cumsum(count) - count
    goes_on = (opens == 0) & (np.diff(positions, prepend=-9) == 1)
    # One of each sequence: the places of its predictions hang together by its length.
    some = (begin + np.random.default_rng(seed).integers(0, np.maximum(count, 1)))[count > 0]
    return {
        "predictions": count,
        "predicted words": words,
        "skipped words": skipped,
        "masks in a sequence": np.bincount(row, masked, len(count)),
        "a chosen position": positions[some],
        "the first chosen position": positions[begin[count > 0]],
        "where in their sequence words are chosen": (positions / length[row])[opens > 0],
        "mask kinds": kind,
        # Each token of a word has a kind of its own.
        "mask kinds of a word's neighbours": (3 * kind + np.roll(kind, 1))[goes_on],
        "drawn ids": now[kind == 2],
    }


# --- theirs ----------------------------------------------------------------------------------------------------------


class RecordingDice(reference.Dice):
    """Remembers the last order of candidates."""

    def order(self, candidates: list[list[int]]) -> list[list[int]]:
        self.drawn = super().order(candidates)
        return self.drawn


Mask = Callable[[list[int], Text, DataConfig, RecordingDice], reference.Masked]


def by_the_reference(tokens: list[int], text: Text, config: DataConfig, dice: RecordingDice) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    return reference.mask(
        tokens, candidates_of(tokens, text, config), wanted, text.vocabulary.mask_id, text.vocabulary.size, dice
    )


def candidates_of(tokens: list[int], text: Text, config: DataConfig) -> list[list[int]]:
    special, starts = (text.vocabulary.cls_id, text.vocabulary.sep_id), text.vocabulary.word_starts
    if config.masking == "token":
        return reference.token_candidates(tokens, special)
    return reference.word_candidates(tokens, special, lambda token: not starts[token])


def theirs(text: Text, config: DataConfig, seed: int, mask: Mask = by_the_reference) -> Facts:
    """The same facts, drawn by the reference with a generator of its own."""
    documents, rng = nested(text.documents), random.Random(seed)
    dice = RecordingDice(rng)
    wholes, pairs, masks = [], [], []
    for index in [*range(len(documents))] * text.passes:
        drawn = reference.pairs_of_document(
            documents, index, config.sequence_length, config.short_sequence_probability, dice
        )
        lengths = [len(pair.a) + len(pair.b) + 3 for pair in drawn]
        wholes.append((len(drawn), sum(pair.is_random for pair in drawn), sum(lengths)))
        pair = drawn[rng.randrange(len(drawn))]
        pairs.append((len(pair.a), len(pair.b), int(pair.is_random)))
        tokens, _ = reference.assembled(pair, text.vocabulary.cls_id, text.vocabulary.sep_id)
        masks.append(_numbers_of_mask(tokens, mask(tokens, text, config, dice), text, config, dice))
    per_sequence = np.array([numbers for numbers, _ in masks]).T
    row = np.repeat(np.arange(len(masks)), per_sequence[0])
    per_prediction = np.concatenate([np.array(each).reshape(-1, 4) for _, each in masks]).T
    return (
        _facts_of_document(*np.array(wholes).T, config)
        | _facts_of_pairs(*np.array(pairs).T)
        | _facts_of_masks(per_sequence, row, per_prediction, text.vocabulary, seed)
    )


def _numbers_of_mask(
    tokens: list[int], masked: reference.Masked, text: Text, config: DataConfig, dice: RecordingDice
) -> tuple[tuple[int, int, int, int], list[tuple[int, int, int, bool]]]:
    """(predictions, words, skipped words, length), and (position, new token, old token, whether it opens a word) of
    each prediction.
    """
    chosen, starts = set(masked.positions), {word[0] for word in candidates_of(tokens, text, config)}
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    left, skipped = wanted, 0
    for candidate in dice.drawn:
        if not left:
            break
        taken = candidate[0] in chosen
        left, skipped = left - len(candidate) * taken, skipped + (not taken)
    predictions = [
        (position, masked.tokens[position], label, position in starts)
        for position, label in zip(masked.positions, masked.labels)
    ]
    return (len(chosen), len(chosen & starts), skipped, len(tokens)), predictions


# --- the comparison --------------------------------------------------------------------------------------------------


def p_values(first: Facts, second: Facts) -> dict[str, float]:
    """Chi-square for all that is counted, Kolmogorov-Smirnov for what has many values."""
    found = {name: reference.difference(first[name], second[name]) for name in first}
    smooth = [name for name in first if "length" in name or "chosen" in name or "fill" in name]
    return found | {f"{name}, KS": stats.ks_2samp(first[name], second[name]).pvalue for name in smooth}


def assert_the_same_distributions(text: Text, length: int, kind: str) -> None:
    config = DataConfig(sequence_length=length, masking=kind)
    found = ours(text, config, seed=1)
    assert len(found["label"]) >= OURS
    values = p_values(found, theirs(text, config, seed=2))
    # One bound for all: the chance that the smallest of so many p-values is this small.
    assert min(values.values()) * len(values) > P_VALUE, values
    # And against what the reference says outright: a drawn id is now and then [MASK] or what stood there.
    kinds, size = np.bincount(found["mask kinds"], minlength=3), text.vocabulary.size
    assert np.abs(kinds / kinds.sum() - (0.8, 0.1, 0.1)).max() < 4 * np.sqrt(0.16 / kinds.sum()) + 0.2 / size


@pytest.mark.parametrize("kind", ["token", "whole-word"])
@pytest.mark.parametrize("length", [128, 512])
def test_sequences_and_masks_are_distributed_as_the_reference_s(length, kind):
    assert_the_same_distributions(synthetic_text(), length, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["token", "whole-word"])
@pytest.mark.parametrize("length", [128, 512])
def test_of_an_encyclopedia_sequences_and_masks_are_distributed_as_the_reference_s(encyclopedia, length, kind):
    assert_the_same_distributions(encyclopedia, length, kind)


@pytest.mark.parametrize("length", [128, 512])
def test_of_an_encyclopedia_the_balanced_label_cannot_be_told_from_anything_but_the_text(encyclopedia, length):
    """With the thousand pairs that so little text makes at 512, too, where partners of one length are few."""
    config = DataConfig(sequence_length=length)
    passes: list[Sequences] = []
    while sum(len(each.a_start) for each in passes) < 100_000:
        key = randomness.key(7, len(passes))
        passes.append(pairing.balanced_next_sentence_pairs(encyclopedia.documents, config, key))
    pairs = Sequences(*np.concatenate([np.stack(each) for each in passes], axis=1))
    seen = reference.seen_of_pairs(encyclopedia.documents, pairs)
    values = {fact: reference.difference_between_labels(seen[fact], pairs.next_sentence_labels) for fact in seen}
    assert min(values.values()) * len(values) > P_VALUE, values


# --- what the comparison would notice --------------------------------------------------------------------------------


def cut_instead_of_skipped(tokens: list[int], text: Text, config: DataConfig, dice: RecordingDice) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens), config.mask_rate, config.predictions_per_row)
    order = dice.order(candidates_of(tokens, text, config))
    flat = [position for candidate in order for position in candidate][:wanted]
    return reference._replaced(tokens, dict(zip(flat, flat)), text.vocabulary.mask_id, text.vocabulary.size, dice)


def one_kind_for_a_word(tokens: list[int], text: Text, config: DataConfig, dice: RecordingDice) -> reference.Masked:
    masked = by_the_reference(tokens, text, config, dice)
    first = {position: word[0] for word in candidates_of(tokens, text, config) for position in word}
    chosen = {position: first[position] for position in masked.positions}
    return reference._replaced(tokens, chosen, text.vocabulary.mask_id, text.vocabulary.size, dice)


def special_tokens_not_counted(
    tokens: list[int], text: Text, config: DataConfig, dice: RecordingDice
) -> reference.Masked:
    wanted = reference.number_to_predict(len(tokens) - 3, config.mask_rate, config.predictions_per_row)
    candidates = candidates_of(tokens, text, config)
    return reference.mask(tokens, candidates, wanted, text.vocabulary.mask_id, text.vocabulary.size, dice)


def never_kept(tokens: list[int], text: Text, config: DataConfig, dice: RecordingDice) -> reference.Masked:
    masked = by_the_reference(tokens, text, config, dice)
    for position, label in zip(masked.positions, masked.labels):
        if masked.tokens[position] == label:
            masked.tokens[position] = dice.token(position, text.vocabulary.size)
    return masked


@pytest.fixture(scope="module")
def whole_words() -> Facts:
    return ours(synthetic_text(), DataConfig(masking="whole-word"), seed=1)


@pytest.mark.parametrize(
    "fault", [cut_instead_of_skipped, one_kind_for_a_word, special_tokens_not_counted, never_kept],
    ids=lambda fault: fault.__name__,
)  # fmt: skip
def test_the_comparison_would_notice(whole_words, fault):
    broken = theirs(synthetic_text(), DataConfig(masking="whole-word"), seed=2, mask=fault)
    values = p_values(whole_words, broken)
    assert min(values.values()) * len(values) < P_VALUE / 10, values
