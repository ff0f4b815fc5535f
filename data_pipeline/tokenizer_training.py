"""Trains a tokenizer on sentences: SentencePiece unigram, or WordPiece."""

import collections
import io
import re
from typing import Iterable, Iterator

from data_pipeline.normalization import normalize
from data_pipeline.sentencepiece_model import round_scores
from data_pipeline.tokenizer import SPECIAL_PIECES, Tokenizer, from_sentencepiece

# Share of the text's characters that the alphabet must cover; the rarest become [UNK].
CHARACTER_COVERAGE = 0.9995

# SentencePiece drops longer training lines without a word; ours are cut instead. In bytes.
_LONGEST_LINE = 4096
# The trained vocabulary depends on the number of threads, so it is a constant and not the machine's.
_THREADS = 4


def train(kind: str, sentences: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Trains `sentencepiece` or `wordpiece`; special tokens are 0 to 4. Memory grows with the sentences.

    Raises ValueError when the vocabulary is smaller than the alphabet, or larger than the text supports.
    """
    if kind == "sentencepiece":
        return train_sentencepiece(sentences, vocab_size, lowercase)
    if kind == "wordpiece":
        return train_wordpiece(sentences, vocab_size, lowercase)
    raise ValueError(f"tokenizer {kind!r} cannot be trained: expected 'sentencepiece' or 'wordpiece'")


def train_sentencepiece(sentences: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Repeatable: the same sentences give the same vocabulary."""
    import sentencepiece

    pad, unknown, *control = SPECIAL_PIECES
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(sentences, lowercase),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=CHARACTER_COVERAGE,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unknown,
            bos_id=-1,
            eos_id=-1,
            control_symbols=control,
            max_sentence_length=2 * _LONGEST_LINE,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocab_size)) from None
    return from_sentencepiece(round_scores(model.getvalue()), "trained", lowercase)


def _explain(error: str, vocab_size: int) -> str:
    if found := re.search(r"smaller than required_chars.*?(\d+) vs (\d+)", error, re.DOTALL):
        return _too_small(vocab_size, int(found[2]))
    if found := re.search(r"Vocabulary size too high.*?<= (\d+)", error, re.DOTALL):
        most = f"expected at most {found[1]}, which --vocab-size sets"
        return f"vocab_size {vocab_size} is more than this text supports: {most}"
    return f"training the tokenizer failed, perhaps for want of text: {error}"


def _too_small(vocab_size: int, needed: int) -> str:
    return (
        f"vocab_size {vocab_size} is smaller than the alphabet of the corpus: "
        f"its characters and the special tokens need {needed}"
    )


def _lines(sentences: Iterable[str], lowercase: bool) -> Iterator[str]:
    for sentence in sentences:
        line = normalize(sentence, lowercase)
        while len(line) > _LONGEST_LINE // 4 and len(line.encode("utf-8")) > _LONGEST_LINE:
            cut = line.rfind(" ", 1, _LONGEST_LINE // 4)
            cut = cut if cut > 0 else _LONGEST_LINE // 4
            yield line[:cut]
            line = line[cut:].lstrip(" ")
        if line:
            yield line


def train_wordpiece(sentences: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Not repeatable: the trainer of `tokenizers` breaks ties by chance, so keep what it made."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    rust = RustTokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = list(sentences)
    alphabet = _alphabet_size(rust.normalizer.normalize_str(text) for text in texts)
    if alphabet + len(SPECIAL_PIECES) > vocab_size:
        raise ValueError(_too_small(vocab_size, alphabet + len(SPECIAL_PIECES)))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_PIECES),
        limit_alphabet=alphabet,
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    if rust.get_vocab_size() > vocab_size:
        raise ValueError(_too_small(vocab_size, rust.get_vocab_size()))
    pieces = [piece for piece, _ in sorted(rust.get_vocab().items(), key=lambda entry: entry[1])]
    return Tokenizer("wordpiece", lowercase, pieces, None, "trained")


def _alphabet_size(texts: Iterable[str]) -> int:
    """How many of the most frequent characters make up CHARACTER_COVERAGE of the texts."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    counts.pop(" ", None)
    left = (1 - CHARACTER_COVERAGE) * counts.total()
    rare = 0
    for count in sorted(counts.values()):
        left -= count
        if left < 0:
            break
        rare += 1
    return len(counts) - rare
