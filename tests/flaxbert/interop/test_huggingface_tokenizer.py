"""Tokenizers of Hugging Face directories: read, written as ours where they are, compared."""

import json

import pytest

from data_pipeline import tokenizer as tokenizers
from flaxbert.interop.huggingface_tokenizer import (
    PROBES, check_same, difference, is_own, read_tokenizer, write_tokenizer
)  # fmt: skip

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "the", "dog", ",", "."]


@pytest.fixture
def wordpiece():
    return tokenizers.Tokenizer("wordpiece", True, PIECES, None, "the test")


def vocabulary(folder, **settings):
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in PIECES))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def foreign(folder, wordpiece, **changes):
    """A tokenizer.json as transformers saves it, with fields of its normaliser changed."""
    folder.mkdir()
    state = json.loads(wordpiece.to_rust().to_str())
    state["normalizer"] |= {"strip_accents": None} | changes
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


def test_a_vocabulary_alone_is_read_as_bert_reads_it(wordpiece, small_config, tmp_path):
    found = read_tokenizer(vocabulary(tmp_path / "folder"), small_config)
    assert difference(found, wordpiece.to_rust()) is None
    assert found.encode("The dogs").tokens == ["[CLS]", "the", "dog", "##s", "[SEP]"]


def test_a_cased_vocabulary_is_read_as_its_settings_say(small_config, tmp_path):
    found = read_tokenizer(vocabulary(tmp_path / "folder", do_lower_case=False), small_config)
    assert found.encode("The dog").tokens == ["[CLS]", "[UNK]", "dog", "[SEP]"]


def test_a_vocabulary_with_capitals_and_no_settings_is_cased(small_config, tmp_path):
    folder = vocabulary(tmp_path / "folder")
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in [*PIECES, "The"]))
    assert read_tokenizer(folder, small_config).encode("The the").tokens[1:-1] == ["The", "the"]


@pytest.mark.parametrize("settings, message", [
    ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is 'BertJapaneseTokenizer', and there is no"),
    ({"do_lower_case": None}, "do_lower_case is None, expected true or false"),
    ({"do_lower_case": "false"}, "do_lower_case is 'false', expected true or false"),
])  # fmt: skip
def test_settings_of_another_kind_of_tokenizer_are_refused(small_config, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(vocabulary(tmp_path / "folder", **settings), small_config)


@pytest.mark.parametrize("field", ["do_lower_case", "tokenize_chinese_chars"])
def test_two_files_that_contradict_each_other_are_refused(wordpiece, small_config, tmp_path, field):
    source = foreign(tmp_path / "source", wordpiece)
    settings = {"tokenizer_class": "BertTokenizer", field: False}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{field} is False, and tokenizer.json says True: make the two agree"):
        read_tokenizer(source, small_config)
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {field: True}))
    read_tokenizer(source, small_config)


def test_the_way_to_a_corpus_of_the_same_tokenizer_is_one_that_prepare_takes(wordpiece, small_config, tmp_path):
    other = tokenizers.Tokenizer("wordpiece", False, PIECES, None, "the test").to_rust()
    wordpiece.save(tmp_path / "run" / "tokenizer")
    foreign(tmp_path / "strange", wordpiece)
    for folder, way in (
        (tmp_path / "run", f"--tokenizer {tmp_path / 'run' / 'tokenizer'}"),
        (vocabulary(tmp_path / "bare"), f"--tokenizer {tmp_path / 'bare' / 'vocab.txt'}"),
        (tmp_path / "strange", "and prepare cannot use it"),
    ):
        with pytest.raises(ValueError, match=way):
            check_same(str(folder), wordpiece.to_rust(), other)


@pytest.mark.parametrize("settings", [{"strip_accents": False}, {"tokenize_chinese_chars": False}])
def test_settings_that_our_rule_does_not_have_are_refused(small_config, tmp_path, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is False .*save this tokenizer as tokenizer.json"):
        read_tokenizer(vocabulary(tmp_path / "folder", **settings), small_config)


@pytest.mark.parametrize("content, message", [(None, "neither tokenizer.json nor vocab"), ("{", "cannot be read")])
def test_a_directory_without_a_usable_tokenizer_is_refused(small_config, tmp_path, content, message):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path, small_config)


def test_the_wordpiece_of_transformers_becomes_one_that_prepare_takes(wordpiece, small_config, tmp_path):
    source = foreign(tmp_path / "source", wordpiece)
    (tmp_path / "target").mkdir()
    write_tokenizer(source, tmp_path / "target", small_config)
    assert is_own(tmp_path / "target")
    loaded = tokenizers.load(tmp_path / "target")
    assert (loaded.fingerprint, loaded.lowercase) == (wordpiece.fingerprint, True)
    assert json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())["model_max_length"] == 48


@pytest.mark.parametrize("changes", [{"strip_accents": False}, {"handle_chinese_chars": False}, {"clean_text": False}])
def test_a_rule_that_is_not_ours_is_kept_as_it_is(wordpiece, small_config, tmp_path, changes):
    source = foreign(tmp_path / "source", wordpiece, **changes)
    (tmp_path / "target").mkdir()
    write_tokenizer(source, tmp_path / "target", small_config)
    assert not is_own(tmp_path / "target")
    assert (tmp_path / "target" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    settings = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48}


def test_our_own_folder_is_copied_whole(tokenizer_folder, small_config, tmp_path):
    write_tokenizer(tokenizer_folder, tmp_path, small_config)
    assert tokenizers.load(tmp_path).fingerprint == tokenizers.load(tokenizer_folder).fingerprint


def test_tokenizers_that_differ_in_a_piece_are_told_apart_by_it(wordpiece):
    swapped = PIECES[:-2] + [".", ","]
    other = tokenizers.Tokenizer("wordpiece", True, swapped, None, "the test")
    assert "is id" in str(difference(wordpiece.to_rust(), other.to_rust()))
    shorter = tokenizers.Tokenizer("wordpiece", True, PIECES[:-1], None, "the test")
    assert difference(wordpiece.to_rust(), shorter.to_rust()) == "'.' is id 35 in one and no piece in the other"


def test_tokenizers_that_differ_in_their_rule_are_told_apart_by_a_probe(wordpiece):
    cased = tokenizers.Tokenizer("wordpiece", False, PIECES, None, "the test")
    assert "is read in two ways" in str(difference(wordpiece.to_rust(), cased.to_rust()))
    assert difference(wordpiece.to_rust(), wordpiece.to_rust()) is None and len(set(PROBES)) == len(PROBES)


def test_the_files_of_a_tokenizer_may_lie_in_a_model(tokenizer_folder, small_export, small_config):
    one, other = (read_tokenizer(folder, small_config) for folder in (tokenizer_folder, small_export))
    assert difference(one, other) is None
