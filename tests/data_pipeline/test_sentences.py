"""Sentences: nothing lost, nothing blank, no pathological time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sentences import sentence_splitter


@given(st.text())
def test_splitting_loses_no_character_but_white_space(document):
    for mode in ("split", "lines"):
        sentences = sentence_splitter(mode, "en")(document)
        assert "".join("".join(sentences).split()) == "".join(document.split())
        assert all(sentence.strip() and "\n" not in sentence for sentence in sentences)


@pytest.mark.parametrize(
    "language, sentences",
    [
        ("en", ["Dr. Smith met J. K. Rowling at 5 p.m. in the U.S. embassy.", "They spoke of Fig. 3.", "Why?"]),
        ("de", ["Die Schlacht war am 7. Oktober 1777.", "Er gewann z. B. zwei Gefechte."]),
        ("zh", ["克莱蒙费朗站是法国的一个铁路车站。", "2009年位于中部城市！"]),
    ],
)
def test_sentences_of_three_languages_are_found(language, sentences):
    space = "" if language == "zh" else " "
    found = sentence_splitter("split", language)(space.join(sentences))
    assert [sentence.strip() for sentence in found] == sentences


def test_a_language_without_rules_of_its_own_falls_back():
    assert len(sentence_splitter("split", "xx")("Ein Satz. Noch ein Satz.")) == 2


def test_a_long_line_of_quotation_marks_takes_no_quadratic_time():
    begin = time.monotonic()
    sentences = sentence_splitter("split", "en")("«a. " * 100_000)
    assert "".join(sentences) == "«a. " * 100_000
    assert time.monotonic() - begin < 10


def test_unknown_modes_and_languages_are_refused():
    with pytest.raises(ValueError, match="sentences 'words' is not one of"):
        sentence_splitter("words", "en")
    with pytest.raises(ValueError, match="language 'en_US!' is not a code"):
        sentence_splitter("split", "en_US!")
