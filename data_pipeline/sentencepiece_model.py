"""The serialized SentencePiece model, read field by field.

A reader of its own: the generated protobuf module asks for a protobuf older than other tools allow, and the
SentencePiece API tells neither the kind of a model nor its normalisation rule. Field numbers are those of
sentencepiece_model.proto.
"""

import functools
import hashlib
import struct
from typing import Any, Iterator, NamedTuple

# A trained score is rounded to this step. Sums of such scores are exact in float32 up to 2^14, so that SentencePiece
# (float32) and `tokenizers` (float64) see the same ties and break them alike.
SCORE_STEP = 1 / 1024

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_KINDS = {1: "unigram", 2: "bpe"}
_SPACE_MARK = "\u2581"


class Piece(NamedTuple):
    """One entry of the vocabulary. `type` is one of the constants above."""

    text: str
    score: float
    type: int


class Model(NamedTuple):
    """What is needed to encode with a model and to carry it over to another library."""

    pieces: list[Piece]
    kind: int
    byte_fallback: bool
    space_as_suffix: bool
    rule: str
    character_map: bytes
    add_dummy_prefix: bool
    remove_extra_spaces: bool
    serialized: bytes


def _fields(data: bytes) -> Iterator[tuple[int, Any, int]]:
    """(number, value, position of the value) of each field of a protobuf message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, end = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            end = position + length
            value = data[position:end]
        elif wire in (1, 5):
            end = position + (8 if wire == 1 else 4)
            value = data[position:end]
        else:
            raise ValueError(f"wire type {wire}")
        if end > len(data) or number == 0:
            raise ValueError("a field runs past the end")
        yield number, value, position
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number runs past the end")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def parse(serialized: bytes, origin: str) -> Model:
    """Reads a model. Raises ValueError, naming `origin`, for bytes that are none."""
    try:
        return _parse(serialized)
    except (ValueError, AttributeError, TypeError, KeyError, struct.error) as error:
        raise ValueError(f"tokenizer {origin} is not a SentencePiece model, or damaged: {error}") from None


@functools.lru_cache(maxsize=2)
def _parse(serialized: bytes) -> Model:
    message: dict[int, list[Any]] = {}
    for number, value, _ in _fields(serialized):
        message.setdefault(number, []).append(value)
    pieces = [_piece(value) for value in message.get(1, [])]
    trainer = {number: value for number, value, _ in _fields(b"".join(message.get(2, [])))}
    normalizer = {number: value for number, value, _ in _fields(b"".join(message.get(3, [])))}
    # Cut between two fields, a model still reads as one, with the defaults for its rule.
    for number, part in ((1, "pieces"), (2, "trainer settings"), (3, "normalisation rule")):
        if number not in message:
            raise ValueError(f"it has no {part}")
    return Model(
        pieces=pieces,
        kind=trainer.get(3, 1),
        byte_fallback=bool(trainer.get(35, 0)),
        space_as_suffix=bool(trainer.get(24, 0)),
        rule=normalizer.get(1, b"").decode("utf-8"),
        character_map=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_spaces=bool(normalizer.get(4, 1)),
        serialized=serialized,
    )


def _piece(data: bytes) -> Piece:
    fields = {number: value for number, value, _ in _fields(data)}
    return Piece(fields[1].decode("utf-8"), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1))


def round_scores(serialized: bytes) -> bytes:
    """The same model with every score a multiple of SCORE_STEP."""
    rounded = bytearray(serialized)
    for number, piece, start in _fields(serialized):
        if number != 1:
            continue
        for field, value, offset in _fields(piece):
            if field == 2:
                score = round(struct.unpack("<f", value)[0] / SCORE_STEP) * SCORE_STEP
                rounded[start + offset:start + offset + 4] = struct.pack("<f", score)
    return bytes(rounded)


def kind(model: Model, origin: str) -> str:
    """`unigram` or `bpe`; ValueError for a model of words or characters, and for pieces that do not fit BERT."""
    if model.kind not in _KINDS:
        raise ValueError(f"tokenizer {origin} is a SentencePiece model of type {model.kind}: expected unigram or BPE")
    if model.space_as_suffix:
        raise ValueError(f"tokenizer {origin} has treat_whitespace_as_suffix: expected the space before a word")
    places: dict[str, int] = {}
    for index, piece in enumerate(model.pieces):
        if places.setdefault(piece.text, index) != index:
            raise ValueError(f"tokenizer {origin} has {piece.text!r} twice: as {places[piece.text]} and {index}")
        if piece.text in ("[PAD]", "[CLS]", "[SEP]", "[MASK]") and piece.type != CONTROL:
            raise ValueError(f"tokenizer {origin} has {piece.text} as a piece of text: expected a control symbol")
    unknown = [piece.text for piece in model.pieces if piece.type == UNKNOWN]
    if "[UNK]" in places and unknown != ["[UNK]"]:
        raise ValueError(f"tokenizer {origin} has {', '.join(unknown)} for unknown text: expected [UNK] alone")
    return _KINDS[model.kind]


def is_ours(model: Model) -> bool:
    """Whether it was trained on text normalised beforehand, as ours are: by itself it normalises nothing."""
    return model.rule == "identity" and not model.remove_extra_spaces


def splits_at_spaces(model: Model) -> bool:
    """Whether no piece spans two words."""
    return not any(_SPACE_MARK in piece.text[1:] for piece in model.pieces)


def texts(model: Model) -> list[str]:
    """The text of each piece that stands for one, with a space for the mark."""
    return [piece.text.replace(_SPACE_MARK, " ") for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED)]


def digest(model: Model) -> list[Any]:
    """What, besides the pieces, decides the ids: a JSON value for the fingerprint."""
    scores = hashlib.sha256(struct.pack(f"<{len(model.pieces)}f", *(piece.score for piece in model.pieces)))
    types = hashlib.sha256(bytes(piece.type for piece in model.pieces))
    rule = [model.rule, model.add_dummy_prefix, model.remove_extra_spaces, model.byte_fallback, model.space_as_suffix]
    return [scores.hexdigest(), types.hexdigest(), hashlib.sha256(model.character_map).hexdigest(), *rule]


def processor(model: Model) -> Any:
    """A SentencePieceProcessor of the model. Raises ValueError for one that the library refuses."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model.serialized)
    except RuntimeError as error:
        raise ValueError(f"the tokenizer's SentencePiece model is damaged: {error}") from None
