"""`flaxbert attention`: what each token of a text takes from each other one, in every layer and head."""

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.model.attention import attention_weights
from flaxbert.model.encoder import Encoder, dense
from flaxbert.tools.load import Model, load, readable
from flaxbert.tools.outputs import check_output, write_output
from flaxbert.tools.texts import check_unicode, short, tokenize

LONGEST = 128
"""Tokens. Beyond that no token of a picture can be read, and a page of base takes more than 6 MB."""


class Attention(NamedTuple):
    """A text as a model reads it, and what its tokens attend to."""

    title: str
    tokens: list[str]
    """As a person reads them."""
    segments: list[int]
    weights: np.ndarray
    """[L, H, S, S] float32: row = the token that looks, column = the one that is looked at."""


def draw_attention(model: str, texts: tuple[str, ...], picture: str, page: str | None) -> None:
    """Draws the attention of a model over a text or a pair into a picture and, where one is named, a page.

    Raises ValueError for a text that is empty or too long, and for files that cannot be written: before the model is
    read.
    """
    check_output("--output", picture, (".png", ".svg"))
    if page is not None:
        check_output("--html", page, (".html", ".htm"))
    if not all(text.strip() for text in texts):
        raise ValueError("a text is empty: expected at least one word")
    found = attention_of(load(model), texts, model)

    from flaxbert.tools.attention_page import write_page
    from flaxbert.tools.attention_picture import draw

    content, lacking = draw(found, "svg" if picture.lower().endswith(".svg") else "png")
    if lacking:
        print(f"the picture's font lacks {lacking}: boxes stand for them, the page shows them", file=sys.stderr)
    write_output("--output", picture, content)
    print(f"written: {picture}")
    if page is not None:
        write_output("--html", page, write_page(found).encode("utf-8"))
        print(f"written: {page}")


def attention_of(model: Model, texts: tuple[str, ...], name: str) -> Attention:
    """What a model attends to in one text, or in a pair of texts. Raises ValueError where it cannot be shown whole."""
    config, tokenizer = model.config, model.tokenizer
    check_unicode([texts[0] if len(texts) == 1 else (texts[0], texts[1])])
    if len(texts) > config.segment_types:
        raise ValueError(f"a pair of texts has two segments, and the model knows {config.segment_types}")
    encoding = tokenizer.encode(*texts)
    limit, size = min(config.max_length, LONGEST), len(encoding.ids)
    if size > limit:
        whose = "the model reads" if limit == config.max_length else "a picture can show"
        raise ValueError(f"text {short(texts[0])!r} has {size} tokens, and {whose} {limit}: shorten it")
    batch, _ = tokenize(tokenizer, [texts[0] if len(texts) == 1 else (texts[0], texts[1])], None, config.max_length)
    weights = attention_probabilities(config, model.params, batch)
    return Attention(
        title=f"{Path(name).resolve().name}: {' | '.join(texts)}",
        tokens=[readable(token) for token in encoding.tokens],
        segments=list(encoding.type_ids),
        weights=np.asarray(weights[:, 0, :, :size, :size]),
    )


@functools.partial(jax.jit, static_argnums=0)
def attention_probabilities(config: ModelConfig, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Float32 [L, B, H, S, S], from the states that the layers read and their projections to query and key."""
    encoder = Encoder(config, deterministic=True, dtype=jnp.float32, keeps_layers=True)
    states: Any = encoder.apply({"params": params["encoder"]}, batch)  # [L + 1, B, S, D]
    project: Any = dense(config, (config.num_heads, config.head_size), jnp.float32)

    def weights(x: jax.Array, layer: Any) -> jax.Array:
        query, key = (project.apply({"params": layer[name]}, x) for name in ("query", "key"))
        return attention_weights(query, key, batch["sequence_ids"])

    return jax.vmap(weights)(states[:-1], params["encoder"]["layers"]["attention"])
