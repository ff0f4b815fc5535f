"""A trained model ready for use: `flaxbert.load` of a run's directory, an export or a Hugging Face directory."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.interop.huggingface import CONFIG, read_config, read_params, read_tokenizer
from flaxbert.model.pretraining import BertForPreTraining

MASK = "[MASK]"
_SHORTEST = 16  # lengths are padded to 16, 32, 64, …, so that few of them are compiled

Text = str | tuple[str, str]


class Encoded(NamedTuple):
    """Hidden states of the last layer."""

    hidden: jax.Array  # [B, S, D] float32
    mask: np.ndarray  # [B, S] bool: False is padding


class Logits(NamedTuple):
    """What the two pretraining heads say."""

    mlm: jax.Array  # [B, S, V] float32, V without padding
    nsp: jax.Array  # [B, 2] float32: the second segment follows the first, or was drawn at random
    mask: np.ndarray  # [B, S] bool: False is padding


class Fill(NamedTuple):
    """One guess for one [MASK]."""

    token: str
    """Readable: without SentencePiece's mark of a space, with WordPiece's ##."""
    id: int
    probability: float
    text: str
    """The whole text with this guess in its place."""


class Model(NamedTuple):
    """Parameters with their settings and their tokenizer (`tokenizers.Tokenizer`)."""

    config: ModelConfig
    params: Any
    tokenizer: Any

    def encode(self, texts: Sequence[Text], max_length: int | None = None) -> Encoded:
        """Hidden states of texts or pairs of texts, all at once; longer ones are cut to `max_length` tokens."""
        batch, mask = tokenize(self, texts, max_length)
        return Encoded(_encode(self.config, self.params, batch), mask)

    def logits(self, texts: Sequence[Text], max_length: int | None = None) -> Logits:
        """Logits of both heads, those of the masked-language model at every token, for texts or pairs of texts."""
        batch, mask = tokenize(self, texts, max_length)
        everywhere = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
        mlm, nsp = _logits(self.config, self.params, batch, everywhere)
        return Logits(mlm, nsp, mask)

    def fill_mask(self, text: str, top: int = 5) -> list[list[Fill]]:
        """The `top` likeliest tokens for each [MASK] of a text, likeliest first.

        Raises ValueError for a text without one, or with one beyond the model's length.
        """
        if not 1 <= top <= (self.config.vocab_size or 0):
            raise ValueError(f"top {top} is not in [1, {self.config.vocab_size}], the size of the vocabulary")
        positions, places = _masks(self, text)
        batch, _ = tokenize(self, [text])
        mlm, _ = _logits(self.config, self.params, batch, jnp.asarray([positions]))
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(mlm[0]), top)  # [P, top] each
        return [
            [_fill(self.tokenizer, text, place, int(index), float(p)) for p, index in zip(*row, strict=True)]
            for place, row in zip(places, zip(np.asarray(probabilities), np.asarray(ids)), strict=True)
        ]


def load(model: str | os.PathLike[str]) -> Model:
    """Loads a run's directory (its newest checkpoint), an export or a Hugging Face directory.

    Raises ValueError where the directory is none of these or cannot be expressed by this encoder.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ValueError(f"model {model} is no directory: expected that of a run, an export or a Hugging Face model")
    if is_run(folder):
        return load_run(folder)[0]
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    return Model(config, jax.device_put(read_params(folder, config)), tokenizer)


def is_run(folder: Path) -> bool:
    """Whether config.json is that of a run."""
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "experiment" in found


def load_run(folder: Path, step: int | None = None) -> tuple[Model, int]:
    """The model of a run's checkpoint, the newest unless `step` names one, and its step."""
    # Orbax takes seconds to import, and an export does not need it.
    from flaxbert.training.checkpoint import restore_params
    from flaxbert.training.run import read_run

    config = read_run(str(folder)).experiment.model
    tokenizer = read_tokenizer(folder / "tokenizer", config)
    params, found = restore_params(str(folder), step)
    return Model(config, jax.device_put(params), tokenizer), found


def tokenize(model: Model, texts: Sequence[Text], max_length: int | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Texts or pairs as the model's batch [B, S] and its mask [B, S]: special tokens added, cut to `max_length`."""
    limit = model.config.max_length if max_length is None else max_length
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts is {texts!r}, expected a list of at least one text or pair of texts")
    _check_unicode(texts)
    pairs = any(not isinstance(text, str) for text in texts)
    special = model.tokenizer.num_special_tokens_to_add(pairs)
    if not special < limit <= model.config.max_length:
        raise ValueError(f"max_length {limit} is not in [{special + 1}, {model.config.max_length}], the model's range")
    model.tokenizer.enable_truncation(limit)
    try:
        encodings = model.tokenizer.encode_batch(list(texts))
    finally:
        model.tokenizer.no_truncation()
    longest = max(len(encoding.ids) for encoding in encodings)
    length = min(limit, max(_SHORTEST, 1 << (longest - 1).bit_length()))
    return _batch(encodings, length)


def _check_unicode(texts: Sequence[Text]) -> None:
    """A command line that is not UTF-8 reaches Python as lone surrogates, which no tokenizer takes."""
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            strange = next((index for index, character in enumerate(part) if "\ud800" <= character <= "\udfff"), None)
            if strange is not None:
                shown = _short(part).encode("ascii", "backslashreplace").decode()
                raise ValueError(f"text '{shown}' is not valid Unicode at character {strange + 1}")


def _batch(encodings: Sequence[Any], length: int) -> tuple[dict[str, Any], np.ndarray]:
    ids, segments, mask = (np.zeros((len(encodings), length), np.int32) for _ in range(3))
    for row, encoding in enumerate(encodings):
        size = len(encoding.ids)
        ids[row, :size], segments[row, :size], mask[row, :size] = encoding.ids, encoding.type_ids, 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    batch = {"input_ids": ids, "segment_ids": segments, "sequence_ids": mask, "position_ids": positions}
    return batch, mask.astype(bool)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ModelConfig, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    hidden: Any = BertForPreTraining(config).apply({"params": params}, batch, method="encode")
    return hidden


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    config: ModelConfig, params: Any, batch: dict[str, jax.Array], positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """MLM logits [B, P, V] at positions [B, P], without the padded vocabulary, and NSP logits [B, 2]."""
    heads = {"masked_positions": positions, "cls_positions": jnp.zeros((positions.shape[0], 1), jnp.int32)}
    logits: Any = BertForPreTraining(config).apply({"params": params}, batch | heads)
    mlm, nsp = logits
    return mlm[:, :, :config.vocab_size], nsp[:, 0]


def _masks(model: Model, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Where the masks stand among the tokens, and where in the text."""
    mask_id = model.tokenizer.token_to_id(MASK)
    if mask_id is None:
        raise ValueError(f"the model's tokenizer has no {MASK}: it cannot fill one")
    _check_unicode([text])
    encoding = model.tokenizer.encode(text)
    positions = [position for position, index in enumerate(encoding.ids) if index == mask_id]
    if not positions:
        raise ValueError(f"text {_short(text)!r} has no {MASK}: put one where a word is to be guessed")
    limit = model.config.max_length
    if len(encoding.ids) > limit and positions[-1] >= limit - 1:
        raise ValueError(
            f"text {_short(text)!r} has {MASK} as token {positions[-1] + 1} of {len(encoding.ids)}, and the model "
            f"reads {limit}: shorten the text"
        )
    return positions, [encoding.offsets[position] for position in positions]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _fill(tokenizer: Any, text: str, place: tuple[int, int], index: int, probability: float) -> Fill:
    piece = tokenizer.id_to_token(index)
    if piece is None:
        piece = f"[{index}]"  # an entry of the embedding that the tokenizer has no name for
    before, after = text[:place[0]], text[place[1]:]
    word, continues = _word(tokenizer, piece)
    return Fill(_readable(piece), index, probability, (before.rstrip() if continues else before) + word + after)


def _word(tokenizer: Any, piece: str) -> tuple[str, bool]:
    """A piece as text, and whether it is glued to what stands before it."""
    if type(tokenizer.decoder).__name__ == "Metaspace":
        return piece.removeprefix("▁"), not piece.startswith("▁")
    return piece.removeprefix("##"), piece.startswith("##")


def _readable(piece: str) -> str:
    return piece.removeprefix("▁") or piece
