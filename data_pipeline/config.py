"""What a user can set of the data: how a corpus is prepared, and how batches are drawn from it."""

import dataclasses
import math
import typing
from typing import Any, Literal

LONGEST_SEQUENCE = 16_384
"""Tokens. Columns, sequence numbers and random bits of a row share 32 bits while masking."""

PACKED_PREDICTIONS = 3
"""Places for predictions in a packed row beyond those of one sequence that fills it: each sequence rounds for itself.
Many to a row, each at least one, need more: a fourth of `data.packing`."""


def check_choices(section: str, config: Any) -> None:
    """Raises ValueError where a field that offers a choice holds none of its values."""
    for name, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is Literal and getattr(config, name) not in typing.get_args(kind):
            known = ", ".join(typing.get_args(kind))
            raise ValueError(f"{section}.{name} {getattr(config, name)!r} is not one of {known}")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How raw text becomes a prepared corpus. The settings that shape its content are recorded in dataset.json."""

    tokenizer: str = "sentencepiece"
    """`sentencepiece` or `wordpiece` trains one on the corpus; a path loads one: a SentencePiece model, a `vocab.txt`,
    or a tokenizer folder written by an earlier run."""
    vocab_size: int = 30_522
    """Entries of a trained vocabulary, the five special tokens included. Unused when a tokenizer is loaded."""
    lowercase: bool = True
    """Lower-case the text (an uncased model). Unused when the loaded tokenizer says itself."""
    text_field: str = "text"
    """The field of JSON lines, column of Parquet or feature of TFDS that holds a document's text. Dots lead into nested
    columns and features."""
    sentences: Literal["split", "lines"] = "split"
    """`split` finds sentences inside each line; `lines` takes every line as one sentence."""
    language: str = "en"
    """ISO 639 code that the sentence splitter goes by."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """Invalid UTF-8: stop and say where, or put U+FFFD in its place and count."""
    drop_duplicates: Literal["none", "documents", "lines"] = "none"
    """Drop documents whose text came before in the corpus, or every line that did, and with them whole documents. Costs
    a second reading of the text. Duplicates are counted in any case."""
    validation_fraction: float = 0.01
    """Share of documents held out, chosen by a hash of their text."""
    shard_megabytes: float = 16.0
    """Source text in one shard, in units of 10^6 bytes: the unit of parallel work and of restarting."""

    def __post_init__(self) -> None:
        if self.vocab_size < 16:
            raise ValueError(f"vocab_size {self.vocab_size} is too small: expected at least 16")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction {self.validation_fraction} is not in [0, 1)")
        if not math.isfinite(self.shard_megabytes) or self.shard_megabytes <= 0:
            raise ValueError(f"shard_megabytes {self.shard_megabytes} is not positive and finite")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How sequences are drawn from a prepared corpus while training."""

    sequence_length: int = 128
    """Tokens in one row, [CLS] and [SEP] included."""
    pairing: Literal["nsp", "nsp-balanced", "sop", "none", "none-across"] = "nsp"
    """`nsp`: segment pairs for next-sentence prediction as the reference draws them. `nsp-balanced`: the same with
    labels that are half and half on any text. `sop`: sentence-order prediction. `none`: full sentences of one document,
    no label; `none-across`: full sentences that go on in the next document."""
    masking: Literal["token", "whole-word", "span"] = "token"
    """`token`: each token alone, as the reference. `whole-word`: all tokens of a word together. `span`: runs of words,
    as SpanBERT."""
    short_sequence_probability: float = 0.1
    """Chance, per document and pass, of a shorter target length drawn uniformly."""
    mask_rate: float = 0.15
    """Share of a sequence's tokens to predict."""
    mask_replacement: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of the tokens to predict that become [MASK], stay as they are, become any token of the vocabulary."""
    max_predictions: int | None = None
    """Most predictions in a row. None: mask_rate x sequence_length, rounded up (20 at 128, 77 at 512), and with packing
    a few more, as each sequence rounds for itself."""
    packing: int = 1
    """Most sequences that share a row. 1: each has its own, the rest of it is padding."""
    window_tokens: int = 32_000_000
    """Tokens planned and shuffled together. Bounds the memory of a reader; part of what defines the stream."""
    workers: int = 2
    """Batches masked at once."""
    read_ahead: int = 8
    """Finished batches kept ready."""

    def __post_init__(self) -> None:
        if self.sequence_length < 5:
            raise ValueError(f"data.sequence_length {self.sequence_length} is too short: expected at least 5")
        if self.sequence_length > LONGEST_SEQUENCE:
            raise ValueError(f"data.sequence_length {self.sequence_length} is too long: at most {LONGEST_SEQUENCE}")
        check_choices("data", self)
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"data.mask_rate {self.mask_rate} is not between 0 and 1")
        shares = self.mask_replacement
        if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1):
            raise ValueError(f"data.mask_replacement {shares} are not three shares that add up to 1")
        if not 0 <= self.short_sequence_probability <= 1:
            raise ValueError(f"data.short_sequence_probability {self.short_sequence_probability} is not in [0, 1]")
        for name in ("packing", "window_tokens", "workers", "read_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} {getattr(self, name)} is not positive")
        if self.packing > self.sequence_length:
            raise ValueError(f"data.packing {self.packing} exceeds data.sequence_length {self.sequence_length}")
        if self.max_predictions is not None and not 1 <= self.max_predictions <= self.sequence_length:
            raise ValueError(
                f"data.max_predictions {self.max_predictions} is not in [1, {self.sequence_length}], "
                "the range that data.sequence_length leaves"
            )
        if self.max_predictions is not None and self.max_predictions < self.packing:
            raise ValueError(
                f"data.max_predictions {self.max_predictions} is less than data.packing {self.packing}: each sequence "
                "of a row has a prediction of its own"
            )

    @property
    def predictions_per_row(self) -> int:
        """P, the width of the prediction arrays."""
        if self.max_predictions is not None:
            return self.max_predictions
        one = max(1, math.ceil(self.sequence_length * self.mask_rate))
        slack = 0 if self.packing == 1 else max(PACKED_PREDICTIONS, self.packing // 4)
        return min(one + slack, self.sequence_length)
