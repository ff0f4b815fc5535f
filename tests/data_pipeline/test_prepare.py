"""prepare: text in, a corpus out, the same for any workers, killed or not; bad input takes no finished work with it."""

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipeline import open_corpus, python_docs
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.python_docs import documents as python_documents
from data_pipeline.sentences import sentence_splitter
from data_pipeline.shards import is_held_out
from data_pipeline.store import read_block
from data_pipeline.tokenizer import load
from data_pipeline.tokenizer_training import train

CONFIG = PrepareConfig(vocab_size=600, shard_megabytes=0.02, validation_fraction=0.3)


@pytest.fixture(scope="module")
def texts():
    """About 100 documents of Python's documentation topics."""
    patch = pytest.MonkeyPatch()
    patch.setattr(python_docs, "_folders", lambda: [])
    found = ["\n".join(document) for document in python_documents()]
    patch.undo()
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("source") / "docs.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tokenizer")
    train("sentencepiece", texts, 600, True).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def loaded(tokenizer):
    return dataclasses.replace(CONFIG, tokenizer=tokenizer)


def run(config, inputs, output, workers=1):
    return prepare(config, [str(each) for each in inputs], str(output), workers, progress=False)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def stored(corpus, split):
    """The documents of a split as lists of lists of ids, in order."""
    found = []
    for block in corpus.blocks[split]:
        tokens, sentences, documents = read_block(corpus, block)
        parts = [part.tolist() for part in np.split(tokens, sentences[1:-1])]
        found += [parts[start:end] for start, end in zip(documents[:-1], documents[1:])]
    return found


def test_every_document_is_stored_once_with_its_ids(tmp_path, source, loaded, texts, tokenizer):
    summary = run(loaded, [source], tmp_path / "c")
    corpus = open_corpus(tmp_path / "c", verify="content")
    split, encode = sentence_splitter("split", "en"), load(tokenizer).encode
    for name, held_out in (("train", False), ("validation", True)):
        chosen = [text for text in texts if is_held_out(text.encode(), 0.3) is held_out]
        assert stored(corpus, name) == [[ids for ids in encode(split(text)) if ids] for text in chosen]
        assert summary.manifest["counts"][name]["documents"] == len(chosen) > 1
        assert summary.manifest["counts"][name]["characters"] == sum(map(len, chosen))
    assert len(corpus.manifest["shards"]["train"]) > 3
    assert corpus.tokenizer_fingerprint == load(tmp_path / "c" / "tokenizer").fingerprint


def test_shards_are_byte_identical_for_any_number_of_workers(tmp_path, source, loaded):
    for workers in (1, 2, 3):
        run(loaded, [source], tmp_path / str(workers), workers)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_a_tokenizer_is_trained_on_the_spot(tmp_path, source, kind):
    summary = run(dataclasses.replace(CONFIG, tokenizer=kind), [source], tmp_path / "c")
    assert summary.manifest["tokenizer"]["trained_on"]["sentences"] > 100
    assert load(tmp_path / "c" / "tokenizer").vocab_size == 600


def test_held_out_documents_stay_held_out_when_the_corpus_grows(tmp_path, loaded, texts):
    (tmp_path / "a.txt").write_text("\n\n".join(texts[::2]))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[1::2]))
    run(loaded, [tmp_path / "b.txt"], tmp_path / "small")
    run(loaded, [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "large")
    held_out = stored(open_corpus(tmp_path / "small"), "validation")
    assert held_out
    assert held_out == stored(open_corpus(tmp_path / "large"), "validation")[-len(held_out):]


def test_all_formats_of_the_same_documents_give_the_same_corpus(tmp_path, source, loaded, texts):
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    expected = stored(open_corpus(run(loaded, [source], tmp_path / "t").path), "train")
    for name in ("a.jsonl", "b.jsonl.gz"):
        config = dataclasses.replace(loaded, text_field="body")
        assert stored(open_corpus(run(config, [tmp_path / name], tmp_path / f"of-{name}").path), "train") == expected


def test_the_same_command_again_is_a_no_op_that_says_so(tmp_path, source, loaded, capsys):
    run(loaded, [source], tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*")}
    assert prepare(loaded, [source], str(tmp_path / "c"), 1).finished_before
    assert "is finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*")}


def test_a_finished_corpus_of_other_settings_or_sources_is_refused_and_kept(tmp_path, source, loaded):
    run(loaded, [source], tmp_path / "c")
    before = content(tmp_path / "c")
    other = tmp_path / "other.txt"
    other.write_text("Some other text.")
    with pytest.raises(ValueError, match="prepared with language = 'en', asked for is 'de'"):
        run(dataclasses.replace(loaded, language="de"), [source], tmp_path / "c")
    with pytest.raises(ValueError, match="from other sources: found name docs.txt.* asked for is name other.txt"):
        run(loaded, [other], tmp_path / "c")
    assert content(tmp_path / "c") == before


KILLED = """
import os, sys
from data_pipeline import prepare as module
from data_pipeline.config import PrepareConfig
real, count = module.prepare_shard, 0
def dies_at_the_third(job, *rest):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), 9)
    return real(job, *rest)
module.prepare_shard = dies_at_the_third
module.prepare(PrepareConfig(**eval(sys.argv[1])), [sys.argv[2]], sys.argv[3], 1, False)
"""


def kill_in_the_third_shard(config, source, output):
    arguments = [repr(dataclasses.asdict(config)), source, str(output)]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode == -signal.SIGKILL


def test_a_killed_prepare_goes_on_where_it_stopped(tmp_path, source):
    kill_in_the_third_shard(CONFIG, source, tmp_path / "c")
    with pytest.raises(ValueError, match="no dataset.json; was prepare interrupted"):
        open_corpus(tmp_path / "c")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.parquet")}
    fingerprint = load(tmp_path / "c" / "tokenizer").fingerprint
    assert len(kept) == 4
    corpus = open_corpus(run(CONFIG, [source], tmp_path / "c").path, verify="content")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert corpus.tokenizer_fingerprint == fingerprint
    assert content(tmp_path / "c") == content(run(CONFIG, [source], tmp_path / "whole").path)
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.startswith(".")]


def test_what_other_settings_left_unfinished_is_refused_and_kept(tmp_path, source, loaded):
    kill_in_the_third_shard(CONFIG, source, tmp_path / "c")
    kept = {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds an unfinished corpus prepared with .* choose another output folder"):
        run(loaded, [source], tmp_path / "c")
    assert kept == {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    run(CONFIG, [source], tmp_path / "c")
    assert content(tmp_path / "c") == content(run(CONFIG, [source], tmp_path / "whole").path)


def refuses(message, config, inputs, output, workers=1):
    with pytest.raises(ValueError, match=message) as caught:
        run(config, inputs, output, workers)
    assert "\n" not in str(caught.value)


def test_bad_input_before_anything_is_finished_leaves_no_folder_behind(tmp_path, source, loaded):
    bad = {"bad.txt": b"text \xff", "empty.txt": b"", "blank.txt": b"\n \n\t\n", "bad.jsonl": b'{"t": 1}\n'}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    for config in (CONFIG, loaded):
        for inputs, message in (
            ([tmp_path / "bad.txt", source], "bad.txt is not UTF-8 at byte 5"),
            ([tmp_path / "bad.jsonl"], "bad.jsonl, line 1: no field 'text'"),
            ([tmp_path / "empty.txt"], "the corpus is empty"),
            ([tmp_path / "blank.txt"], "the corpus is empty"),
            ([tmp_path / "none.txt"], "no file matches"),
            ([], "no input is given"),
        ):
            refuses(message, config, inputs, tmp_path / "c")
            assert not (tmp_path / "c").exists()
    small = dataclasses.replace(CONFIG, vocab_size=20)
    refuses("vocab_size 20 is smaller than the alphabet", small, [source], tmp_path / "c")
    refuses("vocab_size 20 is smaller", small, [source], tmp_path / "c", workers=2)
    refuses("no such file or folder", dataclasses.replace(CONFIG, tokenizer="nothing"), [source], tmp_path / "c")
    refuses("workers 0 is not positive", CONFIG, [source], tmp_path / "c", workers=0)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_first_run_that_cannot_read_its_last_file_keeps_what_is_finished(tmp_path, source, loaded, workers):
    inputs = [source, tmp_path / "last.txt"]
    (tmp_path / "last.txt").write_bytes(b"text \xff" * 4_000)
    refuses("last.txt is not UTF-8", loaded, inputs, tmp_path / "c", workers)
    records = (tmp_path / "c" / ".prepare").glob("shard-*.json")
    names = [name for path in records for name in (path.name, *shard_names(path))]
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*") if path.name in names}
    assert len(finished) >= 3 and not list((tmp_path / "c").rglob("*.partial"))
    before = os.stat(tmp_path / "last.txt")
    (tmp_path / "last.txt").write_bytes(b"text ?" * 4_000)
    os.utime(tmp_path / "last.txt", ns=(before.st_atime_ns, before.st_mtime_ns))  # as if a disk had failed to read it
    run(loaded, inputs, tmp_path / "c", workers)
    shards = {path: path.stat().st_mtime_ns for path in finished if path.suffix == ".parquet"}
    assert len(shards) >= 2 and shards == {path: finished[path] for path in shards}
    assert content(tmp_path / "c") == content(run(loaded, inputs, tmp_path / "whole").path)


def shard_names(record):
    return [shard["name"] for shard in json.loads(record.read_bytes())["shards"].values()]


def test_a_first_run_that_fails_after_training_keeps_the_tokenizer(tmp_path, source, monkeypatch):
    def fails(*_):
        raise ValueError("https://a.org/b.txt cannot be read: the connection was reset")

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.shards.read_documents", fails)
        refuses("the connection was reset", CONFIG, [source], tmp_path / "c")
    monkeypatch.setattr("data_pipeline.prepare.train_on_sample", fails)
    assert run(CONFIG, [source], tmp_path / "c").manifest["tokenizer"]["trained_on"]


def test_an_output_folder_inside_an_input_folder_is_no_input(tmp_path, source, loaded, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(open(source).read())
    (tmp_path / "link").symlink_to(tmp_path / "data")
    expected = content(run(loaded, [tmp_path / "data" / "a.txt"], tmp_path / "whole").path)
    monkeypatch.chdir(tmp_path / "data")
    for inputs in ["."], [tmp_path / "link"], ["**"]:
        assert not run(loaded, inputs, "corpus").finished_before
        assert run(loaded, inputs, "corpus").finished_before
        assert content(tmp_path / "data" / "corpus") == expected
        shutil.rmtree("corpus")
    (tmp_path / "data" / "corpus").mkdir()
    (tmp_path / "data" / "corpus" / "b.txt").write_text("text")
    refuses("no file matches 'corpus' outside of the output folder corpus", loaded, ["corpus"], "corpus")


@pytest.mark.parametrize("megabytes", [float("inf"), float("nan"), 0.0])
def test_shards_of_no_possible_size_are_refused(megabytes):
    with pytest.raises(ValueError, match=f"^shard_megabytes {megabytes} is not positive and finite$"):
        PrepareConfig(shard_megabytes=megabytes)


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path, source, loaded):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("precious")
    refuses("is not empty and holds no prepared corpus", loaded, [source], tmp_path / "c")
    refuses("is a file", loaded, [source], source)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.tex"]


def test_replaced_bytes_are_counted_and_warned_of(tmp_path, source, loaded, capsys):
    (tmp_path / "a.txt").write_bytes(b"some \xff text \xfe here\n\nmore text\n")
    config = dataclasses.replace(loaded, encoding_errors="replace")
    summary = prepare(config, [str(tmp_path / "a.txt")], str(tmp_path / "c"), 1)
    assert summary.manifest["replaced"] == 2
    assert "2 invalid bytes" in capsys.readouterr().out


def test_a_corpus_may_lie_in_a_folder_that_looks_like_a_scheme(tmp_path, source, loaded, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(source, "text:v1.txt")
    assert stored(open_corpus(run(loaded, ["text:v1.txt"], "corpus:v1").path), "train")
    assert content(tmp_path / "corpus:v1") == content(run(loaded, [source], tmp_path / "c").path)


@pytest.mark.parametrize("url", ["gs://bucket/corpus", "memory://corpus", "file:///corpus"])
def test_an_output_by_url_is_refused_before_anything_is_read_or_made(tmp_path, loaded, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    refuses(f"^output {url} is a URL: expected a local folder$", loaded, ["no-such-text"], url)
    assert not list(tmp_path.iterdir())


def test_a_corpus_of_one_document_is_stored_and_warned_of(tmp_path, texts, loaded, capsys):
    (tmp_path / "a.txt").write_text(texts[0])
    config = dataclasses.replace(loaded, validation_fraction=0.0)
    prepare(config, [str(tmp_path / "a.txt")], str(tmp_path / "c"), 1)
    assert len(stored(open_corpus(tmp_path / "c"), "train")) == 1
    assert "1 training document(s): next-sentence prediction needs 2" in capsys.readouterr().out


def test_lines_can_be_sentences(tmp_path, loaded):
    (tmp_path / "a.txt").write_text("One. Two.\nThree.\n\nFour.\n")
    config = dataclasses.replace(loaded, sentences="lines", validation_fraction=0.0)
    corpus = open_corpus(run(config, [tmp_path / "a.txt"], tmp_path / "c").path)
    assert [len(document) for document in stored(corpus, "train")] == [2, 1]


def test_python_docs_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(python_docs, "_folders", lambda: [])
    corpus = open_corpus(run(CONFIG, ["python-docs"], tmp_path / "c").path)
    assert len(stored(corpus, "train")) > 40
    assert run(CONFIG, ["python-docs"], tmp_path / "c").finished_before


def test_ctrl_c_ends_all_processes_quickly(tmp_path, texts):
    big = tmp_path / "big.txt"
    big.write_text("\n\n".join(texts * 300))
    code = (
        "import sys; from data_pipeline.prepare import prepare; from data_pipeline.config import PrepareConfig\n"
        "if __name__ == '__main__': prepare(PrepareConfig(vocab_size=900), [sys.argv[1]], sys.argv[2], 2, True)"
    )
    (tmp_path / "run.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(big), str(tmp_path / "c")], stderr=subprocess.PIPE
    )
    while not list(tmp_path.glob("c/*.partial")) + list(tmp_path.glob("c/.*.partial")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    process.communicate(timeout=20)
    assert process.returncode != 0 and time.monotonic() - begin < 5
    assert not (tmp_path / "c" / "dataset.json").exists()
