"""One tokenizer of each kind, trained once, and the texts on which every form of it is to give the same ids."""

import functools
import io
import random
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from data_pipeline.tokenizer import Tokenizer, load
from data_pipeline.tokenizer_training import train

OURS = {
    "unigram-uncased": ("sentencepiece", True),
    "unigram-cased": ("sentencepiece", False),
    "wordpiece-uncased": ("wordpiece", True),
    "wordpiece-cased": ("wordpiece", False),
}
RELEASED = {"bert-base-uncased": True, "bert-base-cased": False, "bert-base-chinese": True}
FOREIGN = {
    "foreign-unigram": dict(model_type="unigram"),
    "foreign-unigram-bytes": dict(model_type="unigram", byte_fallback=True),
    "foreign-bpe": dict(model_type="bpe"),
    "foreign-bpe-bytes": dict(model_type="bpe", byte_fallback=True),
    "foreign-unigram-nfkc-folded": dict(model_type="unigram", normalization_rule_name="nfkc_cf"),
}
EDGES = [
    "", " ", "\n", "\t\n \u2003\u3000", "  a   b  ", "a\r\nb",
    "\x00", "x\x00y\x1fz\x7f", "\u200b", "\ufeffb\u200bc\u00ad", "a\u0301e\u0308", "\u0301 \u0301x",
    "e" + 50 * "\u0301", "T\u0303 t\u0303 \u0998\u09c7\u09be \u1100\u1161\u11a8",
    "🙂👩‍👩‍👧‍👦👍🏽🇩🇪🏳️‍🌈", "\u200d\ufe0f", "שלום \u202eعالم\u202c ١٢", "ΟΔΥΣΣΕΥΣ ΑΣ İstanbul ǅ ﬁ Å",
    "\u2581", "\u2581\u2581", "\u2581a \u2581\u2581 b\u2581",
    "[MAS K] <0x41> <unk> <s> \uff3bMASK\uff3d ［ＰＡＤ］",
    "\U0010ffff\ue000\ufffd\ufdd0",
    " ".join(letter * size for letter in "ab" for size in (99, 100, 101, 200, 201)),
    100_000 * " ", 100_000 * "a", 100_000 * "中", 50_000 * "a\u0301", 5_000 * "The quick brown fox ",
]  # fmt: skip


@functools.cache
def declaration(data: Path) -> list[str]:
    """The lines of the Universal Declaration of Human Rights, in 389 languages and scripts."""
    with zipfile.ZipFile(data / "unicode" / "udhr2.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        lines = [line for name in names for line in archive.read(name).decode("utf-8").splitlines()]
    return [line for line in lines if line.strip()]


def articles(data: Path, name: str) -> list[str]:
    return [line for line in (data / name).read_text(encoding="utf-8").splitlines() if line]


@functools.cache
def random_strings() -> list[str]:
    """10,000 strings of up to 40 characters of every category and plane, among letters, marks, Jamo and emoji."""
    draw = random.Random(0)
    categories: dict[str, list[str]] = {}
    for character in map(chr, range(sys.maxunicode + 1)):
        categories.setdefault(unicodedata.category(character), []).append(character)
    del categories["Cs"]
    common = list("abcdefgh ABC. ,'éÄß") + list("👩‍💻👨‍👧🏳️🌈👍🏽🇩🇪") + [" "] * 10
    marked = [chr(code) for code in (*range(0x41, 0x5B), *range(0x300, 0x370), *range(0x1100, 0x1200))]
    pools = [common, marked, *categories.values()]
    weights = [len(categories), len(categories) // 2, *[1] * len(categories)]
    return [
        "".join(draw.choice(pool) for pool in draw.choices(pools, weights, k=draw.randint(1, 40)))
        for _ in range(10_000)
    ]


def samples(data: Path, every: int = 12) -> dict[str, list[str]]:
    """Name → texts; of the declaration every twelfth line, which holds all languages."""
    return {
        "declaration": declaration(data)[::every],
        "german": articles(data, "unicode/dewiki/valid.txt"),
        "chinese": articles(data, "unicode/zhwiki/valid.txt"),
        "random": random_strings(),
        "edges": EDGES,
    }


def training_text(data: Path) -> list[str]:
    """Of every language a little, so that few of the ids compared are [UNK]."""
    wiki = [line for name in ("dewiki", "zhwiki") for line in articles(data, f"unicode/{name}/train.txt")[:300]]
    return declaration(data)[::25] + wiki


def foreign_model(sentences: list[str], **options) -> bytes:
    """A model trained by the sentencepiece library by its own defaults, with the special pieces that ours ask for."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, max_sentence_length=20_000,
        **dict(vocab_size=6000, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="[PAD]", unk_piece="[UNK]",
               control_symbols=["[CLS]", "[SEP]", "[MASK]"]) | options,
    )  # fmt: skip
    return model.getvalue()


@functools.cache
def tokenizer(name: str, data: Path) -> Tokenizer:
    if name in OURS:
        kind, lowercase = OURS[name]
        return train(kind, training_text(data), 6000, lowercase)
    if name in RELEASED:
        return load(data / "vocab" / f"{name}-vocab.txt", RELEASED[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "foreign.model")
        path.write_bytes(foreign_model(training_text(data), **FOREIGN[name]))
        return load(path)


def exported(found: Tokenizer) -> RustTokenizer:
    """The tokenizer.json that the tokenizer writes."""
    with tempfile.TemporaryDirectory() as folder:
        found.save(folder)
        return RustTokenizer.from_file(f"{folder}/tokenizer.json")


def rust_ids(rust: RustTokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
