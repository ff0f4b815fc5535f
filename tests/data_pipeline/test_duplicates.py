"""Duplicates: found as a plain loop over the whole corpus finds them, whoever did the work and however it was cut."""

import dataclasses
import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import digests, duplicates, open_corpus
from data_pipeline.config import PrepareConfig
from data_pipeline.digests import DigestWriter, Totals, lines_of
from data_pipeline.duplicates import Sieve, count_repeated, find_repeated
from data_pipeline.prepare import prepare
from data_pipeline.store import read_block
from data_pipeline.tokenizer_training import train

LINES = [f"Line number {index} of the poem." for index in range(60)]


def poems(seed, count=150):
    """Documents of one to four lines, some of them repeated, their lines more often."""
    draw = random.Random(seed)
    found = ["\n".join(draw.choices(LINES, k=draw.randint(1, 4))) for _ in range(count)]
    return [draw.choice(found) if draw.random() < 0.2 else poem for poem in found]


def reference(documents, drop):
    """What is left, and how many documents and lines came before, by sets that hold the whole corpus."""
    seen_documents, seen_lines, left = set(), set(), []
    repeated = Totals(0, 0)
    for document in documents:
        kept = []
        for line in document.split("\n"):
            came_before = line.strip() in seen_lines
            seen_lines |= {line.strip()} - {""}
            repeated = repeated._replace(lines=repeated.lines + came_before)
            if not came_before:
                kept.append(line)
        came_before = document in seen_documents
        seen_documents.add(document)
        repeated = repeated._replace(documents=repeated.documents + came_before)
        text = {"none": document, "documents": "" if came_before else document, "lines": "\n".join(kept)}[drop]
        left += [text] if text.strip() else []
    return left, repeated


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train("wordpiece", LINES, 120, True).save(folder)
    return PrepareConfig(
        tokenizer=str(folder), shard_megabytes=0.001, validation_fraction=0.2, sentences="lines"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "poems.txt"
    path.write_text("\n\n".join(poems(0)))
    return str(path)


def run(config, source, output, workers=1, **settings):
    return prepare(dataclasses.replace(config, **settings), [str(source)], str(output), workers, progress=False)


def stored(path):
    """How often each document is stored, by the lengths and ids of its sentences."""
    corpus, found = open_corpus(path, verify="content"), []
    for split in ("train", "validation"):
        for block in corpus.blocks[split]:
            tokens, sentences, documents = read_block(corpus, block)
            parts = [tuple(part) for part in np.split(tokens, sentences[1:-1])]
            found += [tuple(parts[start:end]) for start, end in zip(documents, documents[1:])]
    return sorted(found)


def shards(path):
    return {each.name: each.read_bytes() for each in path.glob("*.parquet")}


@pytest.mark.parametrize("drop", ["none", "documents", "lines"])
def test_what_is_dropped_and_counted_is_what_a_plain_loop_finds(tmp_path, config, source, drop):
    left, repeated = reference(poems(0), drop)
    manifest = run(config, source, tmp_path / "c", drop_duplicates=drop).manifest
    assert len(manifest["shards"]["train"]) > 5
    assert {kind: found["repeated"] for kind, found in manifest["duplicates"].items()} == repeated._asdict()
    assert manifest["duplicates"]["documents"]["read"] == 150
    (tmp_path / "left.txt").write_text("\n\n".join(left))
    assert stored(tmp_path / "c") == stored(run(config, tmp_path / "left.txt", tmp_path / "left").path)
    assert repeated.documents > 10 and repeated.lines > 100


@pytest.mark.parametrize("drop", ["none", "documents", "lines"])
def test_neither_workers_nor_the_size_of_runs_and_parts_change_a_byte(tmp_path, config, source, drop, monkeypatch):
    expected = run(config, source, tmp_path / "1", drop_duplicates=drop)
    others = [run(config, source, tmp_path / "3", 3, drop_duplicates=drop)]
    monkeypatch.setattr(digests, "RUN", 7)
    monkeypatch.setattr(duplicates, "RUN", 7)
    monkeypatch.setattr(duplicates, "PART", 50)
    others.append(run(config, source, tmp_path / "small", drop_duplicates=drop))
    for other in others:
        assert shards(other.path) == shards(expected.path)
        assert other.manifest["duplicates"] == expected.manifest["duplicates"]


def test_held_out_documents_stay_held_out_whatever_is_dropped_of_them(tmp_path, config, source):
    counts = {drop: run(config, source, tmp_path / drop, drop_duplicates=drop).manifest for drop in ("none", "lines")}
    kept = counts["none"]["counts"], counts["lines"]["counts"]
    assert 0 < kept[1]["validation"]["documents"] <= kept[0]["validation"]["documents"]
    assert 0 < kept[1]["train"]["documents"] < kept[0]["train"]["documents"]
    held_out = stored_sentences(tmp_path / "lines", "validation") - stored_sentences(tmp_path / "none", "validation")
    assert not held_out, "a line that is held out now was held out before"


def stored_sentences(path, split):
    corpus = open_corpus(path)
    found = set()
    for block in corpus.blocks[split]:
        tokens, sentences, _ = read_block(corpus, block)
        found |= {tuple(part) for part in np.split(tokens, sentences[1:-1])}
    return found


def test_blank_lines_are_no_duplicates_and_white_space_at_their_ends_makes_no_difference(tmp_path):
    text = "one \n\n \t\n\u3000\n \u3000\n  one\nzwei\n\u00fcber\n\u3000\n".encode()
    assert [line.decode() for line in lines_of(text)] == ["one", "one", "zwei", "\u00fcber"]
    of_all_kinds = "\u00a0one\n\u3000 one\none \u2028\t\none\u00a0two\n\u00fcber\u202f \n".encode()
    assert [line.decode() for line in lines_of(of_all_kinds)] == ["one", "one", "one", "one\u00a0two", "\u00fcber"]
    writer = DigestWriter(tmp_path, 0)
    writer.add(text)
    writer.add(b" ")
    totals = writer.close()
    assert totals == Totals(documents=2, lines=4)
    assert count_repeated(tmp_path, [totals])["lines"] == {"read": 4, "repeated": 1}
    (repeated,) = find_repeated(tmp_path, [totals], "lines")
    assert Sieve(repeated).kept(text) == text.replace(b"  one\n", b"")


def test_white_space_around_lines_and_documents_makes_no_difference_to_documents(tmp_path, config):
    copies = ["One.\nTwo.", "One. \nTwo.", "One.\nTwo.\n", " One.\n\nTwo. \n\t", "One.\nTwo.\n\u3000\n"]
    texts = [*copies, "One. Two.", "Two.\nOne."]
    source = tmp_path / "copies.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = run(config, source, tmp_path / "c", drop_duplicates="documents").manifest
    assert found["duplicates"]["documents"] == {"read": 7, "repeated": 4}
    assert sum(found["counts"][split]["documents"] for split in ("train", "validation")) == 3


def test_no_more_digests_than_a_part_are_compared_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "PART", 500)
    totals, sizes, compare = [], [], duplicates._compare
    for shard in range(4):
        writer = DigestWriter(tmp_path, shard)
        for index in range(3_000):
            writer.add(b"line %d" % (index % 2_000 + shard * 1_000))
        totals.append(writer.close())

    def noted(runs, part, parts):
        found = compare(runs, part, parts)
        sizes.append(len(found[0]))
        return found

    monkeypatch.setattr(duplicates, "_compare", noted)
    assert count_repeated(tmp_path, totals)["lines"] == {"read": 12_000, "repeated": 12_000 - 5_000}
    assert len(sizes) == 2 * 24 and max(sizes) < 750


KILLED = """
import os, sys
from data_pipeline import prepare as module
from data_pipeline.config import PrepareConfig
name, last = sys.argv[4], int(sys.argv[5])
real, count = getattr(module, name), 0
def dies(*arguments):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), 9)
    return real(*arguments)
setattr(module, name, dies)
module.prepare(PrepareConfig(**eval(sys.argv[1])), [sys.argv[2]], sys.argv[3], 1, False)
"""


@pytest.mark.parametrize("step, last", [("digest_shard", 3), ("find_repeated", 1), ("prepare_shard", 3)])
def test_a_killed_prepare_goes_on_where_it_stopped(tmp_path, config, source, step, last):
    config = dataclasses.replace(config, drop_duplicates="lines")
    arguments = [repr(dataclasses.asdict(config)), source, str(tmp_path / "c"), step, str(last)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode == -signal.SIGKILL
    made = [path for path in (tmp_path / "c" / ".prepare").rglob("*.json") if path.name != "state.json"]
    kept = {path: path.stat().st_mtime_ns for path in [*made, *(tmp_path / "c").glob("*.parquet")]}
    assert len(kept) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.work_folder.shutil.rmtree", lambda *_, **__: None)
        finished = run(config, source, tmp_path / "c")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert shards(finished.path) == shards(run(config, source, tmp_path / "whole").path)


def test_digests_that_were_lost_are_made_again(tmp_path, config, source, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no room left"):
        patch.setattr("data_pipeline.prepare.write_manifest", _full)
        run(config, source, tmp_path / "c")
    next((tmp_path / "c" / ".prepare" / "digests").glob("lines-00002-*")).write_bytes(b"short")
    expected = run(config, source, tmp_path / "whole").manifest
    assert run(config, source, tmp_path / "c").manifest["duplicates"] == expected["duplicates"]


def _full(*_):
    raise OSError(28, "No space left on device")


def test_the_summary_tells_of_duplicates_and_warns_where_they_are_many(tmp_path, config, source, capsys):
    for drop, warns in (("none", True), ("lines", False)):
        setting = dataclasses.replace(config, drop_duplicates=drop)
        prepare(setting, [source], str(tmp_path / drop), 1)
        printed = capsys.readouterr().out
        assert ("of the lines came before in the corpus: --drop-duplicates lines leaves them out" in printed) is warns
        assert f": {'kept' if warns else 'lines dropped'}" in printed
