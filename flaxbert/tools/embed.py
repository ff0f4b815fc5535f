"""`flaxbert embed`: texts → vectors of a pretrained encoder, for whatever learns from features (BERT, Devlin et al.
2018, section 5.3).
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import ModelConfig
from flaxbert.finetuning.batching import batches, bucket_lengths
from flaxbert.finetuning.encoding import count_cut, encode
from flaxbert.finetuning.examples import Columns, read_examples
from flaxbert.finetuning.features import Feature
from flaxbert.finetuning.forms import Examples
from flaxbert.finetuning.tasks import TASKS
from flaxbert.model.encoder import Encoder
from flaxbert.tools.load import load
from flaxbert.tools.outputs import check_output, whole_output
from flaxbert.training.compilation import keep_compilations

ENDINGS = (".npy", ".parquet", ".jsonl")
_AT_ONCE = 16_384  # texts whose vectors are held in memory, and at most so many
_NUMBERS_AT_ONCE = 1 << 23  # numbers in them, 32 MiB, but for what one batch gives


class Pooling(NamedTuple):
    """How the hidden states of a text become its vector, or those of its tokens theirs."""

    layers: tuple[int, ...]
    """Places in [0, L]: 0 is what the first layer reads, L what the last one gives."""
    combine: str
    """`concat`, `sum` or `mean` of the layers."""
    over: str
    """`mean` of all tokens, special ones included; `cls`, the vector of [CLS]; `tokens`: each its own."""


def embed(
    model: str, source: str, output: str, *, pooling: str = "mean", layers: str = "-1", combine: str = "concat",
    first: str | None = None, second: str | None = None, label: str | None = None, batch_size: int = 32,
    max_length: int | None = None, say: Callable[[str], None] = lambda sentence: None,
) -> None:  # fmt: skip
    """Writes a vector for each text of a file, in their order, float32: `.npy` holds [N, D]; `.parquet` and `.jsonl` a
    row for each with `id`, `text`, `vector` (a list of D; of lists where `pooling` is `tokens`, beside `tokens`), the
    second text and, where a column is named for it, the `label`.

    `output` appears whole or not at all. Raises ValueError for what cannot be read, for layers that the model does not
    have, and where `output` exists.
    """
    _check(output, pooling, batch_size)
    loaded = load(model)
    chosen = Pooling(parse_layers(layers, loaded.config.num_layers), combine, pooling)
    examples = read_texts(source, Columns(first, second, label))
    longest = loaded.config.max_length if max_length is None else max_length
    if not 5 <= longest <= loaded.config.max_length:
        raise ValueError(f"max_length {longest} is not in [5, {loaded.config.max_length}], the model's range")
    for sentence in keep_compilations():
        say(sentence)
    size, cut = loaded.config.hidden_size * (len(chosen.layers) if combine == "concat" else 1), 0
    for sentence in examples.remarks:
        say(sentence)
    with _opened(output, len(examples.items), size) as write:
        for start in range(0, len(examples.items), _AT_ONCE):
            texts = Examples(examples.path, examples.items[start:start + _AT_ONCE])
            features = _features(texts, loaded.tokenizer, longest)
            cut += count_cut(features)
            for begin, end in _parts(features, size if pooling == "tokens" else 0, batch_size):
                part = features[begin:end]
                vectors = vectors_of(loaded.config, loaded.params, part, chosen, batch_size)
                write(Examples(texts.path, texts.items[begin:end]), part, vectors, loaded.tokenizer)
    if cut:
        say(f"{cut:,} of {len(examples.items):,} texts have more than {longest} tokens: they were cut there")
    say(f"{output}: {len(examples.items):,} texts, vectors of {size}")


def read_texts(source: str, columns: Columns) -> Examples:
    """The texts, or pairs of texts, of a table; of a file without columns, its lines."""
    task = TASKS["pair" if columns.second is not None else "classification"]
    # Of several columns without a known name none is guessed to be the text.
    task = dataclasses.replace(task, headerless=task.first[:1], copies_labels=True)
    found = read_examples(source, task, None, columns, labelled=columns.label is not None)
    return dataclasses.replace(found, items=_alike(found.items))


def _alike(items: list[Any]) -> list[Any]:
    """The examples with labels of one type, as a column of Parquet has it."""
    types = {type(item.label) for item in items}
    if len(types) == 1:
        return items
    alike = float if types <= {int, float} else str
    return [item._replace(label=alike(item.label)) for item in items]


def _parts(features: Sequence[Feature], numbers: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of as many features as are held at once, a batch at least, `numbers` for each of their tokens."""
    begin = held = 0
    for place, feature in enumerate(features):
        if place >= begin + batch_size and held + feature.length * numbers > _NUMBERS_AT_ONCE:
            yield begin, place
            begin, held = place, 0
        held += feature.length * numbers
    yield begin, len(features)


def parse_layers(text: str, num_layers: int, flag: str = "--layers") -> tuple[int, ...]:
    """`-1` or `-4,-3,-2,-1` as places in [0, num_layers]; negative ones count from the last layer."""
    try:
        wished = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text!r} is not a list of whole numbers with commas between them") from None
    for number in wished:
        if not -num_layers - 1 <= number <= num_layers:
            raise ValueError(
                f"{flag} names {number}, and the model has {num_layers}: 0 is what the first one reads, "
                f"{num_layers} or -1 what the last one gives"
            )
    return tuple(number % (num_layers + 1) for number in wished)


def _check(output: str, pooling: str, batch_size: int) -> None:
    path = Path(output)
    check_output("--output", output, ENDINGS)
    if path.exists():
        raise ValueError(f"--output {output} exists already: name a new file")
    if pooling == "tokens" and path.suffix.lower() == ".npy":
        raise ValueError("--pooling tokens gives texts of different lengths: choose .parquet or .jsonl")
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} is not positive")


def _features(examples: Examples, tokenizer: Any, max_length: int) -> list[Feature]:
    unlabelled = Examples(examples.path, [item._replace(label=None) for item in examples.items])
    return encode(unlabelled, TASKS["classification"], tokenizer, max_length)


def vectors_of(
    config: ModelConfig, params: Any, features: list[Feature], pooling: Pooling, batch_size: int
) -> list[np.ndarray]:
    """The vector [D] of each feature, or those of its tokens [S, D], in their order."""
    found: list[Any] = [None] * len(features)
    lengths = bucket_lengths(max(feature.length for feature in features))
    for batch in batches(features, batch_size, shuffle=False, lengths=lengths):
        ids = {name: batch[name] for name in ("input_ids", "segment_ids", "sequence_ids", "position_ids")}
        vectors = np.asarray(_vectors(config, pooling, params["encoder"], ids))
        for place, index in enumerate(batch["feature_indices"]):
            if index >= 0:
                own = vectors[place, :features[index].length] if pooling.over == "tokens" else vectors[place]
                found[index] = own.copy()  # a view would keep the padding of its batch
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _vectors(config: ModelConfig, pooling: Pooling, encoder: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """[B, D], or [B, S, D] of tokens."""
    states: Any = Encoder(config, True, jnp.float32, keeps_layers=True).apply({"params": encoder}, batch)
    chosen = [states[layer] for layer in pooling.layers]  # [B, S, D] each
    x = jnp.concatenate(chosen, axis=-1) if pooling.combine == "concat" else sum(chosen[1:], chosen[0])
    if pooling.combine == "mean":
        x = x / len(chosen)
    if pooling.over == "tokens":
        return x
    if pooling.over == "cls":
        return x[:, 0]
    there = (batch["sequence_ids"] > 0)[:, :, None].astype(x.dtype)
    return (x * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1)


Write = Callable[[Examples, Sequence[Feature], Sequence[np.ndarray], Any], None]


@contextlib.contextmanager
def _opened(output: str, count: int, size: int) -> Iterator[Write]:
    """A function that writes the next of `count` texts, vectors of `size`; the file gets its name at the end."""
    writers = {".npy": _npy, ".parquet": _parquet, ".jsonl": _json_lines}
    with whole_output("--output", output) as file:
        with writers[Path(output).suffix.lower()](file, count, size) as write:
            yield write


@contextlib.contextmanager
def _npy(file: BinaryIO, count: int, size: int) -> Iterator[Write]:
    kind = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    header = {"descr": kind, "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(file, header)

    def write(examples: Examples, features: Any, vectors: Sequence[np.ndarray], tokenizer: Any) -> None:
        file.writelines(vector.data for vector in vectors)

    yield write


@contextlib.contextmanager
def _json_lines(file: BinaryIO, count: int, size: int) -> Iterator[Write]:
    def write(*part: Any) -> None:
        for row in _rows(*part):
            line = json.dumps(row | {"vector": row["vector"].tolist()}, ensure_ascii=False)
            file.write(f"{line}\n".encode())

    yield write


@contextlib.contextmanager
def _parquet(file: BinaryIO, count: int, size: int) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        writer: Any = None

        def write(*part: Any) -> None:
            nonlocal writer
            rows = list(_rows(*part))
            vectors = [row.pop("vector") for row in rows]
            table = pa.Table.from_pylist(rows).append_column("vector", _lists(vectors))
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema))
            writer.write_table(table)

        yield write


def _lists(vectors: Sequence[np.ndarray]) -> Any:
    """Arrays [D], or [S, D] of different S, as a column of Arrow: lists of numbers, or lists of those."""
    import pyarrow as pa

    rows, size = np.concatenate([np.atleast_2d(vector) for vector in vectors]), vectors[0].shape[-1]
    lists = pa.ListArray.from_arrays(np.arange(0, rows.size + 1, size, dtype=np.int32), rows.ravel())
    if vectors[0].ndim == 1:
        return lists
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, vectors)], dtype=np.int32), lists)


def _rows(
    examples: Examples, features: Sequence[Feature], vectors: Sequence[np.ndarray], tokenizer: Any
) -> Iterator[dict[str, Any]]:
    for item, feature, vector in zip(examples.items, features, vectors, strict=True):
        row = {"id": item.id, "text": item.first}
        if item.second is not None:
            row["second"] = item.second
        if item.label is not None:
            row["label"] = item.label
        if vector.ndim == 2:
            row["tokens"] = [tokenizer.id_to_token(int(index)) for index in feature.rows[0].input_ids]
        yield row | {"vector": vector}
