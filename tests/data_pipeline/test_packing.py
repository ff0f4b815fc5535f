"""Rows of a batch against a loop that builds them token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import packing, randomness
from data_pipeline.pairing import Sequences

CLS, SEP = 60_001, 60_002


def window(rows: list[list[tuple[int, int]]], dtype: type = np.uint16, seed: int = 0) -> packing.Window:
    """A window whose rows hold sequences with the given lengths of A and B, somewhere in 500 tokens of text."""
    rng = np.random.default_rng(seed)
    a_length, b_length = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2).T
    count = len(a_length)
    sequences = Sequences(
        rng.integers(0, 501 - a_length), a_length, rng.integers(0, 501 - b_length), b_length, rng.integers(0, 2, count)
    )
    text = rng.integers(5, 60_000, 500)
    order = rng.permutation(count)
    shuffled = Sequences(*(array[np.argsort(order)] for array in sequences))
    return packing.Window(
        tokens=np.append(text, [CLS, SEP]).astype(dtype),
        sequences=shuffled,
        order=order,
        row_offsets=np.cumsum([0] + [len(row) for row in rows]),
        mask_key=randomness.key(seed),
    )


def row_by_row(plan: packing.Window, first: int, last: int, length: int) -> dict[str, list[list[int]]]:
    names = ("input_ids", "segment_ids", "sequence_ids", "position_ids")
    batch = {name: [] for name in (*names, "cls_positions", "next_sentence_labels", "next_sentence_weights")}
    for row in range(first, last):
        arrays = {name: [] for name in batch}
        for number, sequence in enumerate(plan.order[plan.row_offsets[row] : plan.row_offsets[row + 1]], start=1):
            a_start, a_length, b_start, b_length, label = (int(array[sequence]) for array in plan.sequences)
            a = plan.tokens[a_start : a_start + a_length].tolist()
            b = plan.tokens[b_start : b_start + b_length].tolist()
            tokens = [CLS, *a, SEP, *b, SEP]
            arrays["cls_positions"].append(len(arrays["input_ids"]))
            arrays["next_sentence_labels"].append(label)
            arrays["next_sentence_weights"].append(1)
            arrays["input_ids"] += tokens
            arrays["segment_ids"] += [0] * (a_length + 2) + [1] * (b_length + 1)
            arrays["sequence_ids"] += [number] * len(tokens)
            arrays["position_ids"] += range(len(tokens))
        for name, values in arrays.items():
            batch[name].append(values + [0] * (length - len(values)) if name in names else values)
    width = max([1, *map(len, batch["cls_positions"])])
    return {
        name: values if name in names else [row + [0] * (width - len(row)) for row in values]
        for name, values in batch.items()
    }


def assert_equal_to_the_loop(plan: packing.Window, first: int, last: int, length: int) -> None:
    found, expected = packing.assemble(plan, first, last, length), row_by_row(plan, first, last, length)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == (np.float32 if name == "next_sentence_weights" else np.int32), name
        assert array.tolist() == expected[name], name


@pytest.mark.parametrize("length", [5, 32, 512])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_row_of_one_sequence_is_what_the_loop_builds(length, dtype):
    rng = np.random.default_rng(length)
    cuts = [int(rng.integers(2, length - 2)) for _ in range(40)]
    plan = window([[(1 + n // 2, n - n // 2 - 1)] if n > 2 else [(1, 1)] for n in cuts], dtype)
    assert_equal_to_the_loop(plan, 0, 40, length)
    assert_equal_to_the_loop(plan, 7, 8, length)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rows_of_any_number_of_sequences_are_what_the_loop_builds(data):
    pairs = st.tuples(st.integers(1, 9), st.integers(1, 9))
    rows = data.draw(st.lists(st.lists(pairs, min_size=1, max_size=8), min_size=1))
    length = max(sum(a + b + 3 for a, b in row) for row in rows) + data.draw(st.integers(0, 5))
    plan = window(rows, seed=data.draw(st.integers(0, 99)))
    first = data.draw(st.integers(0, len(rows)))
    assert_equal_to_the_loop(plan, first, data.draw(st.integers(first, len(rows))), length)


def test_sixty_sequences_share_a_row_as_two_do():
    plan = window([[(1, 1 + n % 3) for n in range(60)], [(200, 190), (40, 50)], [(3, 4)]])
    assert_equal_to_the_loop(plan, 0, 3, 512)
    assert packing.assemble(plan, 0, 3, 512)["cls_positions"].shape == (3, 60)
    assert packing.assemble(plan, 1, 3, 512)["cls_positions"].shape == (2, 2)


def test_ids_beyond_the_signed_16_bits_survive():
    plan = window([[(20, 20)]])
    batch = packing.assemble(plan, 0, 1, 43)
    assert batch["input_ids"][0, 0] == CLS and batch["input_ids"][0, -1] == SEP and (batch["input_ids"] > 0).all()


def test_a_batch_of_rows_is_its_rows_one_by_one():
    plan = window([[(1 + n % 7, 2 + n % 5)] for n in range(30)])
    together = packing.assemble(plan, 0, 30, 16)
    alone = [packing.assemble(plan, n, n + 1, 16) for n in range(30)]
    for name, array in together.items():
        np.testing.assert_array_equal(array, np.concatenate([batch[name] for batch in alone]))


def test_empty_rows_have_no_weight():
    like = packing.assemble(window([[(3, 4)]]), 0, 1, 16)
    rows = packing.empty_rows(3, like)
    assert all(not array.any() and array.dtype == like[name].dtype for name, array in rows.items())
    assert {name: array.shape[1:] for name, array in rows.items()} == {name: a.shape[1:] for name, a in like.items()}


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_one_sequence_per_row_uses_every_sequence_once_in_another_order_for_each_key(count):
    order, row_offsets = packing.one_sequence_per_row(count, randomness.key(1))
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    np.testing.assert_array_equal(row_offsets, np.arange(count + 1))
    assert count < 2 or (order != packing.one_sequence_per_row(count, randomness.key(2))[0]).any()
