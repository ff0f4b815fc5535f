"""BERT's example generation and masking in plain loops: what the vectorised pipeline is held against.

Every random decision is a method of `Dice`, so that a test may make the decisions itself; `PairingDice` and
`MaskingDice` make those of the vectorised code, asked for one at a time. Span masking is SpanBERT's.
"""

import functools
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from data_pipeline import pairing, randomness
from data_pipeline.sequences import Sequences
from data_pipeline.store import Documents

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

    def span_length(self, position: int) -> int:
        """Words: geometric with p = 0.2, drawn anew until it is at most 10 (SpanBERT, section 3.1)."""
        while True:
            length = 1
            while self.rng.random() >= 0.2:
                length += 1
            if length <= 10:
                return length


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
    truncate(pair, max_tokens, place, dice)
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


def truncate(pair: Pair, max_tokens: int, place: Place, dice: Dice) -> None:
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
    return _replaced(tokens, {position: position for position in chosen}, mask_id, vocab_size, dice)


def mask_spans(
    tokens: list[int], words: list[list[int]], wanted: int, mask_id: int, vocab_size: int, dice: Dice
) -> Masked:
    """Masks up to `wanted` tokens in spans of whole words.

    A span begins at the word of a token drawn from those not yet chosen, is a number of words long, those already
    chosen counted in, and ends before a special token and before a word that would overshoot.
    """
    anchors: dict[int, int] = {}  # position → the one that its span was drawn from
    word_of = {position: number for number, word in enumerate(words) for position in word}
    for [drawn] in dice.order([[position] for word in words for position in word]):
        if drawn in anchors or len(anchors) == wanted:
            continue
        first, end = word_of[drawn], word_of[drawn] + dice.span_length(drawn)
        for number in range(first, min(end, len(words))):
            word = words[number]
            if number > first and word[0] != words[number - 1][-1] + 1:
                break
            if word[0] in anchors:
                continue
            if len(anchors) + len(word) > wanted:
                break
            anchors |= dict.fromkeys(word, drawn)
    return _replaced(tokens, anchors, mask_id, vocab_size, dice)


def _replaced(tokens: list[int], chosen: dict[int, int], mask_id: int, vocab_size: int, dice: Dice) -> Masked:
    """Masks the chosen positions; each has the kind of the position that it is given."""
    masked = list(tokens)
    kinds = {position: dice.kind(position) for position in dict.fromkeys(chosen.values())}
    for position, deciding in chosen.items():
        if kinds[deciding] < 0.8:
            masked[position] = mask_id
        elif kinds[deciding] >= 0.9:
            masked[position] = dice.token(position, vocab_size)
    positions = sorted(chosen)
    return Masked(masked, positions, [tokens[position] for position in positions])


class PairingDice(Dice):
    """Throws what the vectorised pairing of some documents throws. `borders` [M + 1] are their first sentences."""

    def __init__(self, borders: np.ndarray, key: np.uint64):
        self.borders, self.draws = borders, pairing._draws(key)

    def is_short(self, document: int, probability: float) -> bool:
        return randomness.uniform(self.draws["short"], np.array([document]))[0] < probability

    def target(self, document: int, least: int, most: int) -> int:
        return least + self._integer(self.draws["target"], document, most - least + 1)

    def a_end(self, place: Place, most: int) -> int:
        return 1 + self._integer(self.draws["a_end"], self._sentence(place), most)

    def is_random(self, place: Place) -> bool:
        return bool(self._integer(self.draws["is_random"], self._sentence(place), 2))

    def other_document(self, place: Place, attempt: int, documents: int) -> int:
        key = randomness.key(int(self.draws["document"]), attempt)
        return self._integer(key, self._sentence(place), documents)

    def cut(self, place: Place, tokens: int) -> int:
        """Where a chunk of one sentence is cut in two, if it is."""
        return 1 + self._integer(self.draws["cut"], self._sentence(place), tokens - 1)

    def first_sentence(self, place: Place, sentences: int) -> int:
        return self._integer(self.draws["sentence"], self._sentence(place), sentences)

    def cut_front(self, place: Place, segment: str, cut_before: int) -> bool:
        key = self.draws[f"front_{segment}"]
        return bool(_coins(key, self._sentence(place), cut_before // 64) >> 63 - cut_before % 64 & 1)

    def _sentence(self, place: Place) -> int:
        return int(self.borders[place[0]]) + place[1]

    def _integer(self, key: np.uint64, counter: int, count: int) -> int:
        return int(randomness.integers(key, np.array([counter]), count)[0])


@functools.cache
def _coins(key: np.uint64, counter: int, word: int) -> int:
    """64 of the flips that `coin_flips` counts, the first one on top."""
    own = randomness.bits(key, np.array([counter]))[0]
    return int(randomness.bits(own, np.array([word]))[0])


class MaskingDice(Dice):
    """Throws what the vectorised masking throws for a sequence that begins at `start` of a row of `length` tokens, in
    which up to `packing` sequences have room.
    """

    def __init__(self, row_key: np.uint64, length: int, packing: int = 1, start: int = 0):
        self.row_key, self.start = row_key, start
        self.unused_bits = (length - 1).bit_length() + (packing - 1).bit_length()
        self.keys = randomness.bits(row_key, np.arange(length)).tolist()
        if self.unused_bits <= 16:  # two keys of each 64-bit draw
            self.keys = [half for key in self.keys for half in (key & 0xFFFFFFFF, key >> 32)]

    def order(self, candidates: list[list[int]]) -> list[list[int]]:
        """By the upper bits of the first token's key; where these tie, by the text."""
        return sorted(candidates, key=lambda each: self.keys[self.start + each[0]] >> self.unused_bits)

    def kind(self, position: int) -> float:
        return float(randomness.uniform(self._key(1), np.array([2 * (self.start + position)]))[0])

    def token(self, position: int, vocab_size: int) -> int:
        counter = np.array([2 * (self.start + position) + 1])
        return int(randomness.integers(self._key(1), counter, vocab_size)[0])

    def span_length(self, position: int) -> int:
        """Inverts the cumulative shares of the lengths, written anew."""
        drawn = float(randomness.uniform(self._key(2), np.array([self.start + position]))[0])
        for length in range(1, 10):
            if drawn < (1 - 0.8**length) / (1 - 0.8**10):
                return length
        return 10

    def _key(self, number: int) -> np.uint64:
        return randomness.bits(self.row_key, np.array([number << 32]))[0]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of a chi-square test that two samples come from one distribution, in at most 20 equally full cells."""
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    edges = np.unique(np.quantile(np.concatenate([first, second]), np.linspace(0, 1, 21), method="inverted_cdf"))
    table = np.array([np.bincount(np.searchsorted(edges, sample), minlength=len(edges)) for sample in (first, second)])
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] == 1 else float(stats.chi2_contingency(table, correction=False).pvalue)


def seen_of_pairs(documents: Documents, pairs: Sequences) -> dict[str, np.ndarray]:
    """What can be seen of a pair without understanding it."""
    return {
        "length of A": pairs.a_length,
        "length of B": pairs.b_length,
        "total length": pairs.a_length + pairs.b_length,
        "B begins inside a sentence": ~np.isin(pairs.b_start, documents.sentence_offsets),
    }


def difference_between_labels(fact: np.ndarray, labels: np.ndarray) -> float:
    """p-value of a test that a fact of pairs is distributed alike under both labels. Two that exchange their Bs share a
    label and the length of B: they count as one.
    """
    first, second = fact[labels == 0], fact[labels == 1]
    if fact.dtype != bool:
        pairs = len(first) * len(second) / (len(first) + len(second)) / 2
        return float(stats.kstwobign.sf(stats.ks_2samp(first, second).statistic * np.sqrt(pairs)))
    table = np.array([np.bincount(each, minlength=2) for each in (first, second)]) / 2
    return float(stats.chi2_contingency(table).pvalue) if table.sum(axis=0).all() else 1.0
