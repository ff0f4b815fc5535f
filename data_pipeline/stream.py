"""Prepared corpus → numpy batches, at any position, for any number of hosts.

The stream is a pure function of corpus, seed, settings and position: `windows.py` plans it. Here tf.data carries it:
the rows of this host are gathered and masked by parallel workers, in order and ahead of their use.
"""

import atexit
import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from data_pipeline import assembly, masking, randomness, tokenizer, word_starts
from data_pipeline.config import DataConfig
from data_pipeline.memory import keep_memory_of_batches
from data_pipeline.store import TOKENIZER_FOLDER, Corpus
from data_pipeline.tensorflow_import import import_tensorflow
from data_pipeline.windows import Position, Run, global_batches, rows_of_host

_POSITION_BYTES, _ALIGNMENT = 3 * 8, 64
_BYTES_TOGETHER = 1 << 23  # of small batches that travel together
_TOKENS_AT_ONCE = 1 << 17  # few calls of numpy for many rows: a quarter as many took 1.3 times as long for each


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
    Raises ValueError for arguments out of range, and where the corpus cannot be paired or the position is none of it.
    """
    if split not in corpus.blocks:
        raise ValueError(f"split {split!r} is not one of {', '.join(corpus.blocks)}")
    if host_count < 1:
        raise ValueError(f"host count {host_count} is not positive")
    if batch_size < 1 or batch_size % host_count:
        raise ValueError(f"batch size {batch_size} cannot be divided among {host_count} hosts")
    if not 0 <= host_index < host_count:
        raise ValueError(f"host index {host_index} is not in [0, {host_count})")
    keep_memory_of_batches()
    share = batch_size // host_count
    rows = functools.partial(global_batches, corpus, config, batch_size, seed, Position(*position), split, epochs)
    stream = _delivered(rows, host_index * share, share, vocabulary_of(corpus, config), config)
    _OPEN.add(stream)
    return stream


def first_batch(corpus: Corpus, config: DataConfig, batch_size: int, split: str) -> dict[str, np.ndarray]:
    """The first batch of an epoch, built without tf.data; empty rows where the split holds fewer."""
    runs, _ = next(global_batches(corpus, config, batch_size, 0, Position(), split, 1))
    batch, _ = _views(_aligned(_batch_bytes(config, batch_size)), config, batch_size)
    _fill([batch], runs, vocabulary_of(corpus, config), config)
    return batch


_OPEN: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends the streams that are still open while there is an interpreter: TensorFlow's threads wait for one forever."""
    for stream in list(_OPEN):
        with contextlib.suppress(ValueError):  # a daemon thread is inside of it
            stream.close()


def _delivered(
    rows: Callable[[], Iterator[tuple[list[Run], Position]]],
    first: int,
    share: int,
    vocabulary: masking.Vocabulary,
    config: DataConfig,
) -> Generator[tuple[dict[str, np.ndarray], Position], None, None]:
    """Builds rows [first, first + share) of each global batch inside tf.data.

    A batch travels as one buffer with its position behind it, and small batches travel several at a time: what tf.data
    does for each tensor and each element would cost more than the batch.
    """
    numbered = _Numbered(rows())
    size = _batch_bytes(config, share)
    together = min(config.read_ahead, max(1, _BYTES_TOGETHER // size))
    build = functools.partial(_built, first=first, share=share, vocabulary=vocabulary, config=config)
    failure: list[BaseException] = []  # TensorFlow would wrap an error in a page of text: carried past it

    def build_buffer(number: np.ndarray) -> np.ndarray:
        taken, untaken = numbered.take_each(range(int(number) * together, (int(number) + 1) * together))
        buffer, unbuilt = _as_far_as_possible(build, taken)
        failed = unbuilt or untaken
        if failed is not None:
            failure.append(failed)
            if not len(buffer):
                raise failed
        return buffer

    try:
        for buffer in _dataset(build_buffer, config, together):
            for start in range(0, len(buffer), size):
                views, position = _views(buffer[start:start + size], config, share)
                yield views, Position(*position.tolist())
            if len(buffer) < together * size:
                break
    except Exception:
        if not failure:
            raise
    finally:
        numbered.close()  # TensorFlow never forgets the function, nor what it refers to
    if failure:
        raise failure[0]


def _as_far_as_possible(build: Callable[[list[Any]], np.ndarray], taken: list[Any]) -> tuple[np.ndarray, Any]:
    """(a buffer with the batches before the first that cannot be built, why it cannot or None)."""
    with contextlib.suppress(Exception):
        return build(taken), None
    parts = [_aligned(0)]
    for each in taken:
        try:
            parts.append(build([each]))
        except Exception as error:
            return np.concatenate(parts), error
    return np.concatenate(parts), None


def _built(
    taken: list[tuple[list[Run], Position]], first: int, share: int, vocabulary: masking.Vocabulary, config: DataConfig
) -> np.ndarray:
    """A buffer with rows [first, first + share) of each of some global batches that follow each other."""
    size = _batch_bytes(config, share)
    buffer = _aligned(len(taken) * size)
    views = [_views(buffer[start:start + size], config, share) for start in range(0, len(buffer), size)]
    runs = [run for found, _ in taken for run in rows_of_host(found, first, first + share)]
    _fill([batch for batch, _ in views], runs, vocabulary, config)
    for (_, written), (_, position) in zip(views, taken, strict=True):
        written[:] = position
    return buffer


class _Numbered:
    """Takes from an iterator by number, whichever worker asks first. What has been taken is not kept."""

    def __init__(self, items: Iterator[Any]):
        self._lock, self._items = threading.Lock(), items
        self._waiting: dict[int, Any] = {}
        self._next = 0

    def take(self, number: int) -> Any:
        """Item `number`, None beyond the last one."""
        with self._lock:
            while self._next <= number:
                item = next(self._items, None)
                if item is None:
                    return self._waiting.pop(number, None)
                self._waiting[self._next] = item
                self._next += 1
            return self._waiting.pop(number, None)

    def take_each(self, numbers: range) -> tuple[list[Any], Exception | None]:
        """(the items up to the first that is not there or cannot be made, why it cannot or None)."""
        taken: list[Any] = []
        try:
            for number in numbers:
                item = self.take(number)
                if item is None:
                    break
                taken.append(item)
        except Exception as error:  # told once those before it are delivered
            return taken, error
        return taken, None

    def close(self) -> None:
        with self._lock:
            self._items, self._waiting = iter(()), {}


def vocabulary_of(corpus: Corpus, config: DataConfig) -> masking.Vocabulary:
    """What masking needs of the corpus's tokenizer; its pieces are read only where words matter."""
    starts = np.ones(corpus.vocab_size, bool)
    if config.masking != "token":
        loaded = tokenizer.load(corpus.path / TOKENIZER_FOLDER)
        starts = word_starts.word_starts(loaded.kind, loaded.pieces)
    return masking.Vocabulary(corpus.vocab_size, corpus.cls_id, corpus.sep_id, corpus.mask_id, starts)


def _fill(
    into: list[dict[str, np.ndarray]], runs: list[Run], vocabulary: masking.Vocabulary, config: DataConfig
) -> None:
    """Writes the rows of `runs` into the arrays of some batches, one after the other, and zeros behind them. What numpy
    takes to be called is paid once for many rows, whatever batches they belong to.
    """
    done = 0
    for window, first, last in _cut(runs, max(1, _TOKENS_AT_ONCE // config.sequence_length)):
        keys = randomness.bits(window.mask_key, np.arange(first, last))
        part, layout = assembly.assemble(window, first, last, config.sequence_length, config.packing)
        part, begin, end = masking.mask(part, layout, keys, vocabulary, config), done, done + last - first
        while done < end:
            rows = len(into[0]["input_ids"])
            number, row = divmod(done, rows)
            count = min(rows - row, end - done)
            for name, array in part.items():
                into[number][name][row:row + count] = array[done - begin:done - begin + count]
            done += count
    for number, batch in enumerate(into):
        for array in batch.values():
            array[max(0, done - number * len(array)):] = 0


def _cut(runs: list[Run], rows: int) -> list[Run]:
    """The same rows, those that follow each other in one run, cut so that a run has at most `rows`."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].window is run.window and joined[-1].last == run.first:
            run = joined.pop()._replace(last=run.last)
        joined.append(run)
    return [
        Run(window, start, min(start + rows, last))
        for window, first, last in joined
        for start in range(first, last, rows)
    ]


def _shapes(config: DataConfig) -> dict[str, tuple[int, type]]:
    """Width and type of each array of a batch, in the order in which they travel. Each number takes four bytes."""
    length, predictions, sequences = config.sequence_length, config.predictions_per_row, config.packing
    tokens: dict[str, tuple[int, type]] = {
        name: (length, np.int32) for name in ("input_ids", "segment_ids", "sequence_ids", "position_ids")
    }
    masks = {name: (predictions, np.int32) for name in ("masked_positions", "masked_ids")}
    pairs = {name: (sequences, np.int32) for name in ("cls_positions", "next_sentence_labels")}
    weights = {"masked_weights": (predictions, np.float32), "next_sentence_weights": (sequences, np.float32)}
    return tokens | masks | pairs | weights


def _batch_bytes(config: DataConfig, rows: int) -> int:
    """Bytes of a batch and its position, rounded up so that the next one is aligned too."""
    size = rows * sum(4 * width for width, _ in _shapes(config).values()) + _POSITION_BYTES
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _aligned(size: int) -> np.ndarray:
    """Fresh bytes, placed so that TensorFlow, and JAX on CPU, take them over without a copy."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start:start + size]


def _views(buffer: np.ndarray, config: DataConfig, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays of a batch and its position, int64 [3], inside of a buffer."""
    batch: dict[str, np.ndarray] = {}
    start = 0
    for name, (width, dtype) in _shapes(config).items():
        end = start + 4 * rows * width
        batch[name] = buffer[start:end].view(dtype).reshape(rows, width)
        start = end
    return batch, buffer[start:start + _POSITION_BYTES].view(np.int64)


def _dataset(build: Callable[[np.ndarray], np.ndarray], config: DataConfig, together: int) -> Iterator[np.ndarray]:
    """tf.data around the function: batches are built by parallel workers, in order, ahead of their use."""
    tf = import_tensorflow()
    numbers = tf.data.Dataset.range(np.iinfo(np.int64).max)
    dataset = numbers.map(
        lambda number: tf.numpy_function(build, [number], tf.uint8, stateful=False),
        num_parallel_calls=config.workers, deterministic=True,
    )  # fmt: skip
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = config.workers + 2
    return dataset.prefetch(max(1, config.read_ahead // together)).with_options(options).as_numpy_iterator()
