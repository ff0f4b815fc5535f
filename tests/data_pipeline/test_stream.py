"""The stream of batches: a pure function of corpus, seed, settings and position."""

import dataclasses
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
from synthetic import built, make_corpus, planned, random_documents, word_pieces, write_corpus

from data_pipeline import assembly, masking, pairing, stream, windows
from data_pipeline.config import DataConfig
from data_pipeline.store import Corpus
from data_pipeline.stream import batches
from data_pipeline.windows import Position, Run, windows_of_epoch

CONFIG = DataConfig(sequence_length=32, window_tokens=2_000)
PACKED = dataclasses.replace(CONFIG, packing=4, sequence_length=48)
EPOCHS = 3
STEPS = 200
VARIANTS = {
    "unpacked, token": CONFIG,
    "unpacked, whole-word": dataclasses.replace(CONFIG, masking="whole-word"),
    "packed, token": PACKED,
    "packed, whole-word": dataclasses.replace(PACKED, masking="whole-word"),
}
Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """With a WordPiece tokenizer."""
    rng, pieces = np.random.default_rng(0), word_pieces(2_000)
    parts = [
        [[random_documents(count, rng, len(pieces)) for count in counts] for counts in groups]
        for groups in ([[9, 14, 1], [20, 3], [12, 12, 12]], [[7, 5]])
    ]
    return write_corpus(tmp_path_factory.mktemp("stream") / "corpus", *parts, len(pieces), pieces)


@pytest.fixture(scope="module")
def plans(corpus) -> list[tuple[tuple[int, int], assembly.Window]]:
    """All windows of the first epochs, in order."""
    counts = [len(windows_of_epoch(corpus, CONFIG, "train", 0, epoch)) for epoch in range(EPOCHS)]
    places = [(epoch, window) for epoch in range(EPOCHS) for window in range(counts[epoch])]
    assert min(counts) >= 3
    return [(place, planned(corpus, CONFIG, 0, *place)) for place in places]


@pytest.fixture(scope="module")
def rows(corpus, plans) -> Batch:
    """All rows of the first epochs, built window by window: what the stream has to deliver, however it is cut."""
    return joined([built(corpus, CONFIG, [Run(plan, 0, plan.rows)], plan.rows) for _, plan in plans])


def joined(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def part(rows: Batch, first: int, last: int) -> Batch:
    return {name: array[first:last] for name, array in rows.items()}


def take(count: int | None, corpus: Corpus, config: DataConfig = CONFIG, **settings) -> list[tuple[Batch, Position]]:
    with_defaults = {"batch_size": 16, "seed": 0} | settings
    return list(itertools.islice(batches(corpus, config, **with_defaults), count))


def row_number(plans, position: Position) -> int:
    """How many rows come before a position."""
    return sum(plan.rows for place, plan in plans if place < tuple(position[:2])) + position.row


# --- the same rows, however they are cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [16, 37, 100])
def test_batches_are_the_rows_of_all_windows_one_after_the_other(corpus, plans, rows, batch_size):
    total = len(rows["input_ids"])
    found = take(total // batch_size, corpus, batch_size=batch_size)
    assert_equal(joined([batch for batch, _ in found]), part(rows, 0, batch_size * len(found)))
    assert [row_number(plans, after) for _, after in found] == [batch_size * (n + 1) for n in range(len(found))]


def test_a_batch_may_be_larger_than_an_epoch(corpus, rows):
    size = len(rows["input_ids"]) - 5
    assert_equal(take(1, corpus, batch_size=size)[0][0], part(rows, 0, size))


def test_an_epoch_uses_every_sequence_of_every_block_once(corpus, plans):
    for epoch in range(EPOCHS):
        blocks = windows_of_epoch(corpus, CONFIG, "train", 0, epoch)
        assert sorted(itertools.chain(*blocks)) == sorted(corpus.blocks["train"])
    for _, plan in plans:
        np.testing.assert_array_equal(np.sort(plan.packed.order), np.arange(len(plan.sequences.a_start)))
        np.testing.assert_array_equal(plan.packed.offsets, np.arange(len(plan.packed.order) + 1))


def test_two_runs_are_identical(corpus):
    for (first, one), (second, two) in zip(take(30, corpus), take(30, corpus), strict=True):
        assert one == two
        assert_equal(first, second)


def test_a_share_too_large_to_be_built_at_once_is_the_same(corpus, monkeypatch):
    whole = DataConfig(sequence_length=32)
    plan = planned(corpus, whole, 0, 0, 0)
    runs = [Run(plan, 3, 100), Run(plan, 100, 101), Run(plan, 0, 64)]
    expected = built(corpus, whole, runs, 170)
    monkeypatch.setattr(stream, "_TOKENS_AT_ONCE", 7 * 32)
    assert_equal(built(corpus, whole, runs, 170), expected)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, corpus) -> tuple[DataConfig, Batch, list[Position]]:
    """Settings, all rows of STEPS global batches of 8 built window by window, and the positions behind each batch."""
    config, size = VARIANTS[request.param], 8
    parts, positions, before = [], [], 0
    for epoch in itertools.count():
        for window in range(len(windows_of_epoch(corpus, config, "train", 0, epoch))):
            plan = planned(corpus, config, 0, epoch, window)
            parts.append(built(corpus, config, [Run(plan, 0, plan.rows)], plan.rows))
            positions += [Position(epoch, window, row) for row in range(1, plan.rows + 1) if not (before + row) % size]
            before += plan.rows
        if len(positions) >= STEPS:
            return config, part(joined(parts), 0, STEPS * size), positions[:STEPS]


@pytest.mark.parametrize("hosts, workers", [(1, 1), (2, 4), (4, 1), (8, 4)])
def test_200_global_batches_are_the_same_for_any_number_of_hosts_and_workers(corpus, variant, hosts, workers):
    config, expected, positions = variant
    config = dataclasses.replace(config, workers=workers, read_ahead=1 + workers)
    shares = [take(STEPS, corpus, config, batch_size=8, host_index=host, host_count=hosts) for host in range(hosts)]
    for each in shares:
        assert [after for _, after in each] == positions
    by_step = [joined([batch for batch, _ in each]) for each in zip(*shares, strict=True)]
    assert_equal(joined(by_step), expected)


def test_from_any_of_20_positions_the_batches_are_the_same_for_any_number_of_hosts_and_workers(corpus, variant):
    config, expected, positions = variant
    for index in np.random.default_rng(0).choice(STEPS - 10, 20, replace=False).tolist():
        hosts, workers = (1, 1, 2, 4)[index % 4], (1, 4)[index // 4 % 2]
        each = dataclasses.replace(config, workers=workers)
        settings = {"batch_size": 8, "position": positions[index], "host_count": hosts}
        shares = [take(10, corpus, each, host_index=host, **settings) for host in range(hosts)]
        assert all([after for _, after in share] == positions[index + 1 : index + 11] for share in shares)
        by_step = [joined([batch for batch, _ in each]) for each in zip(*shares, strict=True)]
        assert_equal(joined(by_step), part(expected, 8 * (index + 1), 8 * (index + 11)))


def test_variants_are_what_they_are_called(corpus, variant):
    config, rows, _ = variant
    assert (rows["sequence_ids"].max() > 1) == (config.packing > 1)
    assert rows["cls_positions"].shape[1] == config.packing
    if config.masking == "whole-word":
        # Where a word's second piece is predicted, so is the piece before it.
        starts, taken = stream.vocabulary_of(corpus, config).word_starts, rows["masked_weights"] > 0
        goes_on = taken & ~starts[rows["masked_ids"]]
        alone = goes_on & (np.diff(rows["masked_positions"], axis=1, prepend=-9) > 1)
        row, slot = np.nonzero(alone)
        before = rows["input_ids"][row, rows["masked_positions"][row, slot] - 1]
        assert goes_on.sum() > 500 and np.isin(before, [corpus.cls_id, corpus.sep_id]).all()


def test_batches_that_are_kept_are_not_written_over(corpus):
    """A consumer may hold as many as it likes, and may change what it holds a copy of."""
    held = take(60, corpus)
    copies = [{name: array.copy() for name, array in batch.items()} for batch, _ in take(60, corpus)]
    for (batch, _), copy in zip(held, copies, strict=True):
        assert_equal(batch, copy)


@pytest.mark.parametrize("name", pairing.PAIRINGS)
@pytest.mark.parametrize("kind", masking.MASKINGS)
@pytest.mark.parametrize("packing", [1, 5])
def test_every_combination_of_settings_gives_batches_of_the_same_form(corpus, name, kind, packing):
    config = DataConfig(sequence_length=40, window_tokens=2_000, pairing=name, masking=kind, packing=packing)
    batch, _ = take(1, corpus, config)[0]
    tokens = ("input_ids", "segment_ids", "sequence_ids", "position_ids")
    masks = ("masked_positions", "masked_ids", "masked_weights")
    pairs = ("cls_positions", "next_sentence_labels", "next_sentence_weights")
    widths = dict.fromkeys(tokens, 40) | dict.fromkeys(masks, config.predictions_per_row)
    widths |= dict.fromkeys(pairs, packing)
    assert {each: array.shape for each, array in batch.items()} == {each: (16, n) for each, n in widths.items()}
    assert all((array.dtype == np.float32) == each.endswith("weights") for each, array in batch.items())
    labelled = batch["sequence_ids"].max(axis=1).sum() if name in ("nsp", "nsp-balanced", "sop") else 0
    assert batch["next_sentence_weights"].sum() == labelled
    assert batch["masked_weights"].sum() > 16 and (batch["segment_ids"].any() == bool(labelled))
    cells = np.take_along_axis(batch["sequence_ids"], batch["masked_positions"], axis=1)
    assert (cells[batch["masked_weights"] > 0] > 0).all()


# --- positions -------------------------------------------------------------------------------------------------------


def test_from_a_position_the_stream_goes_on_through_the_same_window_of_later_epochs(corpus, plans, rows):
    first_epoch = sum(plan.rows for (epoch, _), plan in plans if epoch == 0)
    found = take((first_epoch + 100) // 16, corpus, position=Position(0, 1, 7))
    start = row_number(plans, Position(0, 1, 7))
    assert_equal(joined([batch for batch, _ in found]), part(rows, start, start + 16 * len(found)))


def test_positions_at_the_borders_of_windows_and_epochs(corpus, plans, rows):
    for number, (place, plan) in enumerate(plans[:-1]):
        following = plans[number + 1][0]
        before, after = take(2, corpus, position=(*place, plan.rows)), take(2, corpus, position=Position(*following))
        start = row_number(plans, Position(*following))
        for (first, one), (second, two) in zip(before, after, strict=True):
            assert one == two
            assert_equal(first, second)
        assert_equal(after[0][0], part(rows, start, start + 16))


def test_a_position_survives_json_and_another_number_of_hosts(corpus, rows):
    _, after = take(7, corpus)[-1]
    assert all(type(number) is int for number in after)
    shares = [take(2, corpus, position=list(after), host_index=host, host_count=2) for host in range(2)]
    assert_equal(joined([batch for batch, _ in (*shares[0][:1], *shares[1][:1])]), part(rows, 112, 128))


@pytest.mark.parametrize("position", [(0, 99, 0), (0, 0, 10**6), (-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_a_position_of_another_corpus_is_refused(corpus, position):
    with pytest.raises(ValueError, match=r"position \(.*\) is not one of this corpus: its (window|epoch) has"):
        take(1, corpus, position=Position(*position))


# --- epochs, seeds, splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosts", [1, 4])
def test_one_epoch_covers_everything_and_ends_with_rows_of_no_weight(corpus, plans, rows, hosts):
    size = 64
    total = sum(plan.rows for (epoch, _), plan in plans if epoch == 0)
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
    drawn = [planned(corpus, whole, seed, epoch, 0) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    rows = [built(corpus, whole, [Run(plan, 0, 100)], 100) for plan in drawn]
    for first, second in itertools.combinations(rows, 2):
        assert (first["input_ids"] != second["input_ids"]).any(axis=1).mean() > 0.99
        assert (first["masked_positions"] != second["masked_positions"]).any(axis=1).mean() > 0.9
    shapes = {(tuple(plan.sequences.a_length), tuple(plan.sequences.b_length)) for plan in drawn}
    assert len(shapes) == 3


def test_the_validation_split_holds_none_of_the_training_text(corpus):
    found = joined([batch for batch, _ in take(None, corpus, split="validation", epochs=1)])
    tokens = planned(corpus, CONFIG, 0, 0, 0, "validation").tokens
    assert found["next_sentence_weights"].sum() > 10
    assert np.isin(found["masked_ids"][found["masked_weights"] > 0], tokens).all()


def test_ids_beyond_16_bits_and_at_their_edge_arrive(tmp_path):
    for vocab_size in (65_535, 65_536, 200_000):
        corpus = make_corpus(tmp_path / str(vocab_size), [[30]], vocab_size=vocab_size)
        batch = take(1, corpus, batch_size=256)[0][0]
        assert vocab_size * 0.98 < batch["input_ids"].max() < vocab_size and batch["input_ids"].min() >= 0


# --- what a host does, and when --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", range(4))
def test_only_the_rows_of_a_host_are_gathered(corpus, monkeypatch, host):
    """To the number: 16 of each global batch of 64, and no padding."""
    gathered, original = [], assembly.assemble

    def assemble(window: assembly.Window, first: int, last: int, *shape: int) -> object:
        gathered.append(last - first)
        return original(window, first, last, *shape)

    monkeypatch.setattr(assembly, "assemble", assemble)
    found = take(None, corpus, batch_size=64, epochs=1, host_index=host, host_count=4)
    present = sum(int((batch["sequence_ids"][:, 0] > 0).sum()) for batch, _ in found)
    assert 16 * (len(found) - 1) <= present <= 16 * len(found) and sum(gathered) == present


@pytest.mark.parametrize("workers, read_ahead", [(1, 1), (2, 8)])
def test_nothing_waits_at_the_border_of_a_window(corpus, monkeypatch, workers, read_ahead):
    """Planning a window takes less time than its consumer takes for the one before: no batch shows it."""
    planning, original, asked = 0.3, windows.plan_window, []

    def plan_window(*arguments: object) -> assembly.Window:
        asked.append(arguments[-1])
        time.sleep(planning)
        return original(*arguments)

    monkeypatch.setattr(windows, "plan_window", plan_window)
    config = dataclasses.replace(CONFIG, workers=workers, read_ahead=read_ahead)
    least = min(planned(corpus, config, 0, 0, window).rows for window in range(3)) // 4  # batches in a window
    assert least >= 8
    own, asked[:] = batches(corpus, config, batch_size=4, seed=0), []
    waits, crossed = [], set()
    while len(crossed) < 4:
        begin = time.perf_counter()
        _, position = next(own)
        waits.append(time.perf_counter() - begin)
        crossed.add(position[:2])
        time.sleep(1.5 * planning / least)
    own.close()
    assert waits[0] > planning and len(asked) >= 5
    assert max(waits[1:]) < planning / 3, waits


# --- refusals and failures -------------------------------------------------------------------------------------------


def test_a_corpus_of_one_document_is_refused_with_its_remedy(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", [[1]], [[1]])
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=f"holds 1 {split} document.*need two: put an empty line between"):
            take(1, corpus, split=split)


def test_a_corpus_from_which_no_sequence_can_be_drawn_is_refused(tmp_path):
    """Documents of one token each: there is no second half, and no end to looking for one."""
    text = random_documents(5, np.random.default_rng(0), 100)
    single = text._replace(sentence_offsets=np.arange(6), document_offsets=np.arange(6), tokens=text.tokens[:5])
    corpus = write_corpus(tmp_path / "corpus", [[single]], vocab_size=100)
    for epochs in (None, 1):
        with pytest.raises(ValueError, match="too short: no sequence can be drawn from them"):
            take(1, corpus, dataclasses.replace(CONFIG, pairing="sop"), epochs=epochs)


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 validation document"):
        take(1, make_corpus(tmp_path / "corpus", [[2]], []), split="validation")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 10, "host_count": 4}, "batch size 10 cannot be divided among 4 hosts"),
        ({"batch_size": 0}, "batch size 0 cannot be divided among 1 hosts"),
        ({"batch_size": 8, "host_index": 2, "host_count": 2}, r"host index 2 is not in \[0, 2\)"),
        ({"batch_size": 8, "host_count": 0}, "host count 0 is not positive"),
        ({"batch_size": 8, "split": "test"}, "split 'test' is not one of train, validation"),
    ],
)
def test_arguments_out_of_range_are_refused_when_asked_for(corpus, settings, message):
    with pytest.raises(ValueError, match=message):
        batches(corpus, CONFIG, seed=0, **settings)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_shard_that_goes_bad_surfaces_as_one_sentence_after_the_batches_before_it(tmp_path, workers):
    corpus = make_corpus(tmp_path / "corpus", [[10], [10], [10], [10], [10]])
    config = DataConfig(window_tokens=1, workers=workers)
    order = [blocks[0].shard for blocks in windows_of_epoch(corpus, config, "train", 0, 0)]
    damaged = corpus.path / order[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    delivered = []
    with pytest.raises(ValueError) as caught:
        for batch, _ in batches(corpus, config, batch_size=4, seed=0):
            delivered.append(batch)
    sentence = str(caught.value)
    assert sentence.startswith(f"shard {damaged} is damaged in row group 0") and "\n" not in sentence
    assert "tensorflow" not in sentence.lower() and caught.value.__cause__ is None
    before = [planned(corpus, config, 0, 0, window) for window in range(3)]
    assert len(delivered) == sum(plan.rows for plan in before) // 4


def test_an_error_while_a_batch_is_built_surfaces_as_itself(corpus, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("no room for a batch")

    monkeypatch.setattr(assembly, "assemble", fail)
    with pytest.raises(MemoryError, match="^no room for a batch$"):
        take(3, corpus)


@pytest.mark.parametrize("read_ahead", [1, 3, 64])
def test_the_batches_before_one_that_cannot_be_built_arrive(corpus, monkeypatch, read_ahead):
    expected, original = take(13, corpus, batch_size=4), assembly.assemble

    def assemble(window: assembly.Window, first: int, last: int, *shape: int) -> object:
        if first <= 50 < last:
            raise MemoryError("no room for row 50")
        return original(window, first, last, *shape)

    monkeypatch.setattr(assembly, "assemble", assemble)
    delivered = []
    with pytest.raises(MemoryError, match="^no room for row 50$"):
        for item in batches(corpus, dataclasses.replace(CONFIG, read_ahead=read_ahead), batch_size=4, seed=0):
            delivered.append(item)
    assert len(delivered) == 12
    for (found, position), (batch, after) in zip(delivered, expected):
        assert position == after
        assert_equal(found, batch)


def test_what_goes_wrong_first_is_told_first(corpus, monkeypatch):
    """Batch 1 cannot be built, and the window after it cannot be planned."""
    config = dataclasses.replace(CONFIG, workers=1, read_ahead=8)
    size, original = planned(corpus, config, 0, 0, 0).rows // 3, windows.plan_window

    def plan_window(*arguments: object) -> assembly.Window:
        if arguments[-1] == (0, 0, 1):
            raise ValueError("window 1 is damaged")
        return original(*arguments)

    def assemble(window: assembly.Window, first: int, last: int, *shape: int) -> object:
        if last > size:
            raise MemoryError("no room for batch 1")
        return gather(window, first, last, *shape)

    gather = assembly.assemble
    monkeypatch.setattr(windows, "plan_window", plan_window)
    monkeypatch.setattr(assembly, "assemble", assemble)
    delivered = []
    with pytest.raises(MemoryError, match="^no room for batch 1$"):
        for item in batches(corpus, config, batch_size=size, seed=0):
            delivered.append(item)
    assert len(delivered) == 1


# --- memory, threads, the end ----------------------------------------------------------------------------------------


@pytest.fixture
def alive(monkeypatch) -> Iterator[list[weakref.ref]]:
    """References to the tokens of every window that is planned."""
    made, original = [], windows.plan_window

    def plan_window(*arguments: object) -> assembly.Window:
        plan = original(*arguments)
        made.append(weakref.ref(plan.tokens))
        return plan

    monkeypatch.setattr(windows, "plan_window", plan_window)
    yield made


def count_alive(made: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in made)


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
