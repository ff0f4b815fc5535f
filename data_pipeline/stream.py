"""Prepared corpus → numpy batches, at any position, for any number of hosts.

The stream is a pure function of corpus, seed, settings and position. An epoch draws an order of the corpus's blocks
and cuts it into windows; a window is paired, shuffled and masked under keys made of (seed, epoch, window); the rows
of all windows, one after the other and epoch after epoch, are cut into global batches. A position names the first
row that is not yet used, so a run resumes by planning one window and reading nothing before it.
"""

import atexit
import concurrent.futures
import functools
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import masking, packing, pairing, randomness
from data_pipeline.config import DataConfig
from data_pipeline.store import Block, Corpus, join, read_block

_ORDER, _PAIRING, _ROWS, _MASKING = range(4)
_TOKENS_AT_ONCE = 1 << 15  # larger arrays are fresh memory from the system each time, at twice the cost


class Position(NamedTuple):
    """The first row not yet used."""

    epoch: int = 0
    window: int = 0
    row: int = 0


def batches(
    corpus: Corpus,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    position: Position = Position(),
    split: str = "train",
    epochs: int | None = None,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[tuple[dict[str, np.ndarray], Position]]:
    """Yields (batch, position after it); the batch holds this host's share of the `batch_size` global rows.

    Endless unless `epochs` is given; then the last batch is filled up with empty rows of weight zero.
    Raises ValueError where the corpus cannot be paired or the position does not belong to it.
    """
    if batch_size < 1 or batch_size % host_count:
        raise ValueError(f"batch size {batch_size} cannot be divided among {host_count} hosts")
    if not 0 <= host_index < host_count:
        raise ValueError(f"host index {host_index} is not in [0, {host_count})")
    share = batch_size // host_count
    rows = functools.partial(_global_batches, corpus, config, batch_size, seed, Position(*position), split, epochs)
    stream = _delivered(rows, host_index * share, share, corpus, config)
    _OPEN.add(stream)
    return stream


_OPEN: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends the streams that are still open while there is an interpreter: TensorFlow's threads wait for one forever."""
    for stream in list(_OPEN):
        stream.close()


def _delivered(
    global_batches: Callable[[], Iterator[tuple[list["_Run"], Position]]],
    first: int,
    share: int,
    corpus: Corpus,
    config: DataConfig,
) -> Generator[tuple[dict[str, np.ndarray], Position], None, None]:
    """Builds rows [first, first + share) of each global batch inside tf.data."""
    shelf = _Shelf()
    failure: list[BaseException] = []  # TensorFlow would wrap an error in a page of text: carried past it

    def descriptors() -> Iterator[tuple[np.ndarray, Position]]:
        try:
            for runs, after in global_batches():
                own = _own_rows(runs, first, first + share)
                yield np.array([(shelf.put(plan), start, end) for plan, start, end in own]).reshape(-1, 3), after
        except Exception as error:
            failure.append(error)

    def build(runs: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            batch = _build([(shelf.take(int(name)), start, end) for name, start, end in runs], corpus, config, share)
            return tuple(batch[name] for name in _names())
        except Exception as error:
            failure.append(error)
            raise

    try:
        for *arrays, after in _dataset(descriptors, build, config, share):
            yield dict(zip(_names(), arrays, strict=True)), Position(*map(int, after))
    except Exception:
        if not failure:
            raise
    finally:
        shelf.clear()  # TensorFlow never forgets the two functions, nor what they refer to
    if failure:
        raise failure[0]


def windows_of_epoch(corpus: Corpus, config: DataConfig, split: str, seed: int, epoch: int) -> list[list[Block]]:
    """The blocks of each window in the order of the epoch. Every block is in exactly one window.

    A window closes once it holds `window_tokens` tokens and two documents (a pair needs two); what is left at the
    end with fewer joins the window before it.
    """
    blocks = corpus.blocks[split]
    windows: list[list[Block]] = [[]]
    for index in randomness.permutation(randomness.key(seed, epoch, 0, _ORDER), len(blocks)):
        if sum(b.tokens for b in windows[-1]) >= config.window_tokens and sum(b.documents for b in windows[-1]) > 1:
            windows.append([])
        windows[-1].append(blocks[index])
    if len(windows) > 1 and sum(b.documents for b in windows[-1]) < 2:
        windows[-2].extend(windows.pop())
    return windows


def plan_window(
    corpus: Corpus, config: DataConfig, split: str, seed: int, epoch: int, window: int
) -> packing.Window:
    """Reads, pairs and shuffles one window. Raises ValueError where the corpus has no text to pair."""
    count = sum(block.documents for block in corpus.blocks[split])
    if count < 2:
        raise ValueError(
            f"{corpus.path} holds {count} {split} document(s), and next-sentence pairs need two: put an empty line "
            "between documents and prepare again, or hold out another share with --validation-fraction"
        )
    blocks = windows_of_epoch(corpus, config, split, seed, epoch)[window]
    documents = join([read_block(corpus, block) for block in blocks])
    sequences = pairing.PAIRINGS[config.pairing](documents, config, randomness.key(seed, epoch, window, _PAIRING))
    order, row_offsets = packing.one_sequence_per_row(
        len(sequences.a_start), randomness.key(seed, epoch, window, _ROWS)
    )
    special = np.array([corpus.cls_id, corpus.sep_id], documents.tokens.dtype)
    return packing.Window(
        tokens=np.concatenate([documents.tokens, special]),
        sequences=sequences,
        order=order,
        row_offsets=row_offsets,
        mask_key=randomness.key(seed, epoch, window, _MASKING),
    )


_Run = tuple[packing.Window, int, int]  # rows [first, last) of a window


def _global_batches(
    corpus: Corpus, config: DataConfig, size: int, seed: int, position: Position, split: str, epochs: int | None
) -> Iterator[tuple[list[_Run], Position]]:
    """Cuts the rows of all windows into global batches; a batch may span windows and epochs."""
    runs: list[_Run] = []
    missing = size
    for (epoch, window), plan in _plans(corpus, config, split, seed, position, epochs):
        row = position.row if (epoch, window) == (position.epoch, position.window) else 0
        if not 0 <= row <= plan.rows:
            raise ValueError(f"position {tuple(position)} is not one of this corpus: its window has {plan.rows} rows")
        while row < plan.rows:
            last = min(row + missing, plan.rows)
            runs.append((plan, row, last))
            missing -= last - row
            row = last
            if not missing:
                yield runs, Position(epoch, window, row)
                runs, missing = [], size
    if runs:
        yield runs, Position(epochs or 0, 0, 0)


def _plans(
    corpus: Corpus, config: DataConfig, split: str, seed: int, position: Position, epochs: int | None
) -> Iterator[tuple[tuple[int, int], packing.Window]]:
    """All windows from `position` on; the next one is planned in the background while one is in use."""
    here = (position.epoch, position.window)
    count = len(windows_of_epoch(corpus, config, split, seed, position.epoch)) if position.epoch >= 0 else 0
    if not 0 <= position.window < count:
        raise ValueError(f"position {tuple(position)} is not one of this corpus: its epoch has {count} windows")
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        pending = background.submit(plan_window, corpus, config, split, seed, *here)
        while epochs is None or here[0] < epochs:
            plan = pending.result()
            last = len(windows_of_epoch(corpus, config, split, seed, here[0])) - 1
            following = (here[0], here[1] + 1) if here[1] < last else (here[0] + 1, 0)
            if epochs is None or following[0] < epochs:
                pending = background.submit(plan_window, corpus, config, split, seed, *following)
            yield here, plan
            here = following


def _own_rows(runs: list[_Run], first: int, last: int) -> list[_Run]:
    """Rows [first, last) of a global batch made of `runs`."""
    own, before = [], 0
    for plan, start, end in runs:
        low, high = max(first - before, 0), min(last - before, end - start)
        if low < high:
            own.append((plan, start + low, start + high))
        before += end - start
    return own


class _Shelf:
    """Windows in use, by number, so that a run of rows can travel through tf.data as three integers.

    A window is dropped when every run that was put on the shelf has been taken and another window has come.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: dict[int, packing.Window] = {}
        self._waiting: dict[int, int] = {}
        self._newest = -1

    def put(self, plan: packing.Window) -> int:
        with self._lock:
            if self._plans.get(self._newest) is not plan:
                self._newest += 1
                self._plans[self._newest] = plan
                self._waiting[self._newest] = 0
                self._drop_used()
            self._waiting[self._newest] += 1
            return self._newest

    def take(self, name: int) -> packing.Window:
        with self._lock:
            plan = self._plans[name]
            self._waiting[name] -= 1
            self._drop_used()
            return plan

    def clear(self) -> None:
        with self._lock:
            self._plans.clear()
            self._waiting.clear()

    def _drop_used(self) -> None:
        for name in [n for n, count in self._waiting.items() if not count and n != self._newest]:
            del self._plans[name], self._waiting[name]


def _build(runs: list[_Run], corpus: Corpus, config: DataConfig, rows: int) -> dict[str, np.ndarray]:
    """Gathers and masks the rows of `runs`; fills up with empty ones to `rows`."""
    vocabulary = masking.Vocabulary(corpus.vocab_size, corpus.cls_id, corpus.sep_id, corpus.mask_id)
    parts = []
    for window, first, last in _cut(runs, max(1, _TOKENS_AT_ONCE // config.sequence_length)):
        keys = randomness.bits(window.mask_key, np.arange(first, last))
        part = packing.assemble(window, first, last, config.sequence_length)
        parts.append(masking.mask_tokens(part, keys, vocabulary, config))
    present = sum(last - first for _, first, last in runs)
    if not parts:
        parts = [_template(config)]
    if present < rows:
        parts.append(packing.empty_rows(int(rows - present), parts[0]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cut(runs: list[_Run], rows: int) -> list[_Run]:
    """The same rows, cut so that a run has at most `rows`."""
    return [
        (window, start, min(start + rows, int(last)))
        for window, first, last in runs
        for start in range(int(first), int(last), rows)
    ]


def _shapes(config: DataConfig) -> dict[str, tuple[int, type]]:
    """Width and type of each array of a batch, in the order in which they travel."""
    length, width = config.sequence_length, config.predictions_per_row
    tokens: dict[str, tuple[int, type]] = {
        name: (length, np.int32) for name in ("input_ids", "segment_ids", "sequence_ids", "position_ids")
    }
    masks = {name: (width, np.int32) for name in ("masked_positions", "masked_ids")}
    pairs = {name: (1, np.int32) for name in ("cls_positions", "next_sentence_labels")}
    weights = {"masked_weights": (width, np.float32), "next_sentence_weights": (1, np.float32)}
    return tokens | masks | pairs | weights


def _template(config: DataConfig) -> dict[str, np.ndarray]:
    """A batch of no rows."""
    return {name: np.zeros((0, width), dtype) for name, (width, dtype) in _shapes(config).items()}


def _names() -> list[str]:
    return list(_shapes(DataConfig()))


def _dataset(descriptors: Any, build: Any, config: DataConfig, rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    """tf.data around the two functions: batches are built by parallel workers, in order, ahead of their use."""
    tf = _tensorflow()
    shapes = list(_shapes(config).values())
    types = [tf.as_dtype(dtype) for _, dtype in shapes]

    def build_in_graph(runs: Any, after: Any) -> tuple[Any, ...]:
        arrays = tf.numpy_function(build, [runs], types, stateful=False)
        for array, (width, _) in zip(arrays, shapes, strict=True):
            array.set_shape((rows, width))
        return (*arrays, after)

    signature = (tf.TensorSpec((None, 3), tf.int64), tf.TensorSpec((3,), tf.int64))
    dataset = tf.data.Dataset.from_generator(descriptors, output_signature=signature)
    dataset = dataset.map(build_in_graph, num_parallel_calls=config.workers, deterministic=True)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = config.workers + 2
    return dataset.prefetch(config.read_ahead).with_options(options).as_numpy_iterator()


def _tensorflow() -> Any:
    """TensorFlow, told to leave accelerators alone. Imported here because it takes seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing is computed by TensorFlow: it feeds, and says less
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf
