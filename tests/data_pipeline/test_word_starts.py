"""Which pieces open a word: by the marks of each kind of vocabulary, and on text against its spaces and punctuation."""

import re
import unicodedata
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from data_pipeline.normalization import normalize
from data_pipeline.python_docs import paragraphs
from data_pipeline.tokenizer import SPECIAL_PIECES, Tokenizer
from data_pipeline.tokenizer_training import train
from data_pipeline.word_starts import word_starts

TEXTS = [paragraph for name in sorted(topics)[:40] for paragraph in paragraphs(topics[name])]
TEXTS += ["Überraschend größere Straßen, naïve cafés (élan); “quoted” words — don't they? E-mail: Ένας σοφός."] * 9
UNSPACED = {  # by their Unicode blocks
    "Chinese": range(0x4E00, 0xA000),
    "Chinese, rare": range(0x20000, 0x2A6DE),
    "hiragana": range(0x3041, 0x3097),
    "katakana": range(0x30A1, 0x30FB),
    "bopomofo": range(0x3105, 0x3130),
    "Thai": range(0x0E01, 0x0E3A),
    "Lao": range(0x0EA7, 0x0EBE),
    "Khmer": range(0x1780, 0x17B4),
    "Burmese": range(0x1000, 0x1040),
    "Tibetan": range(0x0F49, 0x0F6D),
}
SPACED = {
    "Latin": range(0x61, 0x7B),
    "Latin with marks": range(0xDF, 0xF7),
    "Greek": range(0x3B1, 0x3CA),
    "Cyrillic": range(0x430, 0x450),
    "Hebrew": range(0x5D0, 0x5EB),
    "Arabic": range(0x641, 0x64B),
    "Hindi": range(0x904, 0x93A),
    "Korean": range(0xAC00, 0xD7A4),
    "digits": range(0x30, 0x3A),
}


def opens(kind: str, *pieces: str) -> list[bool]:
    found = word_starts(kind, list(pieces))
    assert found.dtype == bool
    return found.tolist()


def test_of_wordpiece_every_piece_without_marks_opens_a_word():
    pieces = ("the", "##the", "##s", ",", "##,", "中", "##中", "#", "#s", "1", "[UNK]", "[MASK]", "é")
    assert opens("wordpiece", *pieces) == [piece[:2] != "##" for piece in pieces]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_of_sentencepiece_the_mark_opens_a_word_and_letters_without_it_go_on(kind):
    assert opens(kind, "▁", "▁the", "▁,", "▁中", "▁1") == [True] * 5
    assert opens(kind, "the", "s", "é", "1", "2nd", "s.", "t-", "ing") == [False] * 8


@pytest.mark.parametrize("piece", [",", ".", "'", "'s", "-", "(", "”", "–", "…", "«", "_", "$", "€", "+", "°", "。"])
def test_of_sentencepiece_punctuation_and_symbols_open_a_word(piece):
    assert opens("unigram", piece) == [True]


def test_of_sentencepiece_an_unknown_character_goes_on_with_its_word():
    """[UNK] is no bracket. The other special pieces are never chosen from: what is said of them does not matter."""
    assert opens("unigram", "[UNK]", "[", "[PAD", "") == [False, True, True, False]


@pytest.mark.parametrize("script", UNSPACED)
def test_in_scripts_without_spaces_each_piece_is_a_word(script):
    characters = [chr(code) for code in UNSPACED[script] if unicodedata.category(chr(code)) != "Cn"]
    assert len(characters) > 10
    for piece in characters:
        assert opens("unigram", piece, piece + "x") == [True, True], (piece, unicodedata.name(piece))


@pytest.mark.parametrize("script", SPACED)
def test_in_scripts_with_spaces_a_piece_without_the_mark_goes_on(script):
    characters = [chr(code) for code in SPACED[script]]
    assert not any(opens("unigram", *characters))


# --- on text ---------------------------------------------------------------------------------------------------------


def words(tokenizer: Tokenizer, texts: list[str]) -> list[list[str]]:
    """The pieces of each text, joined to words."""
    flags, found = word_starts(tokenizer.kind, tokenizer.pieces), []
    for ids in tokenizer.encode(texts):
        borders = [*np.flatnonzero(flags[ids]), len(ids)]
        assert borders[0] == 0
        found.append(["".join(tokenizer.pieces[n] for n in ids[one:two]) for one, two in zip(borders, borders[1:])])
    return found


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_of_a_trained_sentencepiece_model_are_those_between_spaces_and_before_punctuation(lowercase):
    """One mark of punctuation at a time: a run of them may be one piece or several. A mark of a space that is a piece
    by itself is a word of no letters where punctuation follows.
    """
    tokenizer = train("sentencepiece", TEXTS, 900, lowercase)
    plain = re.compile(r"(?:[^\w\s]?[^\W\d_]+)+[^\w\s]?")
    compared = punctuated = 0
    chunks = sorted({chunk for text in TEXTS for chunk in text.split() if plain.fullmatch(chunk)})
    for chunk, found in zip(chunks, words(tokenizer, chunks), strict=True):
        expected = [word for word in re.split(r"(?<=.)(?=[^\w\s])", normalize(chunk, lowercase)) if word]
        if "[UNK]" in "".join(found):
            continue
        assert [word.replace("▁", "") for word in found if word != "▁"] == expected, chunk
        compared, punctuated = compared + 1, punctuated + (len(expected) > 1)
    assert compared > 1500 and punctuated > 500


def test_words_of_a_whole_text_are_those_of_its_parts():
    """Spaces are where words end, whatever stands around them."""
    tokenizer = train("sentencepiece", TEXTS, 900, True)
    for text, found in zip(TEXTS, words(tokenizer, TEXTS), strict=True):
        assert found == [word for part in words(tokenizer, text.split()) for word in part]


def test_words_of_a_wordpiece_vocabulary_are_those_of_bert_s_pre_tokenizer():
    normalized = BertNormalizer(lowercase=True)
    texts = [normalized.normalize_str(text) for text in (*TEXTS[::5], "中文 words, mixed: 日本語!", "don't e-mail (me).")]
    characters = sorted(set("".join(texts)) - {" "})
    pieces = [*SPECIAL_PIECES, *characters, *(f"##{character}" for character in characters), "the", "##ing", "lambda"]
    tokenizer = Tokenizer("wordpiece", True, pieces, None, "test")
    for text, found in zip(texts, words(tokenizer, texts), strict=True):
        expected = [word for word, _ in BertPreTokenizer().pre_tokenize_str(text)]
        assert [word.replace("##", "") for word in found] == expected
