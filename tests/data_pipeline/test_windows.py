"""The plan of the stream: epochs, windows, rows, global batches; and that it never waits or loops in vain."""

import collections
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import IDS, flat, make_corpus, planned, with_tokens, write_corpus

from data_pipeline import pairing, windows
from data_pipeline.config import DataConfig
from data_pipeline.store import Corpus, join, read_block
from data_pipeline.windows import Position, Run, global_batches, rows_of_host, windows_of_epoch

CONFIG = DataConfig(sequence_length=32, window_tokens=2_000)
START = Position()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("windows") / "corpus", [[9, 14, 1], [20, 3], [12, 12, 12]], [[7, 5]])


# --- windows of an epoch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[[1, 1, 1]], [[1], [1], [50], [1]], [[2]], [[1, 2, 3, 1, 1, 1, 1]]])
def test_every_window_holds_two_documents_and_every_block_is_in_one(tmp_path, groups):
    corpus = make_corpus(tmp_path / "corpus", groups)
    for epoch in range(10):
        parts = windows_of_epoch(corpus, DataConfig(window_tokens=1), "train", 0, epoch)
        assert all(sum(block.documents for block in blocks) >= 2 for blocks in parts)
        assert sorted(itertools.chain(*parts)) == sorted(corpus.blocks["train"])


def test_windows_are_equally_large_and_no_larger_than_asked_for(corpus):
    """But for a block: a small rest would be used up before the next window is planned."""
    largest = max(block.tokens for block in corpus.blocks["train"])
    for epoch in range(10):
        windows = windows_of_epoch(corpus, CONFIG, "train", 0, epoch)
        sizes = [sum(block.tokens for block in blocks) for blocks in windows]
        assert len(sizes) > 2 and max(sizes) <= CONFIG.window_tokens + largest
        assert max(sizes) - min(sizes) <= 2 * largest


def test_epochs_and_seeds_take_the_blocks_in_other_orders(corpus):
    orders = {
        tuple(itertools.chain(*windows_of_epoch(corpus, CONFIG, "train", seed, epoch)))
        for seed in range(3)
        for epoch in range(5)
    }
    assert len(orders) == 15


# --- the plan of a window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("packing", [1, 4])
def test_a_window_holds_its_blocks_text_and_every_sequence_once(corpus, name, packing):
    config = DataConfig(sequence_length=32, window_tokens=2_000, pairing=name, packing=packing)
    shared = 0
    for number, blocks in enumerate(windows_of_epoch(corpus, config, "train", 3, 1)):
        plan = windows.plan_window(corpus, config, blocks, (3, 1, number))
        text = join([read_block(corpus, block) for block in blocks]).tokens
        assert plan.tokens[-2:].tolist() == [corpus.cls_id, corpus.sep_id]
        own, around = plan.tokens[32:-34], [*plan.tokens[:32], *plan.tokens[-34:-2]]
        assert not any(around)
        separators = sum(block.documents for block in blocks) if name == "none-across" else 0
        assert (own == corpus.sep_id).sum() == separators
        np.testing.assert_array_equal(own[own != corpus.sep_id], text)
        np.testing.assert_array_equal(np.sort(plan.packed.order), np.arange(len(plan.sequences.a_start)))
        lengths = np.add.reduceat(plan.sequences.lengths[plan.packed.order], plan.packed.offsets[:-1])
        assert lengths.max() <= 32 and np.diff(plan.packed.offsets).max() <= packing
        assert plan.rows == len(lengths)
        shared += len(plan.packed.order) - plan.rows
    assert (shared > 0) == (packing > 1)


def test_every_window_of_every_epoch_draws_its_own_pairs_its_own_order_and_its_own_masks(corpus, monkeypatch):
    keys = []
    way, pack = pairing.PAIRINGS[CONFIG.pairing], windows.packing.pack
    noting = [lambda *given, do=do: keys.append(int(given[-1])) or do(*given) for do in (way.draw, pack)]
    monkeypatch.setitem(pairing.PAIRINGS, CONFIG.pairing, way._replace(draw=noting[0]))
    monkeypatch.setattr(windows.packing, "pack", noting[1])
    places = [(seed, epoch, window) for seed in range(2) for epoch in range(3) for window in range(2)]
    keys += [int(planned(corpus, CONFIG, *place).mask_key) for place in places]
    assert len(keys) == len(set(keys)) == 3 * len(places)


# --- global batches --------------------------------------------------------------------------------------------------


def numbered(runs: list[Run], names: dict[int, tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(epoch, window, row) of every row of a batch. `names` are the places of the windows' mask keys."""
    return [(*names[int(plan.mask_key)], row) for plan, first, last in runs for row in range(first, last)]


@pytest.fixture(scope="module")
def places(corpus) -> list[tuple[int, int, int]]:
    """All rows of the first four epochs, in order."""
    return [
        (epoch, window, row)
        for epoch in range(4)
        for window in range(len(windows_of_epoch(corpus, CONFIG, "train", 0, epoch)))
        for row in range(planned(corpus, CONFIG, 0, epoch, window).rows)
    ]


@pytest.fixture(scope="module")
def names(corpus, places) -> dict[int, tuple[int, int]]:
    return {int(planned(corpus, CONFIG, 0, *place).mask_key): place for place in sorted({each[:2] for each in places})}


@pytest.mark.parametrize("size", [1, 16, 37, 1000])
def test_global_batches_are_the_rows_of_all_windows_one_after_the_other(corpus, places, names, size):
    count = len(places) // size
    found = list(itertools.islice(global_batches(corpus, CONFIG, size, 0, START, "train", None), count))
    assert [place for runs, _ in found for place in numbered(runs, names)] == places[: count * size]
    for number, (_, (epoch, window, row)) in enumerate(found, start=1):
        assert (epoch, window, row - 1) == places[number * size - 1]


def test_batches_from_any_position_are_those_that_come_behind_it(corpus, places, names):
    stream = global_batches(corpus, CONFIG, 7, 0, START, "train", None)
    positions = [after for _, after in itertools.islice(stream, 100)]
    for number in np.random.default_rng(0).choice(100, 20, replace=False).tolist():
        [(runs, _)] = itertools.islice(global_batches(corpus, CONFIG, 50, 0, positions[number], "train", None), 1)
        assert numbered(runs, names) == places[7 * (number + 1) :][:50]


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_number_of_epochs_ends_with_a_short_batch_behind_which_the_next_one_begins(corpus, places, names, epochs):
    expected = [place for place in places if place[0] < epochs]
    found = list(global_batches(corpus, CONFIG, 64, 0, START, "train", epochs))
    assert [place for runs, _ in found for place in numbered(runs, names)] == expected
    assert len(expected) % 64 and found[-1][1] == Position(epochs, 0, 0)


@pytest.mark.parametrize("position", [Position(1, 0, 0), Position(2, 0, 0)])
def test_after_the_last_epoch_there_is_nothing(corpus, position):
    assert list(global_batches(corpus, CONFIG, 64, 0, position, "train", 1)) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.data())
def test_rows_of_a_host_are_cut_out_of_the_runs_of_a_batch(lengths, data):
    starts = [data.draw(st.integers(0, 50)) for _ in lengths]
    runs = [Run(f"window {n}", start, start + length) for n, (start, length) in enumerate(zip(starts, lengths))]
    rows = [(run.window, row) for run in runs for row in range(run.first, run.last)]
    first = data.draw(st.integers(0, len(rows) + 3))
    last = data.draw(st.integers(first, len(rows) + 5))
    own = rows_of_host(runs, first, last)
    assert [(run.window, row) for run in own for row in range(run.first, run.last)] == rows[first:last]
    assert all(run.first < run.last for run in own)


# --- planning ahead --------------------------------------------------------------------------------------------------


def test_the_next_window_is_planned_while_one_is_in_use_and_no_more_than_that(corpus, monkeypatch):
    asked, threads, original = [], set(), windows.plan_window

    def plan_window(*arguments: object) -> object:
        threads.add(threading.current_thread())
        asked.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(windows, "plan_window", plan_window)
    stream = global_batches(corpus, CONFIG, 4, 0, START, "train", None)
    for _, (epoch, window, _) in itertools.islice(stream, 200):
        deadline = time.monotonic() + 10
        while (epoch, window) == asked[-1][1:] and time.monotonic() < deadline:
            time.sleep(0.001)
        # Planned are all windows up to the one behind the one in use.
        assert asked[-2][1:] == (epoch, window)
    assert len(asked) == len(set(asked)) > 5 and threading.current_thread() not in threads
    stream.close()


def test_one_window_is_planned_at_a_time_and_the_last_one_is_not_followed_by_another(corpus, monkeypatch):
    asked, original = [], windows.plan_window
    monkeypatch.setattr(windows, "plan_window", lambda *given: asked.append(given[-1]) or original(*given))
    list(global_batches(corpus, CONFIG, 16, 0, START, "train", 2))
    counts = [len(windows_of_epoch(corpus, CONFIG, "train", 0, epoch)) for epoch in (0, 1)]
    assert asked == [(0, epoch, window) for epoch in (0, 1) for window in range(counts[epoch])]


def test_only_the_window_of_a_position_is_read_and_none_before_it(corpus, monkeypatch):
    read, original = [], windows.read_block
    monkeypatch.setattr(windows, "read_block", lambda corpus, block: read.append(block) or original(corpus, block))
    epoch = windows_of_epoch(corpus, CONFIG, "train", 0, 1)
    stream = global_batches(corpus, CONFIG, 2, 0, Position(1, len(epoch) - 1, 3), "train", None)
    next(stream)
    stream.close()
    following = windows_of_epoch(corpus, CONFIG, "train", 0, 2)[0]
    assert read == (epoch[-1] + following)[: len(read)] and len(read) >= len(epoch[-1])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [(0, 99, 0), (0, 0, 10**6), (-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_a_position_of_another_corpus_is_refused(corpus, position):
    with pytest.raises(ValueError, match=r"position \(.*\) is not one of this corpus: its (window|epoch) has"):
        next(global_batches(corpus, CONFIG, 4, 0, Position(*position), "train", None))


@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_corpus_of_one_document_is_refused_with_its_remedy_where_pairs_need_two(tmp_path, name, split):
    corpus = make_corpus(tmp_path / "corpus", [[1]], [[1]])
    stream = global_batches(corpus, DataConfig(pairing=name), 4, 0, START, split, None)
    if pairing.PAIRINGS[name].documents == 2:
        with pytest.raises(ValueError, match=f"holds 1 {split} document.*need two: put an empty line between"):
            next(stream)
    else:
        assert sum(run.last - run.first for run in next(stream)[0]) == 4


@pytest.mark.parametrize("name", pairing.PAIRINGS)
def test_a_split_without_documents_is_refused(tmp_path, name):
    corpus = make_corpus(tmp_path / "corpus", [[2]], [])
    with pytest.raises(ValueError, match="holds 0 validation document"):
        next(global_batches(corpus, DataConfig(pairing=name), 4, 0, START, "validation", None))


# Documents by the lengths of their sentences; which pairings find a sequence in them.
SMALLEST = {
    "one sentence a document": ([[9], [4], [70], [1], [2]], set(pairing.PAIRINGS)),
    "one token a document": ([[1]] * 12, {"nsp", "none", "none-across"}),
    "one token and another of two": ([[1]] * 5 + [[2]], set(pairing.PAIRINGS)),
    "one document of one token": ([[1]], {"none", "none-across"}),
    "one document of two tokens": ([[1, 1]], {"sop", "none", "none-across"}),
    "two documents of one long sentence": ([[3000], [3000]], set(pairing.PAIRINGS)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("epochs", [None, 2])
@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("shape", SMALLEST)
@pytest.mark.parametrize("packing", [1, 3])
def test_the_smallest_corpora_give_batches_or_say_why_not(tmp_path, shape, name, epochs, packing):
    """Without an end, too: a stream that finds no sequence must not look for one forever."""
    documents, found_by = SMALLEST[shape]
    text = with_tokens(flat(documents), np.random.default_rng(0), 100)
    corpus = write_corpus(tmp_path / "corpus", [[text]], vocab_size=100)
    config = DataConfig(sequence_length=32, pairing=name, packing=packing, window_tokens=1)
    stream = global_batches(corpus, config, 5, 0, START, "train", epochs)
    if name in found_by:
        taken = list(itertools.islice(stream, 30))
        assert len(taken) == 30 or epochs
        assert all(sum(run.last - run.first for run in runs) == 5 for runs, _ in taken[:-1])
    else:
        with pytest.raises(ValueError, match="need two|too short: no sequence can be drawn from them"):
            next(stream)
    stream.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["nsp-balanced", "sop"])
@pytest.mark.parametrize("position", [(0, 0, 0), (3, 0, 0), (0, 1, 0)])
def test_from_any_position_a_corpus_without_sequences_is_refused(tmp_path, name, position):
    """Documents of one token have no second half."""
    parts = [with_tokens(flat([[1]] * 3), np.random.default_rng(n), 100) for n in range(3)]
    corpus = write_corpus(tmp_path / "corpus", [parts], vocab_size=100)
    config = DataConfig(sequence_length=32, pairing=name, window_tokens=1)
    with pytest.raises(ValueError, match="too short: no sequence can be drawn from them"):
        next(global_batches(corpus, config, 5, 0, Position(*position), "train", None))


@pytest.mark.timeout(60)
def test_windows_without_sequences_are_passed_over(tmp_path):
    """One document of two tokens among many of one, each few in a window of their own."""
    parts = [with_tokens(flat([[1]] * 3), np.random.default_rng(n), 100) for n in range(6)]
    parts.insert(4, with_tokens(flat([[1], [1, 1]]), np.random.default_rng(9), 100))
    corpus = write_corpus(tmp_path / "corpus", [parts], vocab_size=100)
    config = DataConfig(sequence_length=32, pairing="sop", window_tokens=1)
    found = list(itertools.islice(global_batches(corpus, config, 4, 0, START, "train", None), 10))
    rows = collections.Counter(epoch for _, (epoch, _, _) in found)
    assert len(found) == 10 and sum(rows.values()) == 10 and max(rows) >= 39  # a row an epoch
    assert all(run.window.rows == 1 for runs, _ in found for run in runs)
    assert len(list(global_batches(corpus, config, 4, 0, START, "train", 8))) == 2


def test_separators_are_the_corpus_s_own(corpus):
    config = DataConfig(sequence_length=32, pairing="none-across")
    plan = planned(corpus, config, 0, 0, 0)
    documents = sum(block.documents for block in corpus.blocks["train"])
    assert (plan.tokens[:-2] == IDS["sep_id"]).sum() == documents
