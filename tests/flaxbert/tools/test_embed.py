"""`flaxbert embed`: the vectors are those of the model, in the order of the texts, whatever the batches."""

import errno
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from full_disks import files_may_grow_to

from flaxbert import cli
from flaxbert.finetuning.tables import Columns
from flaxbert.tools.embed import parse_layers, read_texts, vectors_of
from flaxbert.tools.load import load

TEXTS = [
    "the quick brown fox", "a", "rivers run to the sea and the sea is never full", "the dog sleeps", "lists",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def write_rows(tmp_path):
    def written(*lines):
        (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return str(tmp_path / "rows.jsonl")

    return written


def embed(model, file, output, *flags):
    assert cli.main(["embed", str(model), str(file), "--output", str(output), *flags]) == cli.DONE
    return output


def test_the_mean_of_the_last_layer_is_that_of_encode(small_export, file, tmp_path):
    found = np.load(embed(small_export, file, tmp_path / "v.npy", "--batch-size", "2"))
    hidden, mask = load(small_export).encode(TEXTS)
    expected = (np.asarray(hidden) * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cls_is_the_first_token_and_tokens_are_all_of_them(small_export, file, tmp_path):
    hidden, mask = load(small_export).encode(TEXTS)
    cls = np.load(embed(small_export, file, tmp_path / "v.npy", "--pooling", "cls"))
    np.testing.assert_allclose(cls, np.asarray(hidden)[:, 0], rtol=1e-5, atol=1e-6)
    rows = pq.read_table(embed(small_export, file, tmp_path / "v.parquet", "--pooling", "tokens")).to_pylist()
    for number, row in enumerate(rows):
        assert row["text"] == TEXTS[number] and row["tokens"][0] == "[CLS]" and row["tokens"][-1] == "[SEP]"
        wanted = np.asarray(hidden)[number, mask[number]]
        np.testing.assert_allclose(np.array(row["vector"]), wanted, rtol=1e-4, atol=1e-6)


def test_layers_are_joined_or_added(small_export, file, tmp_path):
    alone = [np.load(embed(small_export, file, tmp_path / f"{n}.npy", f"--layers={n}")) for n in (-2, -1)]
    both = embed(small_export, file, tmp_path / "both.npy", "--layers=-2,-1")
    added = embed(small_export, file, tmp_path / "added.npy", "--layers=-2,-1", "--combine", "sum")
    mean = embed(small_export, file, tmp_path / "mean.npy", "--layers=-2,-1", "--combine", "mean")
    np.testing.assert_allclose(np.load(both), np.concatenate(alone, axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.load(added), alone[0] + alone[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.load(mean), (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.1, "two layers say the same"


def test_layers_count_from_either_end():
    assert parse_layers("0,1,-1,-4", 3) == (0, 1, 3, 0)


def test_json_lines_hold_the_column_of_labels(small_export, tmp_path):
    (tmp_path / "rows.csv").write_text("text,mood\nthe fox,glad\nthe dog,sad\n")
    output = embed(small_export, tmp_path / "rows.csv", tmp_path / "v.jsonl", "--label", "mood")
    rows = [json.loads(line) for line in output.open()]
    assert [(row["text"], row["label"], len(row["vector"])) for row in rows] == [
        ("the fox", "glad", 24), ("the dog", "sad", 24),
    ]  # fmt: skip


def test_a_column_to_copy_may_be_anything(small_export, tmp_path):
    (tmp_path / "one.tsv").write_text("text\tmood\nthe fox\tglad\nthe dog\tglad\n")
    (tmp_path / "scores.jsonl").write_text('{"text": "the fox", "s": 3}\n{"text": "the dog", "s": 2.5}\n')
    (tmp_path / "mixed.jsonl").write_text('{"text": "the fox", "s": 3}\n{"text": "the dog", "s": "-"}\n')
    for name, column, labels in (
        ("one.tsv", "mood", ["glad", "glad"]), ("scores.jsonl", "s", [3.0, 2.5]), ("mixed.jsonl", "s", ["3", "-"]),
    ):
        output = embed(small_export, tmp_path / name, tmp_path / f"{name}.parquet", "--label", column)
        assert pq.read_table(output)["label"].to_pylist() == labels


@pytest.mark.parametrize("label", ["NaN", "-Infinity", str(1 << 63), "1" + "0" * 400, "null"])
def test_a_label_that_no_column_of_numbers_holds_is_refused_with_its_line(write_rows, label):
    rows = write_rows('{"text": "the fox", "s": 3}', f'{{"text": "the dog", "s": {label}}}')
    with pytest.raises(ValueError, match="rows.jsonl, line 2, column 's' is .*, expected a finite number of up to 64"):
        read_texts(rows, Columns(label="s"))


def test_the_largest_labels_are_copied_to_the_last_digit(write_rows):
    largest = [(1 << 63) - 1, -(1 << 63)]
    rows = write_rows(*(f'{{"text": "the fox", "s": {number}}}' for number in largest))
    assert [item.label for item in read_texts(rows, Columns(label="s")).items] == largest


@pytest.mark.parametrize("numbers", [1, 1 << 23])
@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_the_file_is_the_same_however_little_is_held(small_export, file, tmp_path, monkeypatch, numbers, pooling):
    whole = pq.read_table(embed(small_export, file, tmp_path / "whole.parquet", "--pooling", pooling)).to_pylist()
    held = []
    monkeypatch.setattr("flaxbert.tools.embed._NUMBERS_AT_ONCE", numbers)
    monkeypatch.setattr("flaxbert.tools.embed._AT_ONCE", 3)
    monkeypatch.setattr(
        "flaxbert.tools.embed.vectors_of", lambda *given: held.append(len(given[2])) or vectors_of(*given)
    )
    flags = "--pooling", pooling, "--batch-size", "2"
    parts = pq.read_table(embed(small_export, file, tmp_path / "parts.parquet", *flags)).to_pylist()
    assert held == ([2, 1, 2] if pooling == "tokens" and numbers == 1 else [3, 2])
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.pop("vector"), other.pop("vector"), rtol=1e-5, atol=1e-6)
        assert one == other


def test_a_text_of_a_hundred_thousand_tokens_is_cut_and_that_is_told(small_export, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("the fox\n" + "sea " * 100_000 + "\n")
    assert np.load(embed(small_export, tmp_path / "long.txt", tmp_path / "v.npy")).shape == (2, 24)
    assert "1 of 2 texts have more than 48 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    (("--layers=4",), "names 4, and the model has 3"), (("--layers", "last"), "is not a list of whole numbers"),
    (("--max-length", "49"), "max_length 49 is not in [5, 48]"),
    (("--output", "v.txt"), "expected a name that ends in .npy"),
    (("--pooling", "tokens"), "choose .parquet or .jsonl"), (("--batch-size", "0"), "is not positive"),
])  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence_and_writes_nothing(small_export, file, tmp_path, capsys, flags, words):
    before = ["embed", str(small_export), str(file), "--output", str(tmp_path / "v.npy")]
    assert cli.main([*before, *flags]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags, words", [
    ((), "r.csv has no column 'text' or 'sentence' or"), ((), "those of line 1 are 'title', 'body': name yours by"),
    (("--first", "bodyy"), "r.csv has no column 'bodyy'; those of line 1 are 'title', 'body'"),
])  # fmt: skip
def test_of_several_columns_none_is_guessed(small_export, tmp_path, capsys, flags, words):
    (tmp_path / "r.csv").write_text("title,body\nthe fox,a dog\nthe dog,a fox\n")
    command = ["embed", str(small_export), str(tmp_path / "r.csv"), "--output", str(tmp_path / "v.npy")]
    assert cli.main([*command, *flags]) == cli.USER_ERROR
    assert words in capsys.readouterr().err and not (tmp_path / "v.npy").exists()


def test_what_is_there_is_not_overwritten(small_export, file, tmp_path, capsys):
    (tmp_path / "v.npy").write_text("years of work")
    command = ["embed", str(small_export), str(file), "--output", str(tmp_path / "v.npy")]
    assert cli.main(command) == cli.USER_ERROR and "exists already" in capsys.readouterr().err
    assert (tmp_path / "v.npy").read_text() == "years of work"


@pytest.mark.parametrize("ending, room", [(".npy", 200), (".parquet", 200), (".jsonl", 200), (".npy", 20)])
def test_a_full_disk_is_told_of_with_the_file_and_leaves_nothing(
    small_export, file, tmp_path, monkeypatch, capsys, ending, room
):  # fmt: skip
    vectors = np.arange(240, dtype=np.float32).reshape(-1, 24)
    monkeypatch.setattr("flaxbert.tools.embed.vectors_of", lambda config, params, part, *_: vectors[:len(part)])
    output = tmp_path / f"v{ending}"
    with files_may_grow_to(room):
        assert cli.main(["embed", str(small_export), str(file), "--output", str(output)]) == cli.USER_ERROR
    refused = f"flaxbert: --output {output} cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert capsys.readouterr().err == refused and list(tmp_path.iterdir()) == []
