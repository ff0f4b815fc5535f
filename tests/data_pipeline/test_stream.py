"""The stream of batches: a pure function of corpus, seed, settings and position."""

import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from synthetic import make_corpus

from data_pipeline import packing, stream
from data_pipeline.config import DataConfig
from data_pipeline.store import Corpus
from data_pipeline.stream import Position, batches

CONFIG = DataConfig(sequence_length=32, window_tokens=2_000)
EPOCHS = 3
Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("stream") / "corpus", [[9, 14, 1], [20, 3], [12, 12, 12]], [[7, 5]])


@pytest.fixture(scope="module")
def windows(corpus) -> list[tuple[tuple[int, int], packing.Window]]:
    """All windows of the first epochs, in order."""
    counts = [len(stream.windows_of_epoch(corpus, CONFIG, "train", 0, epoch)) for epoch in range(EPOCHS)]
    places = [(epoch, window) for epoch in range(EPOCHS) for window in range(counts[epoch])]
    assert min(counts) >= 3
    return [(place, stream.plan_window(corpus, CONFIG, "train", 0, *place)) for place in places]


@pytest.fixture(scope="module")
def rows(corpus, windows) -> Batch:
    """All rows of the first epochs, built window by window: what the stream has to deliver, however it is cut."""
    return joined([stream._build([(plan, 0, plan.rows)], corpus, CONFIG, plan.rows) for _, plan in windows])


def joined(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def part(rows: Batch, first: int, last: int) -> Batch:
    return {name: array[first:last] for name, array in rows.items()}


def take(count: int, corpus: Corpus, config: DataConfig = CONFIG, **settings) -> list[tuple[Batch, Position]]:
    with_defaults = {"batch_size": 16, "seed": 0} | settings
    return list(itertools.islice(batches(corpus, config, **with_defaults), count))


def row_number(windows, position: Position) -> int:
    """How many rows come before a position."""
    return sum(plan.rows for place, plan in windows if place < tuple(position[:2])) + position.row


# --- the same rows, however they are cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [16, 37, 100])
def test_batches_are_the_rows_of_all_windows_one_after_the_other(corpus, windows, rows, batch_size):
    total = len(rows["input_ids"])
    found = take(total // batch_size, corpus, batch_size=batch_size)
    assert_equal(joined([batch for batch, _ in found]), part(rows, 0, batch_size * len(found)))
    assert [row_number(windows, after) for _, after in found] == [batch_size * (n + 1) for n in range(len(found))]


def test_a_batch_may_be_larger_than_an_epoch(corpus, rows):
    size = len(rows["input_ids"]) - 5
    assert_equal(take(1, corpus, batch_size=size)[0][0], part(rows, 0, size))


def test_an_epoch_uses_every_sequence_of_every_block_once(corpus, windows):
    for epoch in range(EPOCHS):
        blocks = stream.windows_of_epoch(corpus, CONFIG, "train", 0, epoch)
        assert sorted(itertools.chain(*blocks)) == sorted(corpus.blocks["train"])
    for _, plan in windows:
        np.testing.assert_array_equal(np.sort(plan.order), np.arange(len(plan.sequences.a_start)))
        np.testing.assert_array_equal(plan.row_offsets, np.arange(len(plan.order) + 1))


def test_two_runs_are_identical(corpus):
    for (first, one), (second, two) in zip(take(30, corpus), take(30, corpus), strict=True):
        assert one == two
        assert_equal(first, second)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_hosts_of_a_run_together_hold_the_batches_of_one(corpus, rows, hosts):
    count = len(rows["input_ids"]) // 16
    shares = [take(count, corpus, host_index=host, host_count=hosts) for host in range(hosts)]
    for step, each in enumerate(zip(*shares, strict=True)):
        assert len({after for _, after in each}) == 1
        assert_equal(joined([batch for batch, _ in each]), part(rows, 16 * step, 16 * step + 16))


def test_workers_and_read_ahead_do_not_change_the_batches(corpus):
    expected = take(40, corpus)
    for workers, read_ahead in ((1, 1), (4, 3)):
        config = DataConfig(sequence_length=32, window_tokens=2_000, workers=workers, read_ahead=read_ahead)
        for (batch, after), (other, other_after) in zip(take(40, corpus, config), expected, strict=True):
            assert after == other_after
            assert_equal(batch, other)


def test_a_share_too_large_to_be_built_at_once_is_the_same(corpus, monkeypatch):
    whole = DataConfig(sequence_length=32)
    plan = stream.plan_window(corpus, whole, "train", 0, 0, 0)
    runs = [(plan, 3, 100), (plan, 100, 101), (plan, 0, 64)]
    expected = stream._build(runs, corpus, whole, 170)
    monkeypatch.setattr(stream, "_TOKENS_AT_ONCE", 7 * 32)
    assert_equal(stream._build(runs, corpus, whole, 170), expected)


# --- positions -------------------------------------------------------------------------------------------------------


def test_from_any_position_the_stream_goes_on_as_if_never_interrupted(corpus, windows, rows):
    positions = [after for _, after in take(len(rows["input_ids"]) // 16 - 5, corpus)]
    for index in np.random.default_rng(0).choice(len(positions), 20, replace=False):
        start = row_number(windows, positions[index])
        found = joined([batch for batch, _ in take(5, corpus, position=positions[index])])
        assert_equal(found, part(rows, start, start + 80))


def test_from_a_position_the_stream_goes_on_through_the_same_window_of_later_epochs(corpus, windows, rows):
    first_epoch = sum(plan.rows for (epoch, _), plan in windows if epoch == 0)
    found = take((first_epoch + 100) // 16, corpus, position=Position(0, 1, 7))
    start = row_number(windows, Position(0, 1, 7))
    assert_equal(joined([batch for batch, _ in found]), part(rows, start, start + 16 * len(found)))


def test_positions_at_the_borders_of_windows_and_epochs(corpus, windows, rows):
    for number, (place, plan) in enumerate(windows[:-1]):
        following = windows[number + 1][0]
        before, after = take(2, corpus, position=(*place, plan.rows)), take(2, corpus, position=Position(*following))
        start = row_number(windows, Position(*following))
        for (first, one), (second, two) in zip(before, after, strict=True):
            assert one == two
            assert_equal(first, second)
        assert_equal(after[0][0], part(rows, start, start + 16))


def test_a_position_survives_json_and_another_number_of_hosts(corpus, rows):
    _, after = take(7, corpus)[-1]
    shares = [take(2, corpus, position=list(after), host_index=host, host_count=2) for host in range(2)]
    assert_equal(joined([batch for batch, _ in (*shares[0][:1], *shares[1][:1])]), part(rows, 112, 128))


def test_positioning_reads_the_window_it_lies_in_and_none_before(corpus, windows, monkeypatch):
    read, original = [], stream.read_block
    monkeypatch.setattr(stream, "read_block", lambda corpus, block: read.append(block) or original(corpus, block))
    config = DataConfig(sequence_length=32, window_tokens=2_000, workers=1, read_ahead=1)
    epoch = stream.windows_of_epoch(corpus, config, "train", 0, 1)
    take(1, corpus, config, position=Position(1, len(epoch) - 1, 3), batch_size=2)
    following = stream.windows_of_epoch(corpus, config, "train", 0, 2)[0]
    assert read == (epoch[-1] + following)[: len(read)] and len(read) >= len(epoch[-1])


@pytest.mark.parametrize("position", [(0, 99, 0), (0, 0, 10**6), (-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_a_position_of_another_corpus_is_refused(corpus, position):
    with pytest.raises(ValueError, match=r"position \(.*\) is not one of this corpus: its (window|epoch) has"):
        take(1, corpus, position=Position(*position))


# --- epochs, seeds, splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [1, 4])
def test_one_epoch_covers_everything_and_ends_with_rows_of_no_weight(corpus, windows, rows, hosts):
    size = 64
    total = sum(plan.rows for (epoch, _), plan in windows if epoch == 0)
    assert 0 < total % size <= size * 3 // 4  # one of four hosts has nothing in the last batch
    shares = [take(None, corpus, batch_size=size, epochs=1, host_index=host, host_count=hosts) for host in range(hosts)]
    found = joined([joined([batch for batch, _ in each]) for each in zip(*shares, strict=True)])
    assert shares[0][-1][1] == Position(1, 0, 0)
    assert_equal(part(found, 0, total), part(rows, 0, total))
    assert len(found["input_ids"]) == -(-total // size) * size
    assert not any(array[total:].any() for array in found.values())


def test_after_the_last_epoch_there_is_nothing(corpus):
    assert take(None, corpus, position=Position(1, 0, 0), epochs=1) == []


def test_epochs_and_seeds_draw_other_pairs_and_other_masks(corpus):
    whole = DataConfig(sequence_length=32)
    plans = [stream.plan_window(corpus, whole, "train", seed, epoch, 0) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    built = [stream._build([(plan, 0, 100)], corpus, whole, 100) for plan in plans]
    for first, second in itertools.combinations(built, 2):
        assert (first["input_ids"] != second["input_ids"]).any(axis=1).mean() > 0.99
        assert (first["masked_positions"] != second["masked_positions"]).any(axis=1).mean() > 0.9
    shapes = {(tuple(plan.sequences.a_length), tuple(plan.sequences.b_length)) for plan in plans}
    assert len(shapes) == 3


def test_the_validation_split_holds_none_of_the_training_text(corpus):
    found = joined([batch for batch, _ in take(None, corpus, split="validation", epochs=1)])
    tokens = stream.plan_window(corpus, CONFIG, "validation", 0, 0, 0).tokens
    assert found["next_sentence_weights"].sum() > 10
    assert np.isin(found["masked_ids"][found["masked_weights"] > 0], tokens).all()


def test_every_window_of_every_epoch_draws_its_own_pairs_its_own_order_and_its_own_masks(corpus, monkeypatch):
    keys = []
    pair, lay_out = stream.pairing.PAIRINGS[CONFIG.pairing], stream.packing.one_sequence_per_row
    noting = [lambda *given, do=do: keys.append(int(given[-1])) or do(*given) for do in (pair, lay_out)]
    monkeypatch.setitem(stream.pairing.PAIRINGS, CONFIG.pairing, noting[0])
    monkeypatch.setattr(stream.packing, "one_sequence_per_row", noting[1])
    places = [(seed, epoch, window) for seed in range(2) for epoch in range(3) for window in range(2)]
    keys += [int(stream.plan_window(corpus, CONFIG, "train", *place).mask_key) for place in places]
    assert len(keys) == len(set(keys)) == 3 * len(places)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[[1, 1, 1]], [[1], [1], [50], [1]], [[2]], [[1, 2, 3, 1, 1, 1, 1]]])
def test_every_window_holds_two_documents_and_every_block_is_in_one(tmp_path, groups):
    corpus = make_corpus(tmp_path / "corpus", groups)
    for epoch in range(10):
        parts = stream.windows_of_epoch(corpus, DataConfig(window_tokens=1), "train", 0, epoch)
        assert all(sum(block.documents for block in blocks) >= 2 for blocks in parts)
        assert sorted(itertools.chain(*parts)) == sorted(corpus.blocks["train"])


def test_windows_are_as_large_as_asked_for_and_no_more_than_a_block_larger(corpus):
    largest = max(block.tokens for block in corpus.blocks["train"])
    for epoch in range(10):
        *whole, _ = stream.windows_of_epoch(corpus, CONFIG, "train", 0, epoch)
        sizes = [sum(block.tokens for block in blocks) for blocks in whole]
        assert all(CONFIG.window_tokens <= size < CONFIG.window_tokens + largest for size in sizes)


def test_ids_beyond_16_bits_and_at_their_edge_arrive(tmp_path):
    for vocab_size in (65_535, 65_536, 200_000):
        corpus = make_corpus(tmp_path / str(vocab_size), [[30]], vocab_size=vocab_size)
        batch = take(1, corpus, batch_size=256)[0][0]
        assert vocab_size * 0.98 < batch["input_ids"].max() < vocab_size and batch["input_ids"].min() >= 0


# --- refusals and failures -------------------------------------------------------------------------------------------


def test_a_corpus_of_one_document_is_refused_with_its_remedy(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[1]], [[1]])
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=f"holds 1 {split} document.*need two: put an empty line between"):
            take(1, corpus, split=split)


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 validation document"):
        take(1, make_corpus(tmp_path / "corpus", [[2]], []), split="validation")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 10, "host_count": 4}, "batch size 10 cannot be divided among 4 hosts"),
        ({"batch_size": 0}, "batch size 0 cannot be divided among 1 hosts"),
        ({"batch_size": 8, "host_index": 2, "host_count": 2}, r"host index 2 is not in \[0, 2\)"),
    ],
)
def test_what_cannot_be_divided_is_refused_when_asked_for(corpus, settings, message):
    with pytest.raises(ValueError, match=message):
        batches(corpus, CONFIG, seed=0, **settings)


def test_a_shard_that_goes_bad_surfaces_as_one_sentence_after_the_batches_before_it(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[10], [10], [10], [10], [10]])
    order = [blocks[0].shard for blocks in stream.windows_of_epoch(corpus, DataConfig(window_tokens=1), "train", 0, 0)]
    damaged = corpus.path / order[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    delivered = []
    with pytest.raises(ValueError) as caught:
        for batch, _ in batches(corpus, DataConfig(window_tokens=1), batch_size=4, seed=0):
            delivered.append(batch)
    sentence = str(caught.value)
    assert sentence.startswith(f"shard {damaged} is damaged in row group 0") and "\n" not in sentence
    assert "tensorflow" not in sentence.lower() and caught.value.__cause__ is None
    plans = [stream.plan_window(corpus, DataConfig(window_tokens=1), "train", 0, 0, window) for window in range(3)]
    assert len(delivered) == sum(plan.rows for plan in plans) // 4


def test_an_error_while_a_batch_is_built_surfaces_as_itself(corpus, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("no room for a batch")

    monkeypatch.setattr(stream, "_build", fail)
    with pytest.raises(MemoryError, match="^no room for a batch$"):
        take(3, corpus)


# --- memory, threads, the end ----------------------------------------------------------------------------------------


@pytest.fixture
def alive(monkeypatch) -> Iterator[list[weakref.ref]]:
    """References to the tokens of every window that is planned."""
    planned, original = [], stream.plan_window

    def plan_window(*arguments: object) -> packing.Window:
        plan = original(*arguments)
        planned.append(weakref.ref(plan.tokens))
        return plan

    monkeypatch.setattr(stream, "plan_window", plan_window)
    yield planned


def count_alive(planned: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in planned)


def planners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_windows_are_dropped_once_they_are_used(corpus, alive):
    config = DataConfig(sequence_length=32, window_tokens=1, workers=1, read_ahead=1)
    most = 0
    for batch, _ in batches(corpus, config, batch_size=8, seed=0, epochs=3):
        most = max(most, sum(reference() is not None for reference in alive))
    del batch
    # One in use, one planned behind it; the one before it while a batch across their border waits; one to come.
    assert len(alive) >= 15 and most <= 4
    assert count_alive(alive) == 0


def test_an_abandoned_stream_leaves_no_window_and_no_thread(corpus, alive):
    for _ in range(5):
        for _, after in batches(corpus, CONFIG, batch_size=16, seed=0):
            if after.row > 20:
                break
    held = batches(corpus, CONFIG, batch_size=16, seed=0)
    next(held)
    held.close()
    assert count_alive(alive) == 0 and not planners()


def test_a_stream_that_was_never_started_holds_nothing(corpus, alive):
    batches(corpus, CONFIG, batch_size=16, seed=0)
    assert not alive and not planners()


def test_two_streams_at_once_do_not_mix(corpus, rows):
    train = batches(corpus, CONFIG, batch_size=16, seed=0)
    found = [next(train)[0]]
    validation = [joined([batch for batch, _ in take(None, corpus, split="validation", epochs=1)]) for _ in range(2)]
    found += [next(train)[0], next(train)[0]]
    assert_equal(*validation)
    assert_equal(joined(found), part(rows, 0, 48))


def test_the_end_of_the_interpreter_closes_the_streams_that_are_still_open(corpus, alive):
    held = batches(corpus, CONFIG, batch_size=16, seed=0)
    next(held)
    stream._close_all()
    assert count_alive(alive) == 0 and list(held) == []


SCRIPT = """
import sys
from data_pipeline import batches, open_corpus
from data_pipeline.config import DataConfig

config = DataConfig(sequence_length=32, window_tokens=2_000, workers=1)
stream = batches(open_corpus(sys.argv[1]), config, batch_size=16, seed=0)
for number, (batch, position) in enumerate(stream):
    if number == 3:
        break
print("leaving", flush=True)
"""


def test_a_program_that_leaves_its_stream_open_ends_at_once_and_in_silence(corpus):
    """The threads behind the stream must not wait for an interpreter that is gone."""
    command = [sys.executable, "-c", SCRIPT, str(corpus.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "leaving\n", process.stderr.read()
            begin = time.monotonic()
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0 and not errors and time.monotonic() - begin < 20
        finally:
            process.kill()
