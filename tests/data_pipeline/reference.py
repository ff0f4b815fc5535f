"""BERT's example generation and masking in plain loops: what the vectorised pipeline is held against.

Every random decision is a method of `Dice`, so that a test may make the decisions itself.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

Document = list[list[int]]
Place = tuple[int, int]  # document, and the sentence in it at which a chunk starts


class Pair(NamedTuple):
    """One example before [CLS] and [SEP] are put around it."""

    a: list[int]
    b: list[int]
    is_random: bool


class Masked(NamedTuple):
    """A sequence after masking; positions ascend, labels are the tokens that stood there."""

    tokens: list[int]
    positions: list[int]
    labels: list[int]


class Dice:
    """Random decisions from a `random.Random`. The arguments say where a decision is made."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def is_short(self, document: int, probability: float) -> bool:
        return self.rng.random() < probability

    def target(self, document: int, least: int, most: int) -> int:
        return self.rng.randint(least, most)

    def a_end(self, place: Place, most: int) -> int:
        return self.rng.randint(1, most)

    def is_random(self, place: Place) -> bool:
        return self.rng.random() < 0.5

    def other_document(self, place: Place, attempt: int, documents: int) -> int:
        return self.rng.randrange(documents)

    def first_sentence(self, place: Place, sentences: int) -> int:
        return self.rng.randrange(sentences)

    def cut_front(self, place: Place, segment: str, cut_before: int) -> bool:
        return self.rng.random() < 0.5

    def order(self, candidates: list[list[int]]) -> list[list[int]]:
        return self.rng.sample(candidates, len(candidates))

    def kind(self, position: int) -> float:
        return self.rng.random()

    def token(self, position: int, vocab_size: int) -> int:
        return self.rng.randrange(vocab_size)


def pairs_of_document(
    documents: list[Document], index: int, sequence_length: int, short_probability: float, dice: Dice
) -> list[Pair]:
    """The examples of one document in one pass over the corpus."""
    max_tokens = sequence_length - 3
    target = target_length(index, max_tokens, short_probability, dice)
    pairs: list[Pair] = []
    start = 0
    while start < len(documents[index]):
        pair, start = next_pair(documents, index, start, target, max_tokens, dice)
        pairs.append(pair)
    return pairs


def target_length(index: int, max_tokens: int, short_probability: float, dice: Dice) -> int:
    return dice.target(index, 2, max_tokens) if dice.is_short(index, short_probability) else max_tokens


def next_pair(
    documents: list[Document], index: int, start: int, target: int, max_tokens: int, dice: Dice
) -> tuple[Pair, int]:
    """The example whose chunk starts at a sentence, and the sentence at which the next chunk starts."""
    document, place = documents[index], (index, start)
    end, size = start, 0
    while end < len(document) and size < target:
        size += len(document[end])
        end += 1
    a_end = start + (dice.a_end(place, end - start - 1) if end - start > 1 else 1)
    a = _tokens(document[start:a_end])
    if end - start == 1 or dice.is_random(place):
        pair, following = Pair(a, _random_segment(documents, place, target - len(a), dice), True), a_end
    else:
        pair, following = Pair(a, _tokens(document[a_end:end]), False), end
    _truncate(pair, max_tokens, place, dice)
    return pair, following


def _random_segment(documents: list[Document], place: Place, target: int, dice: Dice) -> list[int]:
    for attempt in range(10):
        other = dice.other_document(place, attempt, len(documents))
        if other != place[0]:
            break
    tokens: list[int] = []
    first = dice.first_sentence(place, len(documents[other]))
    for sentence in documents[other][first:]:
        tokens.extend(sentence)
        if len(tokens) >= target:
            break
    return tokens


def _truncate(pair: Pair, max_tokens: int, place: Place, dice: Dice) -> None:
    cuts = {"a": 0, "b": 0}
    while len(pair.a) + len(pair.b) > max_tokens:
        name, longer = ("a", pair.a) if len(pair.a) > len(pair.b) else ("b", pair.b)
        longer.pop(0 if dice.cut_front(place, name, cuts[name]) else -1)
        cuts[name] += 1


def _tokens(sentences: Document) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def assembled(pair: Pair, cls_id: int, sep_id: int) -> tuple[list[int], list[int]]:
    """Tokens and segment ids of [CLS] A [SEP] B [SEP]."""
    tokens = [cls_id, *pair.a, sep_id, *pair.b, sep_id]
    return tokens, [0] * (len(pair.a) + 2) + [1] * (len(pair.b) + 1)


def token_candidates(tokens: list[int], special: tuple[int, ...]) -> list[list[int]]:
    """Every position but those of [CLS] and [SEP] (`special`), each on its own."""
    return [[position] for position, token in enumerate(tokens) if token not in special]


def word_candidates(
    tokens: list[int], special: tuple[int, ...], continues: Callable[[int], bool]
) -> list[list[int]]:
    """The positions of each word together; `continues` says of a token that it goes on with the word before it."""
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in special:
            continue
        if words and words[-1][-1] == position - 1 and continues(token):
            words[-1].append(position)
        else:
            words.append([position])
    return words


def number_to_predict(length: int, rate: float, max_predictions: int) -> int:
    """Of a sequence of `length` tokens, special ones included."""
    return min(max_predictions, max(1, round(rate * length)))


def mask(
    tokens: list[int], candidates: list[list[int]], wanted: int, mask_id: int, vocab_size: int, dice: Dice
) -> Masked:
    """Masks up to `wanted` tokens; a candidate that would overshoot is skipped."""
    chosen: list[int] = []
    for candidate in dice.order(candidates):
        if len(chosen) + len(candidate) <= wanted:
            chosen.extend(candidate)
    masked = list(tokens)
    for position in chosen:
        kind = dice.kind(position)
        if kind < 0.8:
            masked[position] = mask_id
        elif kind >= 0.9:
            masked[position] = dice.token(position, vocab_size)
    chosen.sort()
    return Masked(masked, chosen, [tokens[position] for position in chosen])
