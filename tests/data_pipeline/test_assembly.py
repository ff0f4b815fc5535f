"""Rows of a batch against a loop that builds them token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import assembly, randomness
from data_pipeline.packing import Rows
from data_pipeline.sequences import Sequences

CLS, SEP = 60_001, 60_002
PER_TOKEN = ("input_ids", "segment_ids", "sequence_ids", "position_ids")
PER_SEQUENCE = ("cls_positions", "next_sentence_labels", "next_sentence_weights")
Pairs = list[list[tuple[int, int]]]


def window(rows: Pairs, dtype: type = np.uint16, seed: int = 0, length: int = 512) -> assembly.Window:
    """A window whose rows, of at most `length` tokens, hold sequences with the given lengths of A and B, somewhere in
    500 tokens of text. A length of B of 0: the sequence has none."""
    rng = np.random.default_rng(seed)
    a_length, b_length = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2).T
    count = len(a_length)
    labels = rng.integers(0, 2, count) * (b_length > 0)
    sequences = Sequences(
        rng.integers(0, 501 - a_length), a_length, rng.integers(0, 501 - b_length), b_length, labels
    )
    text = rng.integers(5, 60_000, 500)
    order = rng.permutation(count)
    shuffled = Sequences(*(array[np.argsort(order)] for array in sequences))
    packed = Rows(order, np.cumsum([0] + [len(row) for row in rows]))
    return assembly.window_of(text.astype(dtype), (CLS, SEP), shuffled, packed, randomness.key(seed), length)


def sequences_of(plan: assembly.Window, row: int) -> list[tuple[list[int], list[int], int]]:
    """(tokens of A, tokens of B, label) of each sequence of a row."""
    chosen = plan.packed.order[plan.packed.offsets[row] : plan.packed.offsets[row + 1]]
    numbers = [[int(array[sequence]) for array in plan.sequences] for sequence in chosen]
    tokens = plan.tokens.tolist()
    return [(tokens[a : a + a_length], tokens[b : b + b_length], label) for a, a_length, b, b_length, label in numbers]


def row_by_row(plan: assembly.Window, first: int, last: int, length: int, width: int) -> dict[str, list[list[int]]]:
    batch = {name: [] for name in (*PER_TOKEN, *PER_SEQUENCE)}
    for row in range(first, last):
        arrays = {name: [] for name in batch}
        for number, (a, b, label) in enumerate(sequences_of(plan, row), start=1):
            tokens = [CLS, *a, SEP, *b, SEP] if b else [CLS, *a, SEP]
            arrays["cls_positions"].append(len(arrays["input_ids"]))
            arrays["next_sentence_labels"].append(label)
            arrays["next_sentence_weights"].append(1 if b else 0)
            arrays["input_ids"] += tokens
            arrays["segment_ids"] += [0] * (len(a) + 2) + [1] * (len(tokens) - len(a) - 2)
            arrays["sequence_ids"] += [number] * len(tokens)
            arrays["position_ids"] += range(len(tokens))
        for name, values in arrays.items():
            batch[name].append(values + [0] * ((length if name in PER_TOKEN else width) - len(values)))
    return batch


def assert_equal_to_the_loop(plan: assembly.Window, first: int, last: int, length: int, width: int) -> None:
    found, layout = assembly.assemble(plan, first, last, length, width)
    expected = row_by_row(plan, first, last, length, width)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype.kind in ("f" if name == "next_sentence_weights" else "bui"), name
        assert array.shape == (last - first, length if name in PER_TOKEN else width), name
        assert array.tolist() == expected[name], name
    places = [
        (row - first, position, sum(map(len, pair)) + (3 if pair[1] else 2), len(pair[0]))
        for row in range(first, last)
        for position, (*pair, _) in zip(expected["cls_positions"][row - first], sequences_of(plan, row))
    ]
    assert list(zip(*(array.tolist() for array in layout), strict=True)) == places


@pytest.mark.parametrize("length", [5, 32, 512])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_row_of_one_sequence_is_what_the_loop_builds(length, dtype):
    rng = np.random.default_rng(length)
    cuts = [int(rng.integers(2, length - 2)) for _ in range(40)]
    plan = window([[(1 + n // 2, n - n // 2 - 1)] if n > 2 else [(1, 1)] for n in cuts], dtype, length=length)
    assert_equal_to_the_loop(plan, 0, 40, length, 1)
    assert_equal_to_the_loop(plan, 7, 8, length, 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_of_any_number_of_sequences_are_what_the_loop_builds(data):
    """Pairs and sequences of A alone, mixed; with room for more sequences than there are."""
    pairs = st.tuples(st.integers(1, 9), st.integers(0, 9))
    rows = data.draw(st.lists(st.lists(pairs, min_size=1, max_size=8), min_size=1))
    length = max(sum(a + b + 3 for a, b in row) for row in rows) + data.draw(st.integers(0, 5))
    plan = window(rows, seed=data.draw(st.integers(0, 99)), length=length)
    first, width = data.draw(st.integers(0, len(rows))), max(map(len, rows)) + data.draw(st.integers(0, 3))
    assert_equal_to_the_loop(plan, first, data.draw(st.integers(first, len(rows))), length, width)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_packed_row_holds_the_rows_of_its_sequences_each_alone(data):
    """Tokens, segments and positions of each are those it has by itself; the numbers tell them apart."""
    pairs = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6)
    plan = window([data.draw(pairs)], seed=data.draw(st.integers(0, 99)))
    length = int(plan.sequences.lengths.sum()) + data.draw(st.integers(0, 9))
    count = len(plan.packed.order)
    together, layout = assembly.assemble(plan, 0, 1, length, count)
    by_itself = plan._replace(packed=Rows(plan.packed.order, np.arange(count + 1)))
    alone, _ = assembly.assemble(by_itself, 0, count, length, 1)
    for number in range(count):
        inside = together["sequence_ids"][0] == number + 1
        start, size = int(layout.start[number]), int(layout.length[number])
        assert np.flatnonzero(inside).tolist() == list(range(start, start + size))
        assert (alone["sequence_ids"][number] > 0).sum() == size
        for name in ("input_ids", "segment_ids", "position_ids"):
            np.testing.assert_array_equal(together[name][0, inside], alone[name][number, :size])
        assert together["cls_positions"][0, number] == start
        for name in ("next_sentence_labels", "next_sentence_weights"):
            assert together[name][0, number] == alone[name][number, 0]
    padding = together["sequence_ids"][0] == 0
    assert not any(together[name][0, padding].any() for name in PER_TOKEN)


def test_a_sequence_without_b_has_one_separator_one_segment_and_no_label():
    batch, layout = assembly.assemble(window([[(4, 0), (3, 2)], [(6, 0)]]), 0, 2, 16, 2)
    assert batch["input_ids"][0, [0, 5, 6, 10, 13]].tolist() == [CLS, SEP, CLS, SEP, SEP]
    assert batch["sequence_ids"].tolist() == [[1] * 6 + [2] * 8 + [0] * 2, [1] * 8 + [0] * 8]
    assert batch["segment_ids"].tolist() == [[0] * 11 + [1] * 3 + [0] * 2, [0] * 16]
    assert batch["next_sentence_weights"].tolist() == [[0, 1], [0, 0]]
    assert layout.length.tolist() == [6, 8, 8]


def test_sixty_sequences_share_a_row_as_two_do():
    plan = window([[(1, 1 + n % 3) for n in range(60)], [(200, 190), (40, 50)], [(3, 4)]])
    assert_equal_to_the_loop(plan, 0, 3, 512, 60)
    assert_equal_to_the_loop(plan, 1, 3, 512, 2)


@pytest.mark.parametrize("length", [127, 128, 255, 256, 257])
def test_sequences_at_both_ends_of_the_text_are_what_the_loop_builds(length):
    """A row's slices of the text reach beyond it: by almost a row where B is the text's first token."""
    most, end = length - 4, 500
    places = [(0, most, end - 1, 1), (end - 1, 1, 0, most), (end - most, most, 0, 1), (0, 1, end - most, most)]
    a_start, a_length, b_start, b_length = np.array(places).T
    sequences = Sequences(a_start, a_length, b_start, b_length, np.array([1, 0, 1, 0]))
    text = np.random.default_rng(0).integers(5, 60_000, end).astype(np.uint16)
    rows = Rows(np.arange(4), np.arange(5))
    plan = assembly.window_of(text, (CLS, SEP), sequences, rows, randomness.key(0), length)
    assert_equal_to_the_loop(plan, 0, 4, length, 1)


def test_ids_beyond_the_signed_16_bits_survive():
    batch, _ = assembly.assemble(window([[(20, 20)]]), 0, 1, 43, 1)
    assert batch["input_ids"][0, 0] == CLS and batch["input_ids"][0, -1] == SEP and (batch["input_ids"] > 0).all()


def test_a_batch_of_rows_is_its_rows_one_by_one():
    plan = window([[(1 + n % 7, n % 6), (2, n % 3)] for n in range(30)])
    together, _ = assembly.assemble(plan, 0, 30, 24, 2)
    alone = [assembly.assemble(plan, n, n + 1, 24, 2)[0] for n in range(30)]
    for name, array in together.items():
        np.testing.assert_array_equal(array, np.concatenate([batch[name] for batch in alone]))


def test_no_rows_are_a_batch_of_no_rows():
    batch, layout = assembly.assemble(window([[(3, 4)]]), 1, 1, 16, 3)
    assert {name: array.shape for name, array in batch.items()} == {
        **{name: (0, 16) for name in PER_TOKEN}, **{name: (0, 3) for name in PER_SEQUENCE}
    }
    assert all(len(array) == 0 for array in layout)
