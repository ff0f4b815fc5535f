"""Rows, their labels and their batches."""

import numpy as np
import pytest

from flaxbert.finetuning.batching import batches, bucket_lengths, steps_per_epoch
from flaxbert.finetuning.encoding import count_cut, encode, pair_lengths
from flaxbert.finetuning.examples import Choice, Examples, TaggedExample, TextExample
from flaxbert.finetuning.predictions import place_logits, predictions
from flaxbert.finetuning.tagging import entities, join_tags
from flaxbert.finetuning.tasks import TASKS

WORDS = "The quick brown fox jumps over the lazy dog and sleeps".split()
CLASSES = TASKS["classification"]


def texts(*items, labels=("0", "1")):
    return Examples("file", [TextExample(str(n), *item) for n, item in enumerate(items)], labels)


def tagged(*sentences, labels=("A", "B")):
    items = [
        TaggedExample(str(n), tuple(words), tuple(labels[len(word) % 2] for word in words))
        for n, words in enumerate(sentences)
    ]
    return Examples("file", items, labels)


def test_rows_wrap_a_text_and_a_pair_as_the_exported_tokenizer_does(rust):
    first, second = "The quick fox runs.", "Lists are mutable"
    single, pair = encode(texts((first, None, "1")), CLASSES, rust), encode(texts((first, second, "0")), CLASSES, rust)
    for (feature,), expected, label in ((single, rust.encode(first), 1), (pair, rust.encode(first, second), 0)):
        (batch,) = batches([feature], 1, shuffle=False)
        size = len(expected.ids)
        assert batch["input_ids"][0, :size].tolist() == expected.ids
        assert batch["segment_ids"][0, :size].tolist() == expected.type_ids
        assert batch["sequence_ids"][0].tolist() == [1] * size + [0] * (32 - size)
        assert batch["position_ids"][0].tolist() == [*range(size), *[0] * (32 - size)]
        assert batch["cls_positions"].tolist() == [[0]] and feature.label == label


def test_the_name_of_a_special_token_in_a_text_is_text(rust):
    (feature,) = encode(texts(("a [SEP] b [MASK]", None, "0")), CLASSES, rust)
    special = {rust.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]")}
    assert special.isdisjoint(feature.rows[0].input_ids[1:-1].tolist())
    assert rust.token_to_id("[SEP]") in rust.encode("a [SEP] b").ids[1:-1], "the tokenizer is left as it was"


@pytest.mark.parametrize("room", range(8))
def test_a_pair_loses_tokens_from_the_longer_text_as_the_reference_cuts_it(room):
    for first in range(9):
        for second in range(9):
            a, b = list(range(first)), list(range(second))
            while len(a) + len(b) > room:
                (a if len(a) > len(b) else b).pop()
            assert pair_lengths(first, second, room) == (len(a), len(b))


def test_a_long_text_loses_its_end_and_a_long_pair_that_of_the_longer(rust):
    long, short = " ".join(WORDS), "fox"
    ids = rust.encode(long, add_special_tokens=False).ids
    (single,) = encode(texts((long, None, "0")), CLASSES, rust, max_length=8)
    assert single.rows[0].input_ids[1:-1].tolist() == ids[:6]
    (pair,) = encode(texts((long, short, "0")), CLASSES, rust, max_length=12)
    own = rust.encode(short, add_special_tokens=False).ids
    row = pair.rows[0]
    assert row.input_ids[row.first_length:-1].tolist() == own and len(row.input_ids) == 12
    assert row.input_ids[1:row.first_length - 1].tolist() == ids[:9 - len(own)]


def test_a_length_without_room_is_refused(rust, refuses):
    refuses("max_length 4 leaves no room for a pair", encode, texts(("a", "b", "0")), CLASSES, rust, max_length=4)
    refuses("max_length 2 leaves no room for a word", encode, tagged(["a"]), TASKS["ner"], rust, max_length=2)
    refuses("max_length 67 leaves no room for a context beside a question of 64 tokens: expected at least 68", encode,
            texts(), TASKS["squad"], rust, max_length=67)  # fmt: skip


def test_the_first_piece_of_a_word_bears_its_tag(rust):
    examples = tagged(WORDS)
    (feature,) = encode(examples, TASKS["tagging"], rust)
    pieces = [rust.encode(word, add_special_tokens=False).ids for word in WORDS]
    assert max(map(len, pieces)) > 1
    assert feature.rows[0].input_ids[1:-1].tolist() == [index for word in pieces for index in word]
    expected = [label for word, ids in zip(WORDS, pieces) for label in [len(word) % 2] + [-1] * (len(ids) - 1)]
    assert feature.label.tolist() == [-1, *expected, -1]
    assert feature.words[feature.words >= 0].tolist() == list(range(len(WORDS)))


@pytest.mark.parametrize("max_length", [3, 5, 12, 128])
def test_every_word_of_every_sentence_has_a_tag_however_long_it_is(rust, max_length):
    sentences = [WORDS * 3, ["\u200b", "fox"], ["dog"], ["supercalifragilistic" * 10, "a"]]
    examples = tagged(*sentences)
    features = encode(examples, TASKS["tagging"], rust, max_length)
    assert max(feature.length for feature in features) <= max_length
    logits = [np.eye(2)[np.maximum(feature.label, 0)] for feature in features]
    assert join_tags(examples, features, logits, False) == [list(item.tags) for item in examples.items]


def test_tags_of_entities_are_those_of_whole_ones(rust):
    names, words = ("O", "B-LOC", "I-LOC", "I-PER"), ["New", "York", "and", "Ann", "Lee"]
    examples = Examples("file", [TaggedExample("1", tuple(words), None)], names)
    features = encode(examples, TASKS["ner"], rust)
    likeliest = [names.index(tag) for tag in ("I-LOC", "I-LOC", "O", "B-LOC", "I-PER")]
    places = np.maximum(features[0].words, 0)
    (found,) = predictions(examples, features, [np.eye(len(names))[np.array(likeliest)[places]]], TASKS["ner"])
    assert found == ["B-LOC", "I-LOC", "O", "B-LOC", "B-PER"]
    assert entities(words, found) == [("LOC", 0, 2, "New York"), ("LOC", 3, 4, "Ann"), ("PER", 4, 5, "Lee")]


def test_sentences_are_parted_before_a_word_and_as_seldom_as_can_be(rust):
    sizes = [len(rust.encode(word, add_special_tokens=False).ids) for word in WORDS]
    features = encode(tagged(WORDS), TASKS["tagging"], rust, max_length=max(sizes) + 4)
    starts = [int(feature.words[1]) for feature in features] + [len(WORDS)]
    room = max(sizes) + 2
    for start, end in zip(starts, starts[1:]):
        assert sum(sizes[start:end]) <= room
        assert end == len(WORDS) or sum(sizes[start:end + 1]) > room


def test_choices_stand_in_rows_one_after_another(rust):
    items = [Choice("1", "The fox", ("runs", "sleeps", "ends"), "2"), Choice("2", "A dog", ("jumps", "is", "was"), "0")]
    examples = Examples("file", items, ("0", "1", "2"))
    features = encode(examples, TASKS["swag"], rust)
    (batch,) = batches(features, 4, shuffle=False)
    assert batch["input_ids"].shape == (12, 32) and batch["labels"].shape == (4,)
    order = [index for index in batch["feature_indices"] if index >= 0]
    rows = [(items[index].first, choice) for index in order for choice in items[index].choices]
    for row, pair in zip(batch["input_ids"], rows):
        assert row[row > 0].tolist() == rust.encode(*pair).ids
    logits: list = [None, None]
    said = np.zeros((12, 1, 1))
    said[[order.index(0) * 3 + 2, order.index(1) * 3 + 0]] = 1
    place_logits(logits, features, batch, said)
    assert predictions(examples, features, logits, TASKS["swag"]) == ["2", "0"]


def test_examples_of_different_numbers_of_choices_never_share_a_batch(rust):
    items = [Choice(str(n), "The fox", ("runs",) * n, None) for n in (2, 3)]
    features = encode(Examples("file", items, ("0", "1")), TASKS["swag"], rust)
    with pytest.raises(AssertionError, match="as many choices"):
        list(batches(features, 2))


def test_a_row_knows_whether_a_text_was_cut_for_it(rust):
    long = " ".join(WORDS)
    size = len(rust.encode(long).ids)
    for room, cut in ((size, 0), (size - 1, 1)):
        assert count_cut(encode(texts((long, None, "0"), ("fox", None, "0")), CLASSES, rust, room)) == cut
    size = len(rust.encode(long, "fox").ids)
    for room, cut in ((size, 0), (size - 1, 1)):
        assert count_cut(encode(texts((long, "fox", "0"), ("fox", "fox", "0")), CLASSES, rust, room)) == cut
        choices = Examples("file", [Choice("1", "fox", ("fox", long, long), None)], ("0", "1", "2"))
        assert count_cut(encode(choices, TASKS["swag"], rust, room)) == cut, "an example, not its rows"
    assert count_cut(encode(tagged(WORDS * 3), TASKS["tagging"], rust, 12)) == 0, "sentences of tags are divided"


def test_a_number_and_a_label_are_read_from_the_logits_of_a_row(rust):
    for task, outputs, expected in ((TASKS["regression"], 1, [2.5, -1.0]), (CLASSES, 3, ["b", "c"])):
        examples = texts(("a fox", None, None), ("a dog", None, None), labels=("a", "b", "c"))
        features = encode(examples, task, rust)
        (batch,) = batches(features, 3)
        said = np.full((3, 1, outputs), -5.0)
        for row, index in enumerate(batch["feature_indices"]):
            if index >= 0:
                said[row, 0, index + 1 if outputs > 1 else 0] = [2.5, -1.0][index]
        logits: list = [None, None]
        place_logits(logits, features, batch, said)
        assert predictions(examples, features, logits, task) == expected


def test_logits_of_tokens_come_back_without_those_of_padding(rust):
    features = encode(tagged(WORDS, WORDS[:2]), TASKS["tagging"], rust)
    (batch,) = batches(features, 3, lengths=(128,))
    said = np.arange(3 * 128 * 2).reshape(3, 128, 2)
    logits: list = [None, None]
    place_logits(logits, features, batch, said)
    for number, feature in enumerate(features):
        row = batch["feature_indices"].tolist().index(number)
        np.testing.assert_array_equal(logits[number], said[row, :feature.length])


def many(rust, count=53):
    items = [(" ".join(WORDS[:1 + n % 11] * (1 + n % 4)), None, str(n % 2)) for n in range(count)]
    return encode(texts(*items), CLASSES, rust, max_length=100)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_holds_every_feature_once_in_batches_of_one_size_and_few_lengths(rust, shuffle):
    features = many(rust)
    found = list(batches(features, 8, shuffle=shuffle, lengths=bucket_lengths(100)))
    assert len(found) == steps_per_epoch(features, 8) == 7
    assert {batch["input_ids"].shape for batch in found} <= {(8, length) for length in (32, 64, 100)}
    indices = np.concatenate([batch["feature_indices"] for batch in found])
    assert sorted(indices[indices >= 0]) == list(range(53)) and (indices < 0).sum() == 3
    for batch in found:
        rows = batch["feature_indices"]
        np.testing.assert_array_equal(batch["label_weights"], rows >= 0)
        assert batch["sequence_ids"][rows < 0].sum() == 0
        for place in np.flatnonzero(rows >= 0):
            feature = features[rows[place]]
            real = batch["sequence_ids"][place] == 1
            assert batch["input_ids"][place][real].tolist() == feature.rows[0].input_ids.tolist()
            assert batch["labels"][place] == feature.label


def test_the_order_is_a_pure_function_of_seed_and_epoch(rust):
    features = many(rust)

    def order(**options):
        return np.concatenate([batch["feature_indices"] for batch in batches(features, 8, **options)]).tolist()

    orders = [order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == [order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(found) for found in orders}) == 4


def test_a_row_longer_than_any_length_is_refused(rust, refuses):
    refuses(r"a row of \d+ tokens exceeds 64, the longest of lengths", list, batches(many(rust), 8, lengths=(64,)))


def test_labels_of_words_and_numbers_have_their_weights(rust):
    (tags,) = batches(encode(tagged(WORDS), TASKS["tagging"], rust), 2)
    (feature,) = encode(tagged(WORDS), TASKS["tagging"], rust)
    assert tags["labels"].shape == tags["label_weights"].shape == tags["input_ids"].shape
    for row in range(2):
        known = np.flatnonzero(tags["label_weights"][row])
        if tags["feature_indices"][row] == 0:
            assert known.tolist() == np.flatnonzero(feature.label >= 0).tolist()
            assert tags["labels"][row, known].tolist() == feature.label[known].tolist()
        else:
            assert not len(known)
    numbers = encode(texts(("a", None, 2.5), ("b", None, None), labels=()), TASKS["regression"], rust)
    (batch,) = batches(numbers, 2)
    assert batch["labels"].dtype == np.float32
    kept = {int(index): (label, weight) for index, label, weight in zip(
        batch["feature_indices"], batch["labels"], batch["label_weights"])}  # fmt: skip
    assert kept == {0: (2.5, 1), 1: (0, 0)}
