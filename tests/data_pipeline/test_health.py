"""The doctor's numbers against plain counts, and its verdicts on texts that are made to have one trouble each."""

import math
import random
import shutil
import statistics
from collections import Counter

import pytest
from synthetic import nested

from data_pipeline import health, verdicts
from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.pairing import PAIRINGS
from data_pipeline.prepare import prepare
from data_pipeline.statistics import window_facts
from data_pipeline.store import join, open_corpus, read_block, write_manifest
from data_pipeline.tokenizer import SPECIAL_PIECES, load
from data_pipeline.whole_files import write_json

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nlr"]  # 180
LETTERS = list("qvwxyz")
LENGTH = 32


def text(seed=0, documents=30, sentences=40, words=WORDS):
    """Documents of sentences of 5 to 12 words, as lists of strings."""
    rng = random.Random(seed)
    return [[" ".join(rng.choices(words, k=rng.randint(5, 12))) for _ in range(sentences)] for _ in range(documents)]


def prepared(folder, documents, pieces=(*WORDS, *LETTERS), **settings):
    """The documents' lines as a corpus, by the WordPiece vocabulary of `pieces`."""
    vocabulary, source = folder / "vocab.txt", folder / "text.txt"
    vocabulary.write_text("\n".join([*SPECIAL_PIECES, *pieces]) + "\n", encoding="utf-8")
    source.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    given = {"tokenizer": str(vocabulary), "sentences": "lines", "validation_fraction": 0.2} | settings
    prepare(PrepareConfig(**given), [str(source)], str(folder / "corpus"), workers=1, progress=False)
    return folder / "corpus"


def examine(path, batch_size=2, lengths=(LENGTH,), sample_tokens=10**9):
    return health.examine(path, batch_size, lengths, sample_tokens)


def found(path, **settings):
    """Lines by their measure."""
    return {line.measure: line for line in verdicts.lines(examine(path, **settings))}


def documents_of(path, split):
    corpus = open_corpus(path)
    return nested(join([read_block(corpus, block) for block in corpus.blocks[split]]))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("healthy"), text(), WORDS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A bit of everything that is counted."""
    rng = random.Random(1)
    documents = text(1, documents=40, sentences=5) + [["ban ban"], ["q v unheardof ban", "ban ban"], ["ban ban"]]
    documents += [rng.choice(documents)[:3] for _ in range(10)]
    return prepared(tmp_path_factory.mktemp("mixed"), documents)


def test_a_healthy_corpus_has_neither_trouble_nor_warning(healthy):
    lines = found(healthy)
    assert {name: line for name, line in lines.items() if line.verdict != "ok"} == {}
    assert f"labels, nsp at {LENGTH}" in lines


def test_repeats_are_those_of_a_plain_count(mixed):
    measured, documents = examine(mixed), documents_of(mixed, "train")
    sentences = [sentence for document in documents for sentence in document]
    for items, length, found in (
        (sentences, len, measured.repeated_sentences),
        (documents, lambda document: sum(map(len, document)), measured.repeated_documents),
    ):
        counts = Counter(map(str, items))
        later = sum(length(item) for item in items) - sum(length(dict(zip(map(str, items), items))[k]) for k in counts)
        share = later / sum(map(length, items))
        assert found[:2] == (len(items), len(items) - len(counts)) and found.repeated > 0
        assert found.token_share == pytest.approx(share, rel=1e-12)


def test_a_planted_fifth_of_duplicated_lines_is_counted_exactly(tmp_path):
    documents = text(2, documents=20, sentences=40)
    rng = random.Random(0)
    copies = rng.sample([line for lines in documents for line in lines], 200)
    for line in copies:
        rng.choice(documents).append(line)
    path = prepared(tmp_path, documents, validation_fraction=0.0)
    repeats = examine(path).repeated_sentences
    assert (repeats.total, repeats.repeated) == (1000, 200)
    line = found(path)["repeated sentences"]
    assert line.verdict == "trouble" and line.value.startswith("20.0% of 1,000") and "drop" in line.advice


def test_what_is_nearly_equal_is_no_repeat(tmp_path):
    documents = [["ban bal", "dan"], ["dan", "ban bal"], ["bal ban", "dan ban"], ["ban", "bal dan"]]
    measured = examine(prepared(tmp_path, documents, validation_fraction=0.0))
    assert measured.repeated_documents.repeated == 0, "other orders and other borders of sentences"
    assert measured.repeated_sentences.repeated == 2


def test_the_sentence_that_costs_most_is_shown_as_it_was_written(tmp_path):
    documents = text(3) + [["ban"]] * 20 + [["ban bal bar dan dal"]] * 10
    first, second = examine(prepared(tmp_path, documents, validation_fraction=0.0)).examples
    assert first == ("ban bal bar dan dal", 10, 5) and second == ("ban", 20, 1)


def test_held_out_sentences_are_looked_for_in_the_training_text(mixed):
    seen = {str(sentence) for document in documents_of(mixed, "train") for sentence in document}
    held_out = [sentence for document in documents_of(mixed, "validation") for sentence in document]
    known = [sentence for sentence in held_out if str(sentence) in seen]
    measured = examine(mixed).held_out_seen
    assert measured[:2] == (len(held_out), len(known)) and 0 < len(known) < len(held_out)
    assert measured.token_share == pytest.approx(sum(map(len, known)) / sum(map(len, held_out)))


def test_lengths_are_those_of_a_plain_count(mixed):
    measured, documents = examine(mixed), documents_of(mixed, "train")
    tokens = [len(sentence) for document in documents for sentence in document]
    sizes = [sum(map(len, document)) for document in documents]
    for values, found in (
        (tokens, measured.sentence_tokens), (list(map(len, documents)), measured.document_sentences),
        (sizes, measured.document_tokens),
    ):  # fmt: skip
        assert (found.mean, found.median, found.longest) == (
            pytest.approx(statistics.mean(values)), statistics.median(values), max(values)
        )  # fmt: skip
        bins = zip(found.edges[:-1], found.edges[1:], found.counts, strict=True)
        assert all(count == sum(low <= value < high for value in values) for low, high, count in bins)
        assert sum(found.counts) == len(values)
    assert measured.one_sentence_documents == sum(len(document) == 1 for document in documents) / len(documents)
    long = sum(length for length in tokens if length > LENGTH - 25)
    assert examine(mixed, lengths=(LENGTH - 22,)).long_sentences == pytest.approx(long / sum(tokens))


def test_the_vocabulary_s_use_is_that_of_a_plain_count(mixed):
    words, pieces = examine(mixed).vocabulary, load(mixed / "tokenizer").pieces
    tokens = [token for document in documents_of(mixed, "train") for sentence in document for token in sentence]
    counts = Counter(pieces[token] for token in tokens)
    own = [counts[piece] for piece in pieces if piece not in SPECIAL_PIECES]
    assert (words.entries, words.never_used) == (len(WORDS) + len(LETTERS), own.count(0)) and own.count(0) >= 4
    assert words.rarely_used == sum(0 < count < health.RARE for count in own) > 0
    assert words.unknown_share == pytest.approx(counts["[UNK]"] / len(tokens)) and counts["[UNK]"]
    assert words.single_letter_share == pytest.approx((counts["q"] + counts["v"]) / len(tokens)) and counts["q"]
    shares = [count / len(tokens) for count in counts.values()]
    assert words.entropy == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert dict(zip(words.ranks, words.rank_counts))[1] == max(counts.values())
    assert words.rank_counts[-1] == min(counts.values()) and words.ranks[-1] == len(counts)


@pytest.mark.parametrize("letter", ["漢", "か", "ก", "한", "7", ","])
def test_only_letters_of_scripts_in_which_a_word_takes_more_than_one_count_as_single(letter):
    pieces = [letter, f"##{letter}", "a", "##é", "▁ж", "ب", "ש", "##क", "▁", "ab"]
    assert health._single_letters(pieces).tolist() == [False] * 2 + [True] * 6 + [False] * 2


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_labels_fill_and_rows_are_those_of_the_stream(healthy, pairing):
    (stream,) = [stream for stream in examine(healthy, batch_size=7).streams if stream.pairing == pairing]
    corpus = open_corpus(healthy)
    for packing, rows, steps, fill in ((1, stream.rows, stream.steps, stream.fill),
                                       (8, stream.packed_rows, stream.packed_steps, stream.packed_fill)):  # fmt: skip
        expected = window_facts(corpus, DataConfig(LENGTH, pairing, packing=packing), seed=0)
        assert (rows, steps) == (expected.rows_per_epoch, expected.rows_per_epoch // 7)
        assert (fill, stream.random_labels) == (pytest.approx(expected.fill), expected.random_labels)
    assert sum(stream.counts) == stream.rows and stream.edges[-2:] == [LENGTH, LENGTH + 1]


def test_a_sample_is_spread_over_the_corpus_and_repeatable(tmp_path):
    rare = ["dalrympel", "gilfallan"]
    documents = text(4) + text(6) + text(5, words=rare)
    path = prepared(tmp_path, documents, [*WORDS, *rare], shard_megabytes=0.005)
    whole, part = examine(path), examine(path, sample_tokens=8_000)
    assert len(open_corpus(path).blocks["train"]) > 20
    assert part.sample_tokens == pytest.approx(8_000, rel=0.2)
    assert part.sample_share == part.sample_tokens / whole.sample_tokens < 0.5 and whole.sample_share == 1
    assert part.train == whole.train, "counts of the split are of all of it"
    assert part.vocabulary.never_used == 0, "the end of the text is not missed"
    assert part == examine(path, sample_tokens=8_000)


TROUBLES = {
    "repeated documents": (lambda: text() + text()[:8], {}, "trouble", "drop"),
    "repeated sentences": (lambda: [lines[:30] + text()[0][:10] for lines in text()], {}, "trouble", "drop"),
    "held-out sentences": (lambda: [lines[:30] + text()[0][:10] for lines in text()], {}, "trouble", "drop"),
    "sentence length": (lambda: [[" ".join(lines)] for lines in text()], {}, "trouble", "--sentences split"),
    "document length": (lambda: [[line] for lines in text() for line in lines], {}, "trouble", "none-across"),
    f"labels, nsp at {LENGTH}": (lambda: [[line] for lines in text() for line in lines], {}, "trouble", "nsp-balanced"),
    f"fill, nsp at {LENGTH}": (lambda: text(sentences=2), {}, "warning", "--data.packing 8"),
    f"steps, nsp at {LENGTH}": (lambda: text(documents=4), {}, "warning", "add text"),
    "unknown tokens": (lambda: text(words=[*WORDS, "unheardof", "unseen"] * 9 + ["other"] * 180), {}, "trouble",
                       "--tokenizer sentencepiece"),
    "single letters": (lambda: text(words=[*WORDS, *LETTERS * 15]), {}, "trouble", "--tokenizer sentencepiece"),
    "vocabulary": (lambda: text(words=WORDS[:50]), {}, "trouble", "--tokenizer sentencepiece"),
    "unigram entropy": (lambda: text(words=WORDS[:9]), {}, "trouble", "--vocab-size"),
    "held-out text": (text, {"validation_fraction": 0.0}, "trouble", "--validation-fraction"),
    "training text": (lambda: text(documents=1), {"validation_fraction": 0.0}, "trouble", "--data.pairing none"),
}  # fmt: skip


@pytest.mark.parametrize("measure", TROUBLES)
def test_each_trouble_is_found_where_it_is(tmp_path, measure):
    documents, settings, verdict, mend = TROUBLES[measure]
    line = found(prepared(tmp_path, documents(), **settings))[measure]
    assert line.verdict == verdict and mend in line.advice


def paragraphs(documents, boilerplate):
    """A line for each ten sentences, one of them the same everywhere."""
    lines = [[*lines[n:n + 9], boilerplate] for lines in documents for n in range(0, 40, 10)]
    return [[" ".join(f"{line.capitalize()}." for line in line)] for line in lines]


def in_two_cases():
    return [lines if copy else [line.upper() for line in lines] for lines in text(documents=20) for copy in range(2)]


OUT_OF_REACH = {
    "boilerplate inside of lines": (
        lambda: paragraphs(text(), " ".join(WORDS[:12])), {"sentences": "split"}, "repeated sentences"
    ),
    "boilerplate, and a few whole documents": (
        lambda: paragraphs(text() + text()[:2], " ".join(WORDS[:12])), {"sentences": "split"}, "held-out sentences"
    ),
    "documents that differ in case": (in_two_cases, {}, "repeated documents"),
    "lines that differ in case": (in_two_cases, {}, "repeated sentences"),
    "the same after dropping lines": (in_two_cases, {"drop_duplicates": "lines"}, "repeated sentences"),
    "the same after dropping documents": (
        lambda: in_two_cases() + text(documents=20) * 2, {"drop_duplicates": "documents"}, "repeated sentences"
    ),
}


@pytest.mark.parametrize("case", OUT_OF_REACH)
def test_dropping_is_not_advised_where_it_finds_nothing(tmp_path, case):
    documents, settings, measure = OUT_OF_REACH[case]
    line = found(prepared(tmp_path, documents(), [*WORDS, "."], **settings))[measure]
    assert line.verdict != "ok" and "take them out of" in line.advice and "again with" not in line.advice


def test_dropping_lines_is_advised_after_dropping_documents_where_lines_repeat(tmp_path):
    documents = [lines[:30] + text()[0][:10] for lines in text()] + text(seed=9, documents=2) * 2
    line = found(prepared(tmp_path, documents, drop_duplicates="documents"))["repeated sentences"]
    assert line.verdict == "trouble" and "prepare again with --drop-duplicates lines" in line.advice


def test_balanced_labels_are_advised_where_they_are_balanced(tmp_path):
    """Two documents of a word each: no chunk can be cut in two, so there is nothing to balance."""
    line = found(prepared(tmp_path, [["ban bal"], ["dan"]], validation_fraction=0.0))[f"labels, nsp at {LENGTH}"]
    assert line.verdict == "trouble" and "nsp-balanced" not in line.advice and "--data.pairing none" in line.advice


def test_a_text_of_one_token_has_no_entropy_and_no_negative_one(tmp_path):
    path = prepared(tmp_path, [["ban"] * count for count in range(1, 30)])
    assert found(path)["unigram entropy"].value == "0.00 nats, 0.00 held out"


def test_a_vocabulary_without_capitals_on_text_that_keeps_them_is_told_to_lower_case(tmp_path):
    documents = [[line.capitalize() for line in lines] for lines in text()]
    path = prepared(tmp_path, documents, lowercase=False)
    assert "--lowercase True" in found(path)["unknown tokens"].advice
    shutil.rmtree(path)
    assert found(prepared(tmp_path, documents, lowercase=True))["unknown tokens"].verdict == "ok"


def test_splitting_mends_what_paragraphs_broke(tmp_path):
    paragraphs = [[" ".join(f"{line.capitalize()}." for line in lines[n:n + 8]) for n in range(0, 40, 8)]
                  for lines in text()]  # fmt: skip
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    names = ("sentence length", f"labels, nsp at {LENGTH}")
    broken, mended = (
        found(prepared(tmp_path / name, paragraphs, [*WORDS, "."], sentences=setting))
        for name, setting in (("a", "lines"), ("b", "split"))
    )
    assert [broken[name].verdict for name in names] == ["trouble"] * 2
    assert all("--sentences split" in broken[name].advice for name in names)
    assert [mended[name].verdict for name in names] == ["ok"] * 2


def test_a_batch_larger_than_an_epoch_is_a_trouble_and_the_one_advised_is_none(healthy):
    name = f"steps, nsp at {LENGTH}"
    line = found(healthy, batch_size=100_000)[name]
    advised = int(line.advice.split("--train.batch-size of ")[1].split()[0])
    assert line.verdict == "trouble"
    assert [found(healthy, batch_size=size)[name].verdict for size in (advised, advised + 1)] == ["warning", "trouble"]


def test_advice_about_the_vocabulary_does_not_contradict_itself(tmp_path):
    """Words that fall apart ask for more entries, entries that are hardly used for fewer: a small text has both."""
    rng = random.Random(0)
    (tmp_path / "text.txt").write_text(" ".join("".join(rng.choices("abcdefghijklmnopqrs", k=8)) for _ in range(20)))
    config = PrepareConfig("wordpiece", vocab_size=60, sentences="lines", validation_fraction=0)
    prepare(config, [str(tmp_path / "text.txt")], str(tmp_path / "corpus"), workers=1, progress=False)
    lines = found(tmp_path / "corpus")
    assert "ok" not in (lines["single letters"].verdict, lines["vocabulary"].verdict)
    for measure in ("single letters", "vocabulary"):
        assert "larger" not in lines[measure].advice and "smaller" not in lines[measure].advice


def test_one_is_no_plural(tmp_path):
    path = prepared(tmp_path, text(documents=1), validation_fraction=0.0)
    assert found(path)["training text"].value.startswith("1 document, 40 sentences, ")


def test_what_prepare_counted_in_the_source_is_shown(healthy, tmp_path):
    path = shutil.copytree(healthy, tmp_path / "copy")
    assert found(path)["repeats in source"].value.startswith("0 of ")
    manifest = {name: value for name, value in open_corpus(path).manifest.items() if not name.startswith("format")}
    counted = {"documents": {"read": 30, "repeated": 0}, "lines": {"read": 1500, "repeated": 300}}
    write_manifest(path, manifest | {"duplicates": counted})
    assert found(path)["repeats in source"].value == "0 of 30 documents, 300 of 1,500 lines"


def test_a_damaged_shard_is_named(healthy, tmp_path):
    path = shutil.copytree(healthy, tmp_path / "copy")
    shard = next(path.glob("train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shard.name} was altered"):
        examine(path)


def test_a_foreign_tokenizer_folder_is_refused(healthy, mixed, tmp_path):
    path = shutil.copytree(healthy, tmp_path / "copy")
    shutil.rmtree(path / "tokenizer")
    shutil.copytree(mixed / "tokenizer", path / "tokenizer")
    with pytest.raises(ValueError, match="its tokenizer folder is not the one"):
        examine(path)


def test_a_corpus_without_training_text_is_refused(tmp_path):
    path = prepared(tmp_path, text(documents=1), validation_fraction=1 - 1e-12)
    with pytest.raises(ValueError, match="holds no training document"):
        examine(path)


@pytest.mark.parametrize("arguments, message", [
    ({"batch_size": 0}, "batch_size 0"), ({"sample_tokens": 0}, "sample_tokens 0"), ({"lengths": ()}, r"lengths \(\)"),
    ({"lengths": (128, 6)}, "lengths 6 is too short: expected at least 8, as many as there are sequences in a packed"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(healthy, arguments, message):
    with pytest.raises(ValueError, match=message):
        examine(healthy, **arguments)


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a prepared corpus"):
        examine(tmp_path)


def test_a_report_can_be_written_as_json(mixed, tmp_path):
    write_json(tmp_path / "report.json", verdicts.report(examine(mixed)))
