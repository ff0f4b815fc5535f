"""The tokenizer of a Hugging Face directory: read, written, compared with another."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer import load as load_own
from flaxbert.config import ModelConfig
from flaxbert.interop.huggingface_config import read_json, to_json

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"

_CONFIG = "tokenizer_config.json"
INFO = "tokenizer_info.json"  # what `flaxbert prepare` knows its own tokenizers by
_EXTRAS = ("special_tokens_map.json", INFO, "sentencepiece.model", VOCABULARY)

_BERT = ("BertTokenizer", "BertTokenizerFast")  # the classes of transformers with BERT's rule

_Path = str | os.PathLike[str]

# Texts on which tokenizers with the same vocabulary differ if anything about their rules does.
PROBES = (
    "The Quick brown FOX, 'jumps' over-the lazy dog's back; 3.14 times!",
    "Déjà vu à l'École, ÜBER Straße İstanbul ǅ ﬁne ½ ①",
    "我喜欢吃苹果。東京タワー 한국어 ภาษาไทย हिन्दी العربية עברית",
    "tab\tnew\nline\r\u00a0\u200bzero\u200dwidth\u0000\ufffd\u00adsoft  two  spaces ",
    "[MASK] [CLS] and [SEP] <unk> ## ##ing ▁ _ @user #tag 😀👩‍👩‍👧 e\u0301 \u0307",
    "supercalifragilisticexpialidocious" * 4,
)


def read_tokenizer(folder: _Path, config: ModelConfig) -> Any:
    """The `tokenizers.Tokenizer` of a directory, without padding or truncation; it must fit the vocabulary."""
    path = Path(folder) / TOKENIZER
    if path.is_file():
        tokenizer = _from_json(path)
        _check_agreement(path.parent, tokenizer)
    elif (Path(folder) / VOCABULARY).is_file():
        path = Path(folder) / VOCABULARY
        tokenizer = _from_vocabulary(path).to_rust()
    else:
        raise ValueError(f"{folder} has neither {TOKENIZER} nor {VOCABULARY}: a tokenizer in another form is not read")
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= (config.vocab_size or 0):
        raise ValueError(f"{path} has ids up to {largest}, and the model's vocab_size is {config.vocab_size}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _from_json(path: Path) -> Any:
    from tokenizers import Tokenizer as RustTokenizer

    try:
        return RustTokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} cannot be read: {error}") from None


def _from_vocabulary(path: Path) -> Tokenizer:
    """A vocabulary without tokenizer.json, read as BERT's own tokenizer reads it."""
    settings = _settings(path.parent)
    name = settings.get("tokenizer_class")
    if name not in (None, *_BERT):
        raise ValueError(
            f"{path.parent / _CONFIG}: tokenizer_class is {name!r}, and there is no {TOKENIZER}: without one, expected "
            f"{' or '.join(_BERT)}, for another class splits text by rules of its own"
        )
    own = load_own(path, settings.get("do_lower_case"))
    for name, expected in (("strip_accents", (None, own.lowercase)), ("tokenize_chinese_chars", (None, True))):
        if settings.get(name) not in expected:
            raise ValueError(
                f"{path.parent / _CONFIG}: {name} is {settings[name]!r} with do_lower_case {own.lowercase!r}: "
                f"save this tokenizer as {TOKENIZER} by transformers' AutoTokenizer"
            )
    return own


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, where it is there."""
    path = folder / _CONFIG
    settings = read_json(path) if path.is_file() else {}
    lowercase = settings.get("do_lower_case", True)
    if not isinstance(lowercase, bool):
        raise ValueError(f"{path}: do_lower_case is {lowercase!r}, expected true or false")
    return settings


def _check_agreement(folder: Path, tokenizer: Any) -> None:
    """Raises ValueError where tokenizer_config.json, which transformers' class of BERT follows, says otherwise."""
    settings, state = _settings(folder), json.loads(tokenizer.to_str())["normalizer"] or {}
    if settings.get("tokenizer_class") not in _BERT or state.get("type") != "BertNormalizer":
        return
    fields = (("do_lower_case", "lowercase"), ("strip_accents", "strip_accents"),
              ("tokenize_chinese_chars", "handle_chinese_chars"))  # fmt: skip
    for theirs, inside in fields:
        if theirs in settings and settings[theirs] != state[inside]:
            raise ValueError(
                f"{folder / _CONFIG}: {theirs} is {settings[theirs]!r}, and {TOKENIZER} says {state[inside]!r}: "
                "make the two agree"
            )


def write_tokenizer(source: _Path, target: Path, config: ModelConfig, own: Tokenizer | None = None) -> None:
    """Writes the tokenizer of the directory `source`, or `own`, into the directory `target` of a model.

    Where it is one that `flaxbert prepare` can use, it is written so that `prepare --tokenizer` takes the directory.
    """
    folder = Path(source)
    if own is None and not (folder / INFO).is_file():
        own = _expressed(folder)
    if own is not None:
        own.save(target)
    else:
        for name in (TOKENIZER, *_EXTRAS):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    settings = target if own is not None else folder
    written = read_json(settings / _CONFIG) if (settings / _CONFIG).is_file() else _FOREIGN
    (target / _CONFIG).write_text(to_json(written | {"model_max_length": config.max_length}), encoding="utf-8")


# transformers 5 would build a WordPiece tokenizer of its own where this is not said.
_FOREIGN = {"tokenizer_class": "PreTrainedTokenizerFast"}


def is_own(folder: _Path) -> bool:
    """Whether `flaxbert prepare --tokenizer` takes the directory."""
    return (Path(folder) / INFO).is_file()


def _expressed(folder: Path) -> Tokenizer | None:
    """A foreign tokenizer as one of ours, where it is BERT's WordPiece in every respect."""
    path = folder / TOKENIZER
    if not path.is_file():
        return _from_vocabulary(folder / VOCABULARY)
    foreign = _from_json(path)
    state = json.loads(foreign.to_str())
    model, normalizer = state["model"], state["normalizer"] or {}
    if model["type"] != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        return None
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])]
    try:
        own = Tokenizer("wordpiece", bool(normalizer["lowercase"]), pieces, None, str(path))
    except ValueError:  # its special tokens are not those of BERT
        return None
    return own if difference(own.to_rust(), foreign) is None else None


def difference(one: Any, other: Any) -> str | None:
    """What tells two `tokenizers.Tokenizer` apart, for a sentence; None where nothing is found.

    Compared are the vocabularies whole, and what becomes of PROBES: their words and their ids.
    """
    vocabularies = one.get_vocab(), other.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = dict(sorted(vocabularies[0].items() ^ vocabularies[1].items(), key=lambda entry: entry[1]))
        piece = next(iter(differing))
        return f"{piece!r} is {_shown(vocabularies[0], piece)} in one and {_shown(vocabularies[1], piece)} in the other"
    for probe in PROBES:
        if _words(one, probe) != _words(other, probe) or one.encode(probe).ids != other.encode(probe).ids:
            return f"the text {probe[:40]!r}… is read in two ways"
    return None


def check_same(name: str, tokenizer: Any, of_corpus: Any) -> None:
    """Raises ValueError where the tokenizer of the model `name` is not that of a corpus: ids would mean other words."""
    found = difference(tokenizer, of_corpus)
    if found is not None:
        raise ValueError(f"model {name}: its tokenizer is not that of the corpus: {found}{_way_out(Path(name))}")


def _way_out(model: Path) -> str:
    """How a corpus with a model's tokenizer is made."""
    folders = (model, model / "tokenizer")
    usable = [str(folder) for folder in folders if is_own(folder)]
    usable += [str(model / VOCABULARY)] if (model / VOCABULARY).is_file() else []
    return f"; prepare the corpus with --tokenizer {usable[0]}" if usable else ", and prepare cannot use it"


def _words(tokenizer: Any, text: str) -> list[str]:
    """A text normalised and split: a small vocabulary would hide what the rules do to it."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _shown(vocabulary: dict[str, int], piece: str) -> str:
    return f"id {vocabulary[piece]}" if piece in vocabulary else "no piece"
