"""SentencePiece models made elsewhere: what fits BERT is read as its options say, and nothing else is."""

import functools

import pytest
from tokenizer_kinds import exported, foreign_model, rust_ids

from data_pipeline import sentencepiece_model
from data_pipeline.tokenizer import load

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Rivers run to the sea, and the sea is never full: this is known.",
    "Walking, running and jumping are ways of moving; sleeping is a way of staying.",
] * 20
CONTROL = ["[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def model():
    return foreign_model(SENTENCES, vocab_size=50)


def fields():
    """(number, bytes of the whole field) of each field of the model."""
    end, found = 0, []
    for number, value, start in sentencepiece_model._fields(model()):
        end, start = start + len(value), end
        found.append((number, model()[start:end]))
    return found


def pieces():
    return [field for number, field in fields() if number == 1]


def rest(*numbers):
    return b"".join(field for number, field in fields() if number in numbers)


def with_a_broken_map():
    """The model with another size at the start of its map of characters, behind the three bytes of the map's length."""
    start = model().index(b"nmt_nfkc\x12") + len(b"nmt_nfkc\x12") + 3
    return model()[:start] + b"\xff\xff\xff\x7f" + model()[start + 4:]


def written(folder, content):
    (folder / "foreign.model").write_bytes(content)
    return folder / "foreign.model"


def test_the_fields_put_together_are_the_model(tmp_path):
    assert b"".join(pieces()) + rest(2, 3) == model()
    load(written(tmp_path, model()))


@pytest.mark.parametrize("damaged, message", [
    (lambda: b"".join(pieces()[:-9]), "damaged: it has no trainer settings"),
    (lambda: b"".join(pieces()) + rest(2), "damaged: it has no normalisation rule"),
    (lambda: rest(2, 3), "damaged: it has no pieces"),
    (lambda: model()[:len(model()) // 2], "damaged: a field runs past the end"),
    (lambda: b"".join([*pieces(), pieces()[-1]]) + rest(2, 3), r"has '.+' twice: as 49 and 50"),
    (lambda: with_a_broken_map(), "SentencePiece model is damaged: .*exceeds the input"),
    (lambda: b"".join([pieces()[0], *pieces()[2:]]) + rest(2, 3), r"lacks \[UNK\]: all of"),
    (lambda: b"".join([*pieces(), pieces()[1].replace(b"[UNK]", b"[UNQ]")]) + rest(2, 3),
     r"has \[UNK\], \[UNQ\] for unknown text: expected \[UNK\] alone"),
])  # fmt: skip
def test_a_damaged_model_is_refused_in_one_sentence(tmp_path, damaged, message):
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, damaged()))


@pytest.mark.parametrize("options, message", [
    (dict(unk_piece="<unk>", control_symbols=[*CONTROL, "[UNK]"]), "has <unk> for unknown text: expected .UNK. alone"),
    (dict(unk_piece="<unk>", user_defined_symbols=["[UNK]"]), "has <unk> for unknown text: expected .UNK. alone"),
    (dict(treat_whitespace_as_suffix=True), "has treat_whitespace_as_suffix: expected the space before a word"),
    (dict(pad_id=2, unk_id=0, bos_id=-1), r"has \[PAD\] = 2: expected \[PAD\] = 0"),
])  # fmt: skip
def test_a_model_whose_rule_is_not_berts_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(written(tmp_path, foreign_model(SENTENCES, vocab_size=50, **options)))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("options", [
    dict(unk_id=7),
    dict(bos_id=5, eos_id=6),
    dict(add_dummy_prefix=False),
    dict(remove_extra_whitespaces=False),
    dict(split_by_whitespace=False),
    dict(normalization_rule_name="identity"),
    dict(byte_fallback=True, vocab_size=300),
], ids=str)  # fmt: skip
def test_every_other_option_of_a_model_reaches_tokenizer_json(tmp_path, kind, options):
    import sentencepiece

    if options.get("normalization_rule_name") == "identity":
        options = options | dict(remove_extra_whitespaces=True)
    content = foreign_model(SENTENCES, **dict(vocab_size=50, model_type=kind) | options)
    ours = load(written(tmp_path, content))
    texts = [*SENTENCES, "a  dog", "the   sea ", "Zebra <0x41> <s> </s>", "x\ty\nz", "日本 fox 日本"]
    expected = sentencepiece.SentencePieceProcessor(model_proto=content).encode(texts)
    assert ours.unknown_id == options.get("unk_id", 1)
    assert ours.encode(texts) == expected == rust_ids(exported(ours), texts)
