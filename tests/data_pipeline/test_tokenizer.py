"""Tokenizers: our ids are those of tokenizer.json, special tokens in text stay text, and bad ones are refused."""

import functools
import json
import random
import sys
import tempfile
import unicodedata
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from data_pipeline import sentencepiece_model
from data_pipeline.normalization import normalize, rust_normalizer
from data_pipeline.python_docs import paragraphs
from data_pipeline.tokenizer import SPECIAL_PIECES, load
from data_pipeline.tokenizer_training import train

TEXT = (
    "The quick brown fox jumps over the lazy dog. Numbers such as 1000000 and 20,000 are cut. "
    "Überraschend größere Straßen in Österreich. Ένας σοφός Οδυσσέας. 克莱蒙费朗站是法国的一个铁路车站，位于中部。 "
    "naïve café élan; “quoted” – dashes — and emoji 🙂. Upper And Lower Case WORDS in E-Mail."
)
SENTENCES = [" ".join(random.Random(seed).sample(TEXT.split(), 12)) for seed in range(200)]
SENTENCES += [paragraph for name in sorted(topics)[:60] for paragraph in paragraphs(topics[name])]
KINDS = [("sentencepiece", True), ("sentencepiece", False), ("wordpiece", True), ("wordpiece", False)]
ODD = [
    "", " ", "\n",
    "\t\n \u2003", "a\u0301e\u0308", "\u0301 \u0301x", "x\x00y\x1fz", "🙂👩‍👩‍👧‍👦", "ΟΔΥΣΣΕΥΣ ΑΣ", "İstanbul ǅ ﬁ Å",
    "\u2581a \u2581\u2581 b\u2581",
    "ｆｕｌｌ　ｗｉｄｔｈ，。", "가각힣 \u1100\u1161\u11a8", "¨ ´ ½ ™ ²", "\ufeffb\u200bc\u00ad", "１２３",
    "a\u00a0b\u1680c\u2028d\x85e\x1cf", "\U0001e900\U00010400\u1c89\ua7cb",
    "aaaaaaaaaaaaaaaaaaaaaaaaa" * 20, "\U0010ffff\ue000\ufffd",
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'uncased' if kind[1] else 'cased'}")
def tokenizer(request):
    kind, lowercase = request.param
    return train(kind, SENTENCES, 800, lowercase)


@functools.cache
def exported(tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return RustTokenizer.from_file(f"{folder}/tokenizer.json")


def rust_ids(tokenizer, texts):
    """What the exported tokenizer.json makes of the texts."""
    return [encoding.ids for encoding in exported(tokenizer).encode_batch(texts, add_special_tokens=False)]


def is_assigned(character):
    return unicodedata.category(character) not in ("Cs", "Cn", "Co")


def random_texts(count, seed):
    draw = random.Random(seed)
    common = [character for character in TEXT] + [" "] * 20
    anything = [character for character in map(chr, range(sys.maxunicode)) if is_assigned(character)]
    return ["".join(draw.choices(draw.choice((common, anything)), k=draw.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("lowercase", [True, False])
def test_fast_normalisation_equals_the_exported_one_on_every_character(lowercase):
    rust = rust_normalizer(lowercase)
    assigned = [character for character in map(chr, range(sys.maxunicode)) if is_assigned(character)]
    for text in (*(f"a{character}b" for character in assigned), *random_texts(2000, seed=1), *ODD):
        assert normalize(text, lowercase) == rust.normalize_str(text).lstrip(" "), ascii(text)


def test_ids_equal_those_of_tokenizer_json_on_odd_and_random_text(tokenizer):
    texts = ODD + random_texts(3000, seed=2)
    assert tokenizer.encode(texts) == rust_ids(tokenizer, texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \u2581aÄ中")))))
def test_ids_of_a_batch_are_those_of_each_text(tokenizer, texts):
    assume(not any(piece in text for piece in SPECIAL_PIECES for text in texts))
    assert tokenizer.encode(texts) == rust_ids(tokenizer, texts)


def test_text_around_a_mask_is_read_as_the_corpus_reads_it(tokenizer):
    plain = tokenizer.encode(["the dog jumps, over the fox."])[0]
    for word in ("dog", "fox", "the"):
        word_ids = tokenizer.encode([f"x {word}"])[0][len(tokenizer.encode(["x"])[0]):]
        at = next(i for i in range(len(plain)) if plain[i:i + len(word_ids)] == word_ids)
        masked = exported(tokenizer).encode(
            "the dog jumps, over the fox.".replace(word, "[MASK]", 1), add_special_tokens=False
        ).ids
        assert masked == plain[:at] + [tokenizer.mask_id] + plain[at + len(word_ids):]


def test_ids_equal_those_of_tokenizer_json_on_100_000_characters(tokenizer):
    texts = [" ".join(SENTENCES)[:100_000], "".join(TEXT.split()) * 400, "aßb" * 33_000]
    assert tokenizer.encode(texts) == rust_ids(tokenizer, texts)


@pytest.mark.parametrize("name", ["corpus-enwiki2015", "unicode/dewiki", "unicode/zhwiki"])
def test_ids_equal_those_of_tokenizer_json_on_every_line_of_the_shared_text(tokenizer, shared_data, name):
    lines = (shared_data / name / "valid.txt").read_text(encoding="utf-8").splitlines()
    ours = tokenizer.encode(lines)
    assert ours == rust_ids(tokenizer, lines)


def test_emptying_the_cache_of_words_changes_no_id(tokenizer, monkeypatch):
    expected = tokenizer.encode(SENTENCES)
    monkeypatch.setattr("data_pipeline.word_table._CACHED_WORDS", 10)
    assert [tokenizer.encode([sentence])[0] for sentence in SENTENCES] == expected


def test_a_special_token_in_the_text_stays_text(tokenizer):
    texts = [f"a {piece} b {piece.lower()} [{piece}] ［ＭＡＳＫ］" for piece in SPECIAL_PIECES]
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    ids, lengths = tokenizer.encode_ragged(texts)
    assert lengths.min() > 0 and not special & set(ids.tolist())
    long = [f"{'x' * 600}{text.replace(' ', '')}" for text in texts]
    assert not special & set(tokenizer.encode_ragged(long).ids.tolist())


def test_special_tokens_come_first_and_ids_fit_the_flat_form(tokenizer):
    assert tokenizer.pieces[:5] == list(SPECIAL_PIECES)
    assert (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.mask_id) == (0, 1, 4)
    assert len(tokenizer.pieces) == tokenizer.vocab_size
    ids, lengths = tokenizer.encode_ragged(["The dog", "", "\n"])
    assert ids.dtype == np.uint16 and lengths.tolist() == [len(ids), 0, 0]
    assert tokenizer.encode([]) == [] and tokenizer.encode_ragged([]).ids.shape == (0,)


def test_a_lone_surrogate_does_no_harm(tokenizer):
    assert len(tokenizer.encode(["a \ud800 b", "\udfff" * 3])) == 2


def test_a_saved_folder_loads_as_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    loaded = load(tmp_path / "t")
    assert (loaded.fingerprint, loaded.pieces, loaded.kind) == (tokenizer.fingerprint, tokenizer.pieces, tokenizer.kind)
    assert loaded.encode(SENTENCES) == tokenizer.encode(SENTENCES)


def test_a_damaged_folder_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    vocabulary = tmp_path / "t" / ("vocab.txt" if tokenizer.model is None else "sentencepiece.model")
    content = bytearray(vocabulary.read_bytes())
    content[len(content) // 2] ^= 1
    vocabulary.write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer|vocabulary"):
        load(tmp_path / "t")
    tokenizer.save(tmp_path / "t")
    info = tmp_path / "t" / "tokenizer_info.json"
    other = json.loads(info.read_text()) | {"lowercase": not tokenizer.lowercase}
    info.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="is damaged: its content is not what tokenizer_info.json records"):
        load(tmp_path / "t")
    vocabulary.unlink()
    with pytest.raises(ValueError, match="is incomplete: .* is missing"):
        load(tmp_path / "t")


def test_hugging_face_wraps_pairs_as_the_model_expects(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    exported = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pair = exported.encode("the dog", "a fox [MASK]")
    (first, second) = tokenizer.encode(["the dog", "a fox"])
    assert pair.ids == [2, *first, 3, *second, 4, 3]
    assert pair.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 2)


def test_training_sentencepiece_twice_gives_one_vocabulary():
    first, second = (train("sentencepiece", SENTENCES, 250, True).fingerprint for _ in range(2))
    assert first == second


def test_long_training_lines_are_cut_and_not_dropped():
    tokenizer = train("sentencepiece", ["abcdefgh " * 3000, "ж" * 9000, *SENTENCES[200:]], 800, True)
    assert tokenizer.unknown_id not in tokenizer.encode(["abcdefgh ж"])[0]


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(kind):
    with pytest.raises(ValueError, match=r"vocab_size 20 is smaller than the alphabet of the corpus: .* need \d+"):
        train(kind, SENTENCES, 20, True)


def test_a_vocabulary_larger_than_the_text_supports_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size 90000 is more than this text supports: expected at most \d+"):
        train("sentencepiece", SENTENCES, 90_000, True)


def test_vocabularies_of_the_reference_keep_their_ids(shared_data):
    uncased = load(shared_data / "vocab/bert-base-uncased-vocab.txt")
    assert (uncased.pad_id, uncased.unknown_id) == (0, 100)
    assert (uncased.cls_id, uncased.sep_id, uncased.mask_id) == (101, 102, 103)
    assert uncased.encode(["Hello [MASK] wörld"]) == [[7592, 1031, 7308, 1033, 2088]]
    cased = load(shared_data / "vocab/bert-base-cased-vocab.txt", lowercase=False)
    assert [cased.pieces[index] for index in cased.encode(["Hello World"])[0]] == ["Hello", "World"]
    with pytest.raises(ValueError, match="is cased: .* expected lowercase = False"):
        load(shared_data / "vocab/bert-base-cased-vocab.txt")
    load(shared_data / "vocab/bert-base-chinese-vocab.txt")


def foreign_model(folder, **options):
    import sentencepiece

    (folder / "text.txt").write_text("\n".join(SENTENCES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "foreign"), minloglevel=2,
        **dict(vocab_size=300, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="[PAD]", unk_piece="[UNK]",
               control_symbols=["[CLS]", "[SEP]", "[MASK]"]) | options,
    )
    return folder / "foreign.model"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_foreign_sentencepiece_model_keeps_its_own_rule(tmp_path, kind):
    import sentencepiece

    path = foreign_model(tmp_path, model_type=kind, normalization_rule_name="nmt_nfkc_cf")
    tokenizer = load(path)
    expected = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(SENTENCES)
    assert tokenizer.kind == kind and tokenizer.encode(SENTENCES) == expected
    assert rust_ids(tokenizer, SENTENCES) == expected
    tokenizer.save(tmp_path / "saved")
    assert load(tmp_path / "saved").encode(SENTENCES) == expected


def test_tokenizers_that_cannot_serve_are_refused(tmp_path):
    for message, options in (
        (r"lacks \[MASK\]: all of", dict(control_symbols=["[CLS]", "[SEP]"])),
        (r"has \[MASK\] as a piece of text", dict(control_symbols=["[CLS]", "[SEP]"], user_defined_symbols=["[MASK]"])),
        (r"lacks \[PAD\], \[UNK\]", dict(pad_piece="<pad>", unk_piece="<unk>")),
        (r"of type 4: expected unigram or BPE", dict(model_type="char", vocab_size=100, hard_vocab_limit=False)),
    ):
        with pytest.raises(ValueError, match=message):
            load(foreign_model(tmp_path, **options))
    for name, content, message in (
        ("junk.model", b"\x0a\xff\xff\xff\xff\x0fjunk", "is not a SentencePiece model, or damaged"),
        ("empty.model", b"", "is not a SentencePiece model, or damaged"),
        ("vocab.txt", b"[PAD]\na\n", r"lacks \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ("twice.txt", b"[PAD]\na\na\n", "has 'a' twice: on lines 2 and 3"),
        ("late.txt", b"a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", r"has \[PAD\] = 1: expected \[PAD\] = 0"),
        ("latin.txt", b"\xff\n", "is not UTF-8 at byte 0"),
        ("vocab.bin", b"x", "is of no known kind"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    for path, message in ((tmp_path, "was not written by prepare"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(ValueError, match=message):
            load(path)


def test_our_model_without_its_folder_is_refused(tmp_path):
    train("sentencepiece", SENTENCES, 250, True).save(tmp_path / "t")
    assert load(tmp_path / "t" / "sentencepiece.model").lowercase
    (tmp_path / "alone.model").write_bytes((tmp_path / "t" / "sentencepiece.model").read_bytes())
    with pytest.raises(ValueError, match="load the folder it was saved in"):
        load(tmp_path / "alone.model")


def test_trained_scores_add_up_exactly_in_single_precision():
    model = sentencepiece_model.parse(train("sentencepiece", SENTENCES, 250, True).model, "test")
    steps = np.array([piece.score for piece in model.pieces]) / sentencepiece_model.SCORE_STEP
    assert (steps == np.round(steps)).all()
