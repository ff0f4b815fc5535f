"""A trained model ready for use: `flaxbert.load` of a run's directory, an export or a Hugging Face directory."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.interop import huggingface
from flaxbert.interop.architectures import ARCHITECTURES, PRETRAINING, Checkpoint, describe
from flaxbert.interop.huggingface_tokenizer import read_tokenizer
from flaxbert.model.finetuning import BertWithHead
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.tools.folders import is_run, model_folder
from flaxbert.tools.texts import Text, check_unicode, short, tokenize

MASK = "[MASK]"


class Encoded(NamedTuple):
    """Hidden states of the last layer."""

    hidden: jax.Array  # [B, S, D] float32
    mask: np.ndarray  # [B, S] bool: False is padding


class Logits(NamedTuple):
    """What the two pretraining heads say; None where the model lacks the head."""

    mlm: jax.Array | None  # [B, S, V] float32, V without padding
    nsp: jax.Array | None  # [B, 2] float32: the second segment follows the first, or was drawn at random
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
    """float32; the parts at its top are those that the model has."""
    tokenizer: Any
    architecture: str = PRETRAINING
    """Its class in transformers."""
    labels: tuple[str, ...] = ()
    """The names of a fine-tuned model's outputs."""
    kept: dict[str, Any] = {}
    """Fields of its config.json that change nothing here and go along in an export."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The model as it is exported."""
        return Checkpoint(self.config, self.params, self.architecture, self.labels, self.kept)

    def encode(self, texts: Sequence[Text], max_length: int | None = None) -> Encoded:
        """Hidden states of texts or pairs of texts, all at once; longer ones are cut to `max_length` tokens."""
        batch, mask = self._tokenize(texts, max_length)
        return Encoded(_encode(self.config, self.params, batch), mask)

    def logits(self, texts: Sequence[Text], max_length: int | None = None) -> Logits:
        """Logits of both heads, those of the masked-language model at every token, for texts or pairs of texts."""
        batch, mask = self._tokenize(texts, max_length)
        everywhere = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
        mlm, nsp = _logits(self.config, self.params, batch, everywhere)
        return Logits(mlm, nsp, mask)

    def outputs(self, texts: Sequence[Text], max_length: int | None = None) -> jax.Array:
        """What the output layer of a fine-tuned model gives, float32: [B, N] for a text or pair of texts, or
        [B, S, N] for its tokens. Raises ValueError for a model without one.
        """
        self._need("head")
        batch, _ = self._tokenize(texts, max_length)
        found: jax.Array = _outputs(self.config, self.architecture, self.params, batch)
        return found

    def _tokenize(
        self, texts: Sequence[Text], max_length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        batch, mask = tokenize(self.tokenizer, texts, max_length, self.config.max_length)
        if batch["segment_ids"].max() >= self.config.segment_types:
            raise ValueError(f"a pair of texts has two segments, and the model knows {self.config.segment_types}")
        return batch, mask

    def _need(self, part: str) -> None:
        if part not in self.params:
            raise ValueError(f"the model is a {self.architecture}: it lacks {describe((part,))}")

    def fill_mask(self, text: str, top: int = 5) -> list[list[Fill]]:
        """The `top` likeliest tokens for each [MASK] of a text, likeliest first.

        Raises ValueError for a text without one, or with one beyond the model's length.
        """
        self._need("mlm")
        if not 1 <= top <= (self.config.vocab_size or 0):
            raise ValueError(f"top {top} is not in [1, {self.config.vocab_size}], the size of the vocabulary")
        positions, places = _masks(self, text)
        batch, _ = self._tokenize([text])
        mlm, _ = _logits(self.config, self.params, batch, jnp.asarray([positions]))
        assert mlm is not None, "the head was asked for above"
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(mlm[0]), top)  # [P, top] each
        return [
            [_fill(self.tokenizer, text, place, int(index), float(p)) for p, index in zip(*row, strict=True)]
            for place, row in zip(places, zip(np.asarray(probabilities), np.asarray(ids)), strict=True)
        ]


def load(model: str | os.PathLike[str], step: int | None = None) -> Model:
    """Loads a run's directory (its newest checkpoint, unless `step` names one), an export, a Hugging Face directory, or
    the best model of a search's.

    Raises ValueError where the directory is none of these or cannot be expressed by this encoder, and for a `step` of
    anything but a run.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ValueError(f"model {model} is no directory: expected that of a run, an export or a Hugging Face model")
    folder = model_folder(folder)
    if is_run(folder):
        return load_run(folder, step)[0]
    if step is not None:
        raise ValueError(f"step {step} is given, and {model} is not a run's directory")
    found = huggingface.read(folder)
    tokenizer = read_tokenizer(folder, found.config)
    return Model(found.config, jax.device_put(found.params), tokenizer, found.architecture, found.labels, found.kept)


def load_run(folder: Path, step: int | None = None) -> tuple[Model, int]:
    """The model of a run's checkpoint, the newest unless `step` names one, and its step."""
    # Orbax takes seconds to import, and an export does not need it.
    from flaxbert.training.checkpoint import restore_params
    from flaxbert.training.run import read_run

    config = read_run(str(folder)).experiment.model
    tokenizer = read_tokenizer(folder / "tokenizer", config)
    params, found = restore_params(str(folder), step)
    return Model(config, jax.device_put(params), tokenizer), found


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ModelConfig, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    hidden: Any = BertForPreTraining(config).apply({"params": params}, batch, method="encode")
    return hidden


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    config: ModelConfig, params: Any, batch: dict[str, jax.Array], positions: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """MLM logits [B, P, V] at positions [B, P], without the padded vocabulary, and NSP logits [B, 2]; None for a head
    that is not in the parameters.
    """
    model, variables = BertForPreTraining(config), {"params": params}
    hidden: Any = model.apply(variables, batch, method="encode")
    mlm: Any = model.apply(variables, hidden, positions, method="mlm_logits") if "mlm" in params else None
    starts = jnp.zeros((positions.shape[0], 1), jnp.int32)
    nsp: Any = model.apply(variables, hidden, starts, method="nsp_logits") if "nsp" in params else None
    return None if mlm is None else mlm[:, :, :config.vocab_size], None if nsp is None else nsp[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(config: ModelConfig, architecture: str, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """[B, N] of the pooled text where the architecture has a pooler, else [B, S, N]."""
    pooled = "pooler" in ARCHITECTURES[architecture].parts
    starts = {"cls_positions": jnp.zeros((batch["input_ids"].shape[0], 1), jnp.int32)}
    model = BertWithHead(config, params["head"]["bias"].shape[0], pooled)
    found: Any = model.apply({"params": params}, batch | starts)
    return found[:, 0] if pooled else found


def everything(model: Model, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """All that the model says of a batch of the stream: hidden states [B, S, D] and, of the heads it has, the MLM
    logits at the masked positions [B, P, V], the NSP logits [B, 2] and what `outputs` gives.
    """
    ids = {name: jnp.asarray(batch[name]) for name in ("input_ids", "segment_ids", "sequence_ids", "position_ids")}
    mlm, nsp = _logits(model.config, model.params, ids, jnp.asarray(batch["masked_positions"]))
    head = _outputs(model.config, model.architecture, model.params, ids) if "head" in model.params else None
    found = {"hidden": _encode(model.config, model.params, ids), "mlm": mlm, "nsp": nsp, "head": head}
    return {name: np.asarray(values) for name, values in found.items() if values is not None}


def _masks(model: Model, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Where the masks stand among the tokens, and where in the text."""
    mask_id = model.tokenizer.token_to_id(MASK)
    if mask_id is None:
        raise ValueError(f"the model's tokenizer has no {MASK}: it cannot fill one")
    check_unicode([text])
    encoding = model.tokenizer.encode(text)
    positions = [position for position, index in enumerate(encoding.ids) if index == mask_id]
    if not positions:
        raise ValueError(f"text {short(text)!r} has no {MASK}: put one where a word is to be guessed")
    limit = model.config.max_length
    if len(encoding.ids) > limit and positions[-1] >= limit - 1:
        raise ValueError(
            f"text {short(text)!r} has {MASK} as token {positions[-1] + 1} of {len(encoding.ids)}, and the model "
            f"reads {limit}: shorten the text"
        )
    return positions, [encoding.offsets[position] for position in positions]


def _fill(tokenizer: Any, text: str, place: tuple[int, int], index: int, probability: float) -> Fill:
    piece = tokenizer.id_to_token(index)
    if piece is None:
        piece = f"[{index}]"  # an entry of the embedding that the tokenizer has no name for
    before, after = text[:place[0]], text[place[1]:]
    word, continues = _word(tokenizer, piece)
    return Fill(readable(piece), index, probability, (before.rstrip() if continues else before) + word + after)


def _word(tokenizer: Any, piece: str) -> tuple[str, bool]:
    """A piece as text, and whether it is glued to what stands before it."""
    if type(tokenizer.decoder).__name__ == "Metaspace":
        return piece.removeprefix("▁"), not piece.startswith("▁")
    return piece.removeprefix("##"), piece.startswith("##")


def readable(piece: str) -> str:
    return piece.removeprefix("▁") or piece
