"""What `data_pipeline.health` measured → one line for each measure: ok, warning or trouble, and what mends it.

A threshold is a pair: above the first a warning, above the second a trouble. Where it says no other reason, the first
is several times what English encyclopedia text has, and the second is where training visibly suffers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from data_pipeline.health import PACKING, RARE, Health, Stream, Vocabulary, plain
from data_pipeline.repeats import Repeats
from data_pipeline.statistics import DEGENERATE_LABEL_SHARE

OK, WARNING, TROUBLE = "ok", "warning", "trouble"

REPEATED_DOCUMENTS = (0.01, 0.05)
REPEATED_SENTENCES = (0.03, 0.10)
"""Shares of tokens. An encyclopedia has 0.002. Thousands of duplicated lines are a known cause of a loss that stays at
the unigram entropy: the model learns to recite."""
HELD_OUT_SEEN = (0.05, 0.20)
"""Share of held-out tokens. A held-out loss then measures recitation."""
LONG_SENTENCES = (0.10, 0.50)
"""Share of the tokens in sentences that fill a pair: such a sentence is cut, and has no true next one beside it."""
ONE_SENTENCE_DOCUMENTS = (0.20, 0.50)
"""They have no next sentence, so each of them is a pair labelled 'random'."""
UNKNOWN = (0.01, 0.05)
"""From 1 % on prepare warns too."""
SINGLE_LETTERS = (0.15, 0.30)
"""An encyclopedia has 0.08 with a vocabulary of 16,000 trained on it."""
NEVER_USED = (0.25, 0.50)
"""Rows of the embedding that take memory and are never trained."""
RARELY_USED = (0.50, 1.0)
"""Or never. Entries hardly ever predicted; never a trouble, since the others can be learnt."""
LOW_ENTROPY = (4.0, 3.0)
"""Nats, from above: as many choices as 55 and 20 equally likely tokens. English letters have 2.9."""
RANDOM_LABELS = (0.70, DEGENERATE_LABEL_SHARE)
"""Of the commoner label. The reference has 0.53 to 0.60 on text of sentences."""
LOW_FILL = 0.75
"""Below it a quarter of the work goes into padding: a waste, not a trouble."""
FEW_STEPS = 100
"""An epoch: a hundred epochs are then the paper's warm-up alone. Below 1 there is no batch and no training."""


class Line(NamedTuple):
    """One measure. An advice on an ok line is how to read it."""

    measure: str
    value: str
    verdict: str
    advice: str


def report(health: Health) -> dict[str, Any]:
    """All that was measured, and what to think of it, as JSON can hold it: {"lines", "streams", "packing", "facts"}."""
    streams = [plain(stream) | {"verdict": stream_verdict(stream)} for stream in health.streams]
    facts = {name: value for name, value in plain(health).items() if name != "streams"}
    shown = [line._asdict() for line in lines(health)]
    return {"lines": shown, "streams": streams, "packing": PACKING, "facts": facts}


def lines(health: Health) -> list[Line]:
    """In the order in which troubles are best mended: the text, its tokens, the sequences drawn from them."""
    found = [_training_text(health), _held_out_text(health), *_repeats(health), _sentence_lengths(health),
             _document_lengths(health), *_tokens(health)]  # fmt: skip
    by_place = {(stream.sequence_length, stream.pairing): stream for stream in health.streams}
    for length in sorted({stream.sequence_length for stream in health.streams}):
        pairing = "nsp" if by_place[length, "nsp"].rows else "none"
        found += _sequences(health, {name: by_place[length, name] for _, name in by_place}, length, pairing)
    return found


def stream_verdict(stream: Stream) -> str:
    """The worst that can be said of one pairing at one length."""
    if not stream.steps:
        return TROUBLE
    of_labels = OK if stream.random_labels is None else _above(_commoner(stream.random_labels), RANDOM_LABELS)
    return WARNING if of_labels == OK and (stream.fill < LOW_FILL or stream.steps < FEW_STEPS) else of_labels


def _above(value: float, thresholds: tuple[float, float]) -> str:
    warning, trouble = thresholds
    return TROUBLE if value > trouble else WARNING if value > warning else OK


def _line(measure: str, value: str, verdict: str, advice: str) -> Line:
    """A line whose advice is for those who need it."""
    return Line(measure, value, verdict, "" if verdict == OK else advice)


def _training_text(health: Health) -> Line:
    count = health.train
    value = ", ".join(_number(count[name], name) for name in ("documents", "sentences", "tokens"))
    return _line("training text", value, TROUBLE if count["documents"] < 2 else OK, (
        "next-sentence pairs need 2 documents: put an empty line between documents and prepare again, or "
        "train with --data.pairing none"
    ))  # fmt: skip


def _held_out_text(health: Health) -> Line:
    count = health.validation
    value = ", ".join(_number(count[name], name) for name in ("documents", "tokens"))
    return _line("held-out text", value, TROUBLE if count["documents"] < 2 else OK, (
        "evaluation on pairs needs 2 documents: prepare again with a larger --validation-fraction, or train "
        "with --train.eval-every 0"
    ))  # fmt: skip


def _number(count: int, name: str) -> str:
    return f"{count:,} {name.removesuffix('s') if count == 1 else name}"


def _repeats(health: Health) -> Iterator[Line]:
    if health.source_repeats:
        both = (f"{each['repeated']:,} of {each['read']:,} {kind}" for kind, each in health.source_repeats.items())
        yield Line("repeats in source", ", ".join(both), OK, "before any were dropped")
    documents, sentences, seen = health.repeated_documents, health.repeated_sentences, health.held_out_seen
    against_sentences = _against(health, "lines", sentences)
    yield _line("repeated documents", _share_of(documents), _above(documents.token_share, REPEATED_DOCUMENTS), (
        f"the model learns to recite them: {_against(health, 'documents', documents)}"
    ))  # fmt: skip
    yield _line("repeated sentences", _share_of(sentences), _above(sentences.token_share, REPEATED_SENTENCES), (
        f"the loss may stay at the unigram entropy: {against_sentences}"
    ))  # fmt: skip
    if seen.total:
        value = _share_of(seen, " seen in training")
        yield _line("held-out sentences", value, _above(seen.token_share, HELD_OUT_SEEN), (
            f"the held-out loss will look better than it is: {against_sentences}"
        ))  # fmt: skip


def _against(health: Health, kind: str, repeats: Repeats) -> str:
    """To drop what repeats, where that finds half of it at least: prepare compares the text, and whole lines of it."""
    counted = (health.source_repeats or {}).items()
    shares = {name: each["repeated"] / max(1, each["read"]) for name, each in counted}
    dropped = {"none": 0.0, "documents": shares.get("documents", 0.0), "lines": 1.0}[health.drop_duplicates]
    if shares.get(kind, 1.0) - dropped >= repeats.repeated / max(1, repeats.total) / 2:
        return f"prepare again with --drop-duplicates {kind}"
    return (
        "--drop-duplicates does not find them, for they are parts of lines, or differ in case or spacing, in the text: "
        "take them out of it"
    )


def _share_of(repeats: Repeats, what: str = "") -> str:
    share = repeats.repeated / max(1, repeats.total)
    return f"{share:.1%} of {repeats.total:,}{what}, {repeats.token_share:.1%} of their tokens"


def _sentence_lengths(health: Health) -> Line:
    lengths, shortest = health.sentence_tokens, min(stream.sequence_length for stream in health.streams)
    value = f"median {lengths.median:,.0f} tokens, 95% up to {lengths.percentile_95:,.0f}, longest {lengths.longest:,}"
    mend = "prepare again with --sentences split" if health.sentences_setting == "lines" else (
        "is --language that of the text, and has it full stops? Else choose a longer --data.sequence-length"
    )  # fmt: skip
    advice = f"{health.long_sentences:.0%} of the tokens stand in sentences that fill a pair at {shortest}: {mend}"
    return _line("sentence length", value, _above(health.long_sentences, LONG_SENTENCES), advice)


def _document_lengths(health: Health) -> Line:
    sentences, tokens, single = health.document_sentences, health.document_tokens, health.one_sentence_documents
    value = f"median {sentences.median:,.0f} sentences, {tokens.median:,.0f} tokens; {single:.0%} of one sentence"
    return _line("document length", value, _above(single, ONE_SENTENCE_DOCUMENTS), (
        "one sentence has no next one: take out empty lines inside of documents, or train with --data.pairing "
        "none-across"
    ))  # fmt: skip


def _tokens(health: Health) -> Iterator[Line]:
    words, tokenizer = health.vocabulary, health.tokenizer
    other = "prepare again with --tokenizer sentencepiece, which trains one on this text"
    mend = "prepare again with a larger --vocab-size" if tokenizer["trained"] else other
    fits_case = tokenizer["lowercase"] or tokenizer["capitals"]
    if tokenizer["kind"] == "wordpiece" and not (tokenizer["trained"] or fits_case):
        mend = "the vocabulary has no capitals: prepare again with --lowercase True"
    unknown, letters = words.unknown_share, words.single_letter_share
    yield _line("unknown tokens", f"{unknown:.2%} of the tokens", _above(unknown, UNKNOWN), mend)
    fallen_apart, unused = _above(letters, SINGLE_LETTERS), _unused(words)
    smaller = "prepare again with a smaller --vocab-size, or more text" if tokenizer["trained"] else other
    if tokenizer["trained"] and OK not in (fallen_apart, unused):
        mend = smaller = "add text, for so little no --vocab-size is right"
    yield _line("single letters", f"{letters:.1%} of the tokens", fallen_apart, f"words fall apart: {mend}")
    value = (f"{words.never_used / words.entries:.1%} of {words.entries:,} never used, "
             f"{words.rarely_used / words.entries:.1%} less than {RARE} times")  # fmt: skip
    yield _line("vocabulary", value, unused, f"entries that are not seen are not learnt: {smaller}")
    low = TROUBLE if words.entropy < LOW_ENTROPY[1] else WARNING if words.entropy < LOW_ENTROPY[0] else OK
    held_out = "" if words.held_out_entropy is None else f", {words.held_out_entropy:.2f} held out"
    yield Line("unigram entropy", f"{words.entropy:.2f} nats{held_out}", low, (
        "a loss that stays there has learnt frequencies alone" if low == OK else
        "few tokens make up nearly all of the text: does it repeat itself, or is --vocab-size too small?"
    ))  # fmt: skip


def _unused(words: Vocabulary) -> str:
    never, seldom = words.never_used / words.entries, (words.never_used + words.rarely_used) / words.entries
    verdicts = {_above(never, NEVER_USED), _above(seldom, RARELY_USED)}
    return next(each for each in (TROUBLE, WARNING, OK) if each in verdicts)


def _sequences(health: Health, streams: dict[str, Stream], length: int, pairing: str) -> Iterator[Line]:
    stream = streams[pairing]
    if stream.random_labels is not None:
        yield _labels(health, streams, length)
    yield _line(f"fill, {pairing} at {length}", f"{stream.fill:.0%}, packed {stream.packed_fill:.0%}",
                WARNING if stream.fill < LOW_FILL else OK, _filling(streams, pairing))  # fmt: skip
    verdict = TROUBLE if not stream.steps else WARNING if stream.steps < FEW_STEPS else OK
    value = f"{stream.steps:,} an epoch, packed {stream.packed_steps:,}"
    advice = "a run sees the same text very often: add text, or expect it to be learnt by heart"
    if not stream.rows:
        advice = "no sequence can be drawn: add text"
    elif not stream.steps:
        advice = (f"{stream.rows:,} rows are no batch of {health.batch_size:,}, and nothing is trained: add text, or "
                  f"choose a --train.batch-size of {stream.rows:,} at most")  # fmt: skip
    yield _line(f"steps, {pairing} at {length}", value, verdict, advice)


def _labels(health: Health, streams: dict[str, Stream], length: int) -> Line:
    share, balanced = streams["nsp"].random_labels or 0.0, streams["nsp-balanced"].random_labels
    whole_paragraphs = health.sentences_setting == "lines" and health.long_sentences > LONG_SENTENCES[0]
    mends = ["prepare again with --sentences split"] if whole_paragraphs else []
    if balanced is not None and _commoner(balanced) <= RANDOM_LABELS[0]:
        mends += [f"train with --data.pairing nsp-balanced ({balanced:.0%} here)"]
    mends += ["train with --data.pairing none"]
    advice = f"whoever guesses is right {_commoner(share):.0%} of the time: {', or '.join(mends)}"
    return _line(f"labels, nsp at {length}", f"{share:.0%} random", _above(_commoner(share), RANDOM_LABELS), advice)


def _commoner(share: float) -> float:
    return max(share, 1 - share)


def _filling(streams: dict[str, Stream], pairing: str) -> str:
    stream, across = streams[pairing], streams["none-across"]
    if stream.packed_fill >= min(LOW_FILL, across.packed_fill):
        return f"the rest is padding: --data.packing {PACKING} fills {stream.packed_fill:.0%}"
    return f"the rest is padding: --data.pairing none-across --data.packing {PACKING} fills {across.packed_fill:.0%}"
