"""Files by URL read as those by path do; what cannot be reached is named in one sentence."""

import os
import subprocess
import sys

import fsspec
import pytest
from fsspec.registry import known_implementations

from data_pipeline import open_corpus
from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.files import facts, find_files
from data_pipeline.prepare import prepare
from data_pipeline.sources import find_sources, plan_shards

FILES = {
    "b/wiki_00": "in b\n\nsecond in b", "a.txt": "in a", "c.jsonl": '{"text": "in c"}', ".hidden/x.txt": "no",
    ".hidden.txt": "no", "picture.png": "no", "b/b/d.txt": "in d", "empty.txt": "",
}  # fmt: skip


def texts(*inputs, shard_megabytes=16.0):
    shards = plan_shards(find_sources(inputs), shard_megabytes)
    return [document.text for shard in shards for part in shard for document in read_documents(part)]


@pytest.fixture(params=["memory", "file"])
def root(request, tmp_path):
    """The URL of a folder of FILES."""
    url = f"{request.param}://{tmp_path}/files"
    for name, content in FILES.items():
        system, path = fsspec.core.url_to_fs(f"{url}/{name}")
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, content.encode())
    yield url
    system.rm(fsspec.core.url_to_fs(url)[1], recursive=True)


def test_folders_globs_and_files_read_by_url(root, tmp_path):
    expected = ["in a", "in c", "in b", "second in b", "in d"]
    assert texts(root) == texts(f"{root}/") == expected
    assert texts(f"{root}/*.txt") == texts(f"{root}/a.txt", f"{root}/a.txt") == ["in a"]
    assert texts(f"{root}/**/*.txt") == ["in a", "in d"]
    if root.startswith("file"):
        assert texts(str(tmp_path / "files")) == expected, "the order is that of paths"


@pytest.mark.parametrize("shard_bytes", [1, 7, 50])
def test_a_file_read_by_url_is_read_once_however_it_is_cut(root, shard_bytes):
    system, path = fsspec.core.url_to_fs(f"{root}/long.txt")
    system.pipe_file(path, "".join(f"document {index}\nline\n\n" for index in range(20)).encode())
    assert texts(f"{root}/long.txt", shard_megabytes=shard_bytes / 1e6) == [f"document {n}\nline" for n in range(20)]


def test_a_url_that_names_nothing_is_refused(root):
    for name in (f"{root}/none.txt", f"{root}/*.none"):
        with pytest.raises(ValueError, match="no file matches"):
            texts(name)


@pytest.mark.parametrize("url, message", [
    ("nowhere://bucket/a.txt", "nowhere://bucket/a.txt cannot be read: Protocol not known: nowhere"),
    ("memory://a.zip::file://b", "is a chain of file systems: expected one scheme://path"),
])  # fmt: skip
def test_a_scheme_that_cannot_be_read_is_refused(url, message):
    with pytest.raises(ValueError, match=message):
        texts(url)


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(
        known_implementations, "cloud", {"class": "not_installed.CloudFS", "err": "Install cloudfs"}
    )
    with pytest.raises(ValueError, match="cloud://a.txt cannot be read without a further package: Install cloudfs"):
        texts("cloud://a.txt")


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_what_a_remote_file_system_raises_becomes_one_sentence(root, monkeypatch):
    class NoCredentials(Exception):
        pass

    def fails(*_, **__):
        raise NoCredentials("Unable to locate credentials")

    shards = plan_shards(find_sources([f"{root}/a.txt"]), 1.0)
    monkeypatch.setattr(type(fsspec.core.url_to_fs(root)[0]), "_open", fails)
    with pytest.raises(ValueError, match="a.txt cannot be read: NoCredentials: Unable to locate credentials"):
        list(read_documents(shards[0][0]))


@pytest.mark.parametrize("root", ["memory"], indirect=True)
def test_a_value_error_of_a_remote_file_system_becomes_one_sentence_that_names_the_file(root, monkeypatch):
    def fails(*_, **__):
        raise ValueError("The server doesn't appear to support range requests.\nOpen with block_size=0")

    ((part,),) = plan_shards(find_sources([f"{root}/a.txt"]), 1.0)
    monkeypatch.setattr(type(fsspec.core.url_to_fs(root)[0]), "_open", fails)
    sentence = r"^\w+://.*/a.txt cannot be read: ValueError: The server doesn't .* requests. Open with block_size=0$"
    with pytest.raises(ValueError, match=sentence):
        list(read_documents(part))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_no_regular_file_is_refused_and_never_opened(tmp_path, scheme):
    """Opening a pipe without a writer would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path, tmp_path / "p*"):
        with pytest.raises(ValueError, match=r"pipe cannot be read: it is no regular file"):
            texts(f"{scheme}{name}")


def test_standard_input_is_refused_whatever_is_behind_it():
    """A worker's standard input is another one."""
    code = "from data_pipeline.sources import find_sources; find_sources(['/dev/stdin'])"
    with open(__file__) as file:
        run = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True)
    assert "ValueError: /dev/stdin cannot be read: it is no regular file" in run.stderr


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_links_to_folders_are_followed_by_folders_and_globs_alike_and_loops_end(tmp_path, scheme):
    for name, text in {"root/b.txt": "in b", "elsewhere/deep/c.txt": "in c", "root/.hidden/d.txt": "in d"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    root = tmp_path / "root"
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (root / "shown").symlink_to(root / ".hidden")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    expected = ["in b", "in c", "in d"]
    assert texts(f"{scheme}{root}") == expected
    assert len(find_files(f"{scheme}{root}", lambda name: True)) == 3, "no folder is entered twice"
    assert sorted(texts(f"{scheme}{root}/**/*.txt")) == expected
    assert texts(f"{scheme}{root}", str(root)) == expected, "each once, whatever it is called"


def test_a_name_that_is_not_utf8_is_told_of(tmp_path):
    with open(os.fsencode(tmp_path / "b") + b"\xff.txt", "wb") as file:
        file.write(b"text")
    with pytest.raises(ValueError, match=r"b\\udcff.txt: its name is not UTF-8, rename it"):
        texts(str(tmp_path))


def test_a_corpus_is_prepared_from_urls_and_a_changed_file_is_noticed(root, tmp_path, tokenizer):
    config = PrepareConfig(tokenizer=tokenizer, validation_fraction=0.0)

    def run():
        return prepare(config, [root], str(tmp_path / "corpus"), 1, progress=False)

    assert run().manifest["counts"]["train"]["documents"] == 5
    assert run().finished_before
    system, path = fsspec.core.url_to_fs(f"{root}/a.txt")
    before = facts(f"{root}/a.txt")
    while facts(f"{root}/a.txt") == before:
        system.pipe_file(path, b"on a")
    with pytest.raises(ValueError, match="from other sources: found name a.txt, bytes 4"):
        run()
    assert open_corpus(tmp_path / "corpus", verify="content")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from data_pipeline.tokenizer_training import train

    folder = tmp_path_factory.mktemp("tokenizer")
    train("wordpiece", ["in a second b c d"] * 3, 30, True).save(folder)
    return str(folder)
