"""One random model twice, ours and transformers', and the same sequences for both: theirs alone, ours in rows."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from flaxbert.config import ModelConfig
from flaxbert.interop.architectures import Checkpoint
from flaxbert.interop.huggingface_config import to_config
from flaxbert.interop.huggingface_tensors import to_tensors
from flaxbert.model.pretraining import initialize

torch = pytest.importorskip("torch", reason="parity needs torch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: install the extra `parity`")

TRANSFORMERS = "transformers BertForPreTraining"
# Every size differs from every other, and the vocabulary is no multiple of 128.
SIZES = dict(vocab_size=90, hidden_size=24, num_layers=3, num_heads=4, feed_forward_size=40, max_length=32)
LENGTHS = (7, 12, 5, 9, 14)
# Which sequences share a row.
LAYOUTS = {"padded": ((0,), (1,), (2,), (3,), (4,)), "packed": ((0, 1, 2), (3, 4))}


class Twins(NamedTuple):
    """Our settings and parameters, and the torch module that holds the same."""

    config: ModelConfig
    params: Any
    theirs: Any


@functools.cache
def twins(activation: str) -> Twins:
    """A model of which no bias is zero and no scale one, so that none can be left out unseen.

    The deviation of 0.2 keeps activations of size one through a width of 24, where the forms of GELU differ most.
    """
    config = ModelConfig(activation=activation, **SIZES)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    initial = jax.jit(initialize, static_argnums=0)(config, jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(x + generator.normal(0, 0.2, x.shape), np.float32), initial)
    return Twins(config, params, torch_model(params, config))


def torch_model(params: Any, config: ModelConfig) -> Any:
    """A BertForPreTraining of transformers, in evaluation mode, with these parameters of ours."""
    settings = transformers.BertConfig(**to_config(Checkpoint(config, params)), attn_implementation="eager")
    model = transformers.BertForPreTraining(settings).eval()
    tensors = {name: torch.tensor(x) for name, x in to_tensors(params, config).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} and not unexpected
    decoder = model.cls.predictions.decoder
    assert decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert decoder.bias is model.cls.predictions.bias
    return model


@functools.cache
def sequences() -> tuple[dict[str, np.ndarray], ...]:
    """Random sequences as they are alone: tokens [S], one to three predictions [P], a next-sentence label [1]."""
    generator = np.random.default_rng(1)
    found = []
    for number, length in enumerate(LENGTHS):
        predictions = 1 + number % 3
        found.append({
            "input_ids": generator.integers(0, SIZES["vocab_size"], length),
            "segment_ids": (np.arange(length) >= generator.integers(1, length)).astype(int),
            "masked_positions": generator.choice(length, predictions, replace=False),
            "masked_ids": generator.integers(0, SIZES["vocab_size"], predictions),
            "next_sentence_labels": np.array([number % 2]),
        })  # fmt: skip
    return tuple(found)


class Place(NamedTuple):
    """Where a sequence lies in a batch: an index into arrays of each kind of shape."""

    tokens: tuple[int, slice]
    """Into [B, S, …]."""
    predictions: tuple[int, slice]
    """Into [B, P, …]."""
    sequence: tuple[int, int]
    """Into [B, C, …]."""


def lay_out(layout: str) -> tuple[dict[str, np.ndarray], list[Place]]:
    """The batch of a layout and the place of each sequence in it.

    Rows end in padding that holds random ids, and in unused predictions, which are of no weight.
    """
    groups = LAYOUTS[layout]
    tokens, predictions = (len(groups), 30), (len(groups), 7)
    batch = {name: np.zeros(tokens, np.int32) for name in ("segment_ids", "sequence_ids", "position_ids")}
    batch["input_ids"] = np.random.default_rng(2).integers(0, SIZES["vocab_size"], tokens, np.int32)
    batch |= {name: np.zeros(predictions, np.int32) for name in ("masked_positions", "masked_ids")}
    batch |= {name: np.zeros((len(groups), 3), np.int32) for name in ("cls_positions", "next_sentence_labels")}
    batch["masked_weights"] = np.zeros(predictions, np.float32)
    batch["next_sentence_weights"] = np.zeros((len(groups), 3), np.float32)
    places = list(_places(groups))
    for place, sequence in zip(places, sequences(), strict=True):
        _put(batch, place, sequence)
    return batch, places


def _places(groups: tuple[tuple[int, ...], ...]) -> Iterator[Place]:
    for row, group in enumerate(groups):
        token = prediction = 0
        for number, index in enumerate(group):
            sequence = sequences()[index]
            ends = token + len(sequence["input_ids"]), prediction + len(sequence["masked_ids"])
            yield Place((row, slice(token, ends[0])), (row, slice(prediction, ends[1])), (row, number))
            token, prediction = ends


def _put(batch: dict[str, np.ndarray], place: Place, sequence: dict[str, np.ndarray]) -> None:
    row, number = place.sequence
    start = place.tokens[1].start
    batch["input_ids"][place.tokens] = sequence["input_ids"]
    batch["segment_ids"][place.tokens] = sequence["segment_ids"]
    batch["sequence_ids"][place.tokens] = number + 1
    batch["position_ids"][place.tokens] = np.arange(len(sequence["input_ids"]))
    batch["masked_positions"][place.predictions] = sequence["masked_positions"] + start
    batch["masked_ids"][place.predictions] = sequence["masked_ids"]
    batch["masked_weights"][place.predictions] = 1
    batch["cls_positions"][row, number] = start
    batch["next_sentence_labels"][row, number] = sequence["next_sentence_labels"][0]
    batch["next_sentence_weights"][row, number] = 1


def their_stages(model: Any) -> dict[str, list[Any]]:
    """What transformers computes of each sequence alone, a row without padding: stage → one tensor a sequence, and
    the loss of all of them.
    """
    found: dict[str, list[Any]] = {}
    for sequence in sequences():
        ids, segments = (torch.tensor(sequence[name])[None] for name in ("input_ids", "segment_ids"))
        encoded = model.bert(ids, token_type_ids=segments, output_hidden_states=True)
        mlm, nsp = model.cls(encoded.last_hidden_state, encoded.pooler_output)
        states = {f"hidden states of layer {number}": x[0] for number, x in enumerate(encoded.hidden_states)}
        stages = {"embeddings": states.pop("hidden states of layer 0")} | states
        stages |= {"pooler": encoded.pooler_output[0], "MLM logits": mlm[0, sequence["masked_positions"]]}
        for stage, x in (stages | {"NSP logits": nsp[0]}).items():
            found.setdefault(stage, []).append(x)
    return found | {"loss": [their_loss(found)]}


def their_loss(stages: dict[str, list[Any]]) -> Any:
    """The reference's loss (run_pretraining.py) in torch: 1e-5 is added to the number of masked tokens."""
    labels, next_sentence = (
        torch.tensor(np.concatenate([sequence[name] for sequence in sequences()]))
        for name in ("masked_ids", "next_sentence_labels")
    )
    masked = torch.nn.functional.cross_entropy(torch.cat(stages["MLM logits"]), labels, reduction="sum")
    nsp = torch.nn.functional.cross_entropy(torch.stack(stages["NSP logits"]), next_sentence)
    return masked / (len(labels) + 1e-5) + nsp
