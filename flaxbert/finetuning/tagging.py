"""Tagged words → features and back: the first piece of a word bears its tag (BERT, section 5.3)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxbert.finetuning.features import Feature, Row
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.pieces import Special, ids_of

NO_LABEL = -1


def tagging_features(examples: Examples, tokenizer: Any, special: Special, max_length: int) -> list[Feature]:
    """One feature for each sentence that fits into `max_length` tokens; a longer one is parted before a word, so that
    every word is in one of its features.
    """
    if max_length < 3:
        raise ValueError(f"max_length {max_length} leaves no room for a word: expected at least 3")
    table = _word_table(examples, tokenizer, special, max_length - 2)
    numbers = {label: number for number, label in enumerate(examples.labels)}
    found = []
    for place, item in enumerate(examples.items):
        labels = None if item.tags is None else [numbers[tag] for tag in item.tags]
        pieces = [table[word] for word in item.words]
        for start, end in _parts([len(ids) for ids in pieces], max_length - 2):
            found.append(_feature(place, start, pieces[start:end], labels and labels[start:end], special))
    return found


def _word_table(examples: Examples, tokenizer: Any, special: Special, room: int) -> dict[str, np.ndarray]:
    """Word → its ids, at least one and no more than `room`."""
    words = sorted({word for item in examples.items for word in item.words})
    unknown = tokenizer.token_to_id("[UNK]")
    # Of invisible characters BERT's rule leaves nothing; the word has a tag all the same.
    nothing = np.array([special.sep_id if unknown is None else unknown], np.int32)
    return {word: ids[:room] if len(ids) else nothing for word, ids in zip(words, ids_of(tokenizer, words))}


def _parts(sizes: list[int], room: int) -> Iterator[tuple[int, int]]:
    """(start, end) of as many words as go into `room` tokens, one part after another."""
    start = used = 0
    for place, size in enumerate(sizes):
        if used + size > room:
            yield start, place
            start, used = place, 0
        used += size
    yield start, len(sizes)


def _feature(place: int, start: int, pieces: list[np.ndarray], labels: list[int] | None, special: Special) -> Feature:
    ids = np.concatenate([[special.cls_id], *pieces, [special.sep_id]]).astype(np.int32)
    firsts = np.cumsum([1, *(len(part) for part in pieces[:-1])])
    words, numbers = np.full(len(ids), -1, np.int32), np.full(len(ids), NO_LABEL, np.int32)
    words[firsts] = np.arange(start, start + len(pieces))
    if labels is None:
        return Feature(place, (Row(ids, len(ids)),), None, words)
    numbers[firsts] = labels
    return Feature(place, (Row(ids, len(ids)),), numbers, words)


def join_tags(
    examples: Examples, features: list[Feature], logits: list[np.ndarray], has_entities: bool
) -> list[list[str]]:
    """The likeliest tag of each word of each example; of entities, an I-X that does not go on with an X is B-X, as
    conlleval reads it. `logits` [S, labels] for each feature.
    """
    found: list[list[str]] = [[""] * len(item.words) for item in examples.items]
    for feature, scores in zip(features, logits, strict=True):
        assert feature.words is not None
        places = np.flatnonzero(feature.words >= 0)
        for word, label in zip(feature.words[places], scores[places].argmax(axis=-1)):
            found[feature.example][word] = examples.labels[label]
    return [begun(tags)[0] for tags in found] if has_entities else found


class Entity(NamedTuple):
    """A name of some words."""

    type: str
    start: int
    """Its first word's number, from 0."""
    end: int
    """That of the word after its last one."""
    text: str


def entities(words: Sequence[str], tags: Sequence[str]) -> list[Entity]:
    """The entities that tags in BIO mark; each begins with B-."""
    found: list[Entity] = []
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            after = range(start + 1, len(tags))
            end = next((place for place in after if tags[place] != f"I{tag[1:]}"), len(tags))
            found.append(Entity(tag[2:], start, end, " ".join(words[start:end])))
    return found


def begun(tags: Sequence[str]) -> tuple[list[str], int]:
    """Tags of entities where each begins with B-, and how many did not: conlleval takes an I-X that does not go on with
    an X for the beginning of one (CoNLL-2003's own files mark beginnings so).
    """
    found, broken = list[str](), 0
    for tag in tags:
        alone = tag.startswith("I-") and (not found or found[-1][1:] != tag[1:])
        found.append(f"B{tag[1:]}" if alone else tag)
        broken += alone
    return found, broken
