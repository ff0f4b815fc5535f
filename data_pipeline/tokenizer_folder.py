"""A tokenizer as Hugging Face knows it: `tokenizer.json` and the files beside it, in one self-contained folder."""

import re
from pathlib import Path
from typing import Any

from data_pipeline import sentencepiece_model
from data_pipeline.normalization import rust_normalizer
from data_pipeline.whole_files import write_json

INFO = "tokenizer_info.json"
MODEL = "sentencepiece.model"
VOCABULARY = "vocab.txt"

_FORMAT_VERSION = 1
_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_SILENT = (sentencepiece_model.UNKNOWN, sentencepiece_model.CONTROL)
_NO_TEXT = (*_SILENT, sentencepiece_model.BYTE)
# A character that normalised text never holds.
_IN_NO_TEXT = "\n"


def rust_tokenizer(kind: str, lowercase: bool, pieces: list[str], model: Any, special: bool) -> Any:
    """The `tokenizers` form of a tokenizer.

    With `special`, as it is exported: special tokens written in a text are recognised, and sequences are wrapped in
    them. Without, as corpora need it: whatever a text holds is text.
    """
    from tokenizers import AddedToken, Tokenizer, processors

    if kind == "wordpiece":
        tokenizer = Tokenizer(_wordpiece(pieces))
        _add_bert_rule(tokenizer, lowercase)
    else:
        tokenizer = Tokenizer(_unigram(model, special) if kind == "unigram" else _byte_pairs(model))
        _add_sentencepiece_rule(tokenizer, lowercase, model)
    if special and kind == "unigram":
        _cut_names(tokenizer, model)
    if not special:
        return tokenizer
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in _ROLES.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _wordpiece(pieces: list[str]) -> Any:
    from tokenizers import models

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)


def _add_bert_rule(tokenizer: Any, lowercase: bool) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _unigram(model: sentencepiece_model.Model, special: bool) -> Any:
    """`tokenizers` would find a control symbol's name in text: without `special`, the symbol has another name."""
    from tokenizers import models

    unknown = next(index for index, piece in enumerate(model.pieces) if piece.type == sentencepiece_model.UNKNOWN)
    prefix = "" if special else _IN_NO_TEXT
    vocabulary = [(prefix * (piece.type in _SILENT) + piece.text, piece.score) for piece in model.pieces]
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=model.byte_fallback)


def _byte_pairs(model: sentencepiece_model.Model) -> Any:
    """Merges are those pairs of pieces that form a piece, best score first, as SentencePiece applies them."""
    from tokenizers import models

    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    merges = []
    for index, piece in enumerate(model.pieces):
        if piece.type in _NO_TEXT:
            continue
        pairs = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += [(-piece.score, index, pair) for pair in known]
    ordered = [pair for _, _, pair in sorted(merges, key=lambda merge: merge[:2])]
    return models.BPE(vocabulary, ordered, unk_token="[UNK]", fuse_unk=True, byte_fallback=model.byte_fallback)


def _add_sentencepiece_rule(tokenizer: Any, lowercase: bool, model: sentencepiece_model.Model) -> None:
    from tokenizers import decoders, pre_tokenizers

    own = sentencepiece_model.is_ours(model)
    tokenizer.normalizer = rust_normalizer(lowercase) if own else _model_normalizer(model)
    # "first": what follows a special token begins a word only where a space says so, as the model has learnt it.
    scheme = "first" if own or model.add_dummy_prefix else "never"
    split = sentencepiece_model.splits_at_spaces(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)


def _cut_names(tokenizer: Any, model: sentencepiece_model.Model) -> None:
    """Cuts in two the names of pieces that are no text, so that Unigram does not find them in a text.

    "<0x41>" is a byte's name. "[MASK]" is a special token, but full-width letters normalise to the same and are none.
    """
    from tokenizers import Regex, pre_tokenizers

    letters = {piece.text for piece in model.pieces if piece.type not in _NO_TEXT}
    names: dict[str, list[str]] = {}
    for piece in model.pieces:
        if piece.type in _NO_TEXT:
            # Beside a known letter: unknown ones are one [UNK] together, and must not be parted.
            cuts = [cut for cut in range(1, len(piece.text)) if letters & set(piece.text[cut - 1:cut + 1])]
            start, rest = piece.text[:min(cuts, default=1)], piece.text[min(cuts, default=1):]
            names.setdefault(re.escape(start), []).append(re.escape(rest))
    pattern = "|".join(f"{start}(?={'|'.join(rests)})" for start, rests in names.items())
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, cut])


def _model_normalizer(model: sentencepiece_model.Model) -> Any:
    """The rule that a foreign model carries, as far as `tokenizers` can follow it.

    `Precompiled` maps a character with its combining marks as one, where SentencePiece looks for the longest entry of
    its map: how many texts get other ids is for `tokenizer_differences` to measure.
    """
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(model.character_map)] if model.character_map else []
    if model.remove_extra_spaces:
        # Spaces alone: other white space that the map leaves is text. A mark for a space counts as one at the end only.
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"[ \u2581]+\z"), "")]
    if model.add_dummy_prefix:
        # Metaspace adds none to a text that begins with the mark itself.
        steps.append(normalizers.Replace(Regex(r"\A\u2581"), " \u2581"))
    return normalizers.Sequence(steps)


def save(tokenizer: Any, folder: Path) -> None:
    """Writes the folder; tokenizer_info.json, by which `load` knows it, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.model is None:
        (folder / VOCABULARY).write_text("".join(piece + "\n" for piece in tokenizer.pieces), encoding="utf-8")
    else:
        (folder / MODEL).write_bytes(tokenizer.model)
    (folder / "tokenizer.json").write_text(tokenizer.to_rust().to_str(pretty=True), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", _hugging_face_config(tokenizer))
    write_json(folder / "special_tokens_map.json", {f"{role}_token": piece for role, piece in _ROLES.items()})
    own = tokenizer.model is None or sentencepiece_model.is_ours(sentencepiece_model.parse(tokenizer.model, "saved"))
    info = {
        "format_version": _FORMAT_VERSION,
        "kind": tokenizer.kind,
        "normalization": "own" if own else "model",
        "lowercase": tokenizer.lowercase,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }
    write_json(folder / INFO, info)


def _hugging_face_config(tokenizer: Any) -> dict[str, Any]:
    """PreTrainedTokenizerFast takes tokenizer.json as it stands; BERT's own class would build one from a vocabulary."""
    special = {
        str(tokenizer.pieces.index(piece)): {
            **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False), "content": piece, "special": True
        }
        for piece in _ROLES.values()
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": 512,
        "padding_side": "right",
        **{f"{role}_token": piece for role, piece in _ROLES.items()},
    }
