"""Tokenizers as transformers loads them, and WordPiece beside the reference's code: the same ids in every script."""

import functools
import unicodedata

import pytest
from tokenizer_kinds import FOREIGN, OURS, RELEASED, exported, random_strings, rust_ids, samples, tokenizer

transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

pytestmark = pytest.mark.parity


@pytest.fixture(params=[*OURS, *RELEASED, *FOREIGN])
def kind(request, shared_data, tmp_path):
    """(name, tokenizer, what AutoTokenizer makes of its folder)."""
    ours = tokenizer(request.param, shared_data)
    ours.save(tmp_path / "tokenizer")
    return request.param, ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def test_autotokenizer_gives_the_ids_of_tokenizer_json_and_of_the_corpus(kind, shared_data, assert_parity):
    name, ours, auto = kind
    rust = exported(ours)
    for sample, texts in samples(shared_data, every=24).items():
        found = auto(texts, add_special_tokens=False, verbose=False)["input_ids"]
        differing = sum(a != b for a, b in zip(ours.encode(texts), found, strict=True))
        kind = "foreign SentencePiece models" if name in FOREIGN else "our and the released tokenizers"
        what = f"texts of the sample '{sample}' whose ids differ, {kind}"
        assert_parity(what, "transformers AutoTokenizer", differing, len(texts) // 10 if name in FOREIGN else 0)
        assert found == rust_ids(rust, texts)


def test_autotokenizer_knows_the_special_tokens(kind):
    _, ours, auto = kind
    found = (auto.pad_token_id, auto.unk_token_id, auto.cls_token_id, auto.sep_token_id, auto.mask_token_id)
    assert found == (ours.pad_id, ours.unknown_id, ours.cls_id, ours.sep_id, ours.mask_id)
    (text,) = ours.encode(["a dog"])
    assert auto("a dog").input_ids == [ours.cls_id, *text, ours.sep_id]


@functools.cache
def reference():
    """bert-tensorflow's module: the reference's tokenization.py."""
    module = pytest.importorskip("bert.tokenization", reason="needs bert-tensorflow: install the extra `parity`")
    module.FLAGS.mark_as_parsed()
    return module


def reference_ids(ours, texts):
    basic = reference().BasicTokenizer(do_lower_case=ours.lowercase)
    ids = {piece: index for index, piece in enumerate(ours.pieces)}
    pieces = reference().WordpieceTokenizer(ids)
    return [[ids[piece] for word in basic.tokenize(text) for piece in pieces.tokenize(word)] for text in texts]


def known_to_both(character):
    """Whether its category is that of Unicode 3.2: the tables of Python and of `tokenizers` differ in age."""
    category = unicodedata.ucd_3_2_0.category(character)
    return category not in ("Co", "Cn") and category == unicodedata.category(character)


@pytest.mark.parametrize("name", RELEASED)
def test_wordpiece_gives_the_ids_of_the_reference(name, shared_data, assert_parity):
    ours = tokenizer(name, shared_data)
    texts = samples(shared_data, every=24)
    texts["random"] = ["".join(filter(known_to_both, text)).replace("\u03a3", "") for text in random_strings()]
    for sample in ("declaration", "german", "chinese", "random"):
        expected = reference_ids(ours, texts[sample])
        differing = [text for text, a, b in zip(texts[sample], ours.encode(texts[sample]), expected) if a != b]
        what = f"texts of the sample '{sample}' whose WordPiece ids differ"
        assert_parity(what, "tokenization.py of google-research/bert", len(differing), 0)


@pytest.mark.parametrize("text, ours, theirs", [
    (120 * "a" + " b", ["[UNK]", "b"], None),  # transformers' limit is 100 characters a word, the reference's 200
    ("a\ue000b", ["ab"], ["[UNK]"]),  # private use, and what is unassigned: dropped with the control characters
    ("ΣΑΣ", ["σ", "##α", "##σ"], ["σ", "##α", "##ς"]),  # Python lower-cases a last sigma by its context
    ("a\U0002b820b", ["[UNK]"], ["a", "[UNK]", "b"]),  # an ideograph of extension E that `tokenizers` does not part off
    ("a\u0898b", ["[UNK]"], ["ab"]),  # a mark of Unicode 14
], ids=ascii)  # fmt: skip
def test_known_differences_from_the_reference_are_these(shared_data, text, ours, theirs):
    uncased = tokenizer("bert-base-uncased", shared_data)
    names = uncased.pieces
    assert [names[index] for index in uncased.encode([text])[0]] == ours
    found = [names[index] for index in reference_ids(uncased, [text])[0]]
    assert found == theirs if theirs else "[UNK]" not in found and len(found) > 10
