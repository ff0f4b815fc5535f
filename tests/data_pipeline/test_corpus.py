"""Readers: every document exactly once, however files are cut; bad input named in one sentence."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import sample, text_files
from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.sources import Range, find_sources, plan_shards


def texts(inputs, shard_megabytes=16.0, **options):
    shards = plan_shards(find_sources([str(each) for each in inputs]), shard_megabytes)
    return [document.text for shard in shards for part in shard for document in read_documents(part, **options)]


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


LINES = st.lists(st.sampled_from(["", " ", "\t", "a", "bb", "Ünïcode 文字", "a longer line"]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), shard_bytes=st.integers(1, 60), last=st.booleans())
def test_text_is_read_once_however_it_is_cut(tmp_path_factory, lines, end, shard_bytes, last):
    content = end.join(lines) + (end if last else "")
    path = written(tmp_path_factory.mktemp("text"), "a.txt", content)
    blocks = "\n".join("" if not line.strip() else line for line in lines).split("\n\n")
    expected = [block.strip("\n") for block in blocks if block.strip()]
    assert texts([path], shard_bytes / 1e6) == expected


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)), shard=st.integers(1, 80))
def test_json_lines_are_read_once_however_they_are_cut(tmp_path_factory, documents, shard):
    content = "".join(json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) + "\n" for text in documents)
    path = written(tmp_path_factory.mktemp("json"), "a.jsonl", content)
    expected = [text.replace("\r\n", "\n") for text in documents if text and not text.isspace()]
    assert texts([path], shard / 1e6) == expected


def test_gzip_reads_as_the_plain_file_does(tmp_path):
    content = "one\ntwo\n\nthree\n" * 50
    plain, packed = written(tmp_path, "a.txt", content), written(tmp_path, "b.txt.gz", gzip.compress(content.encode()))
    assert texts([packed]) == texts([plain])


@pytest.mark.parametrize("shard_megabytes", [16.0, 1e-6])
def test_a_byte_order_mark_is_no_text_and_costs_none(tmp_path, shard_megabytes):
    mark = b"\xef\xbb\xbf"
    assert texts([written(tmp_path, "a.txt", mark + b"Hello\n")], shard_megabytes) == ["Hello"]
    assert texts([written(tmp_path, "b.txt", mark + b"\none\n\ntwo\n")], shard_megabytes) == ["one", "two"]
    lines = mark + b'{"text": "one"}\n{"text": "two"}\n'
    assert texts([written(tmp_path, "c.jsonl", lines)], shard_megabytes) == ["one", "two"]


def test_folders_are_searched_and_hidden_and_empty_files_passed_over(tmp_path):
    written(tmp_path, "b/wiki_00", "in b")
    written(tmp_path, "a.txt", "in a")
    written(tmp_path, "c.jsonl", '{"text": "in c"}')
    written(tmp_path, "d.ndjson", '{"text": "in d"}')
    written(tmp_path, "e.ndjson.gz", gzip.compress(b'{"text": "in e"}'))
    written(tmp_path, ".hidden.txt", "no")
    written(tmp_path, "picture.png", "no")
    written(tmp_path, "empty.txt", "")
    assert sorted(texts([tmp_path])) == ["in a", "in b", "in c", "in d", "in e"]
    assert texts([tmp_path / "*.txt", tmp_path / "a.txt"]) == ["in a"]


def test_many_small_files_share_a_shard_and_a_large_one_feeds_several(tmp_path):
    for index in range(30):
        written(tmp_path, f"{index:02}.txt", "x" * 100)
    assert len(plan_shards(find_sources([str(tmp_path)]), 0.001)) == 3
    large = written(tmp_path, "large.txt", "line\n\n" * 1000)
    assert len(plan_shards(find_sources([str(large)]), 0.001)) == 6


def test_a_document_longer_than_the_limit_is_cut_at_a_line_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 10)
    path = written(tmp_path, "a.txt", "aaaa\nbbbb\ncccc\n")
    documents = list(read_documents(Range(find_sources([str(path)])[0], 0, 15, 15)))
    assert [document.text for document in documents] == ["aaaa\nbbbb", "cccc"]
    assert sum(document.cut for document in documents) == 1


def refuses(message, *arguments, **options):
    with pytest.raises(ValueError, match=message) as caught:
        texts(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_inputs_that_name_nothing_are_refused(tmp_path):
    refuses("no file matches", [tmp_path / "none*.txt"])
    refuses("no file matches", [tmp_path])
    refuses(r"\.pdf files are not read", [written(tmp_path, "a.pdf", "x")])


@pytest.mark.parametrize("shard_megabytes", [16.0, 1e-5])
def test_invalid_utf8_is_named_by_file_and_byte_or_replaced_and_counted(tmp_path, shard_megabytes):
    path = written(tmp_path, "a.txt", b"good\n\nbetter\n\nb\xffd\n")
    refuses(r"a\.txt is not UTF-8 at byte 15: found 0xff", [path], shard_megabytes)
    assert texts([path], shard_megabytes, encoding_errors="replace") == ["good", "better", "b\ufffdd"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_document_of_one_line_of_100_megabytes_is_refused_in_little_memory(tmp_path, name):
    content = b"\n\n" + b"x" * 100_000_000
    path = written(tmp_path, name, gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    try:
        refuses(r"line 3 is longer than 16777216 bytes: is it text\?", [path])
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shard_megabytes", [16.0, 1e-5])
@pytest.mark.parametrize(
    "line, message",
    [
        ('{"title": "x"}', "line 3: no field 'text'; found 'title'"),
        ("[1]", "line 3: expected a JSON object, found an array"),
        ('{"text": 7}', "line 3: field 'text' is a number, expected text"),
        ('{"text": null}', "line 3: field 'text' is null, expected text"),
        ('{"text": ', "line 3 is not JSON"),
        ('{"text": "\\ud800"}', "line 3 has half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named_by_file_and_line(tmp_path, shard_megabytes, line, message):
    content = f'{{"text": "one"}}\n\n{line}\n{{"text": "two"}}\n'
    refuses(message, [written(tmp_path, "a.jsonl", content)], shard_megabytes)


def test_surrogates_are_replaced_and_counted_on_request(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"text": "a\\ud800b"}\n')
    part = plan_shards(find_sources([str(path)]), 1.0)[0][0]
    (document,) = read_documents(part, encoding_errors="replace")
    assert (document.text, document.replaced) == ("a\ufffdb", 1)


def test_damaged_gzip_is_refused(tmp_path):
    packed = gzip.compress(b"some text\n" * 1000)
    refuses("is cut short", [written(tmp_path, "cut.txt.gz", packed[:-12])])
    refuses("is not gzip data, or damaged", [written(tmp_path, "plain.txt.gz", b"not gzip at all")])
    refuses("is not gzip data, or damaged", [written(tmp_path, "bad.txt.gz", packed[:-8] + bytes(8))])


def test_the_sample_reads_of_each_slice_no_more_than_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_SLICE_BYTES", 1_000)
    document = "x" * 98 + "\n\n"
    path = written(tmp_path, "a.txt", document * 10_000)
    read = []

    def noted(*arguments):
        for each in read_documents(*arguments):
            read.append(len(each.text))
            yield each

    monkeypatch.setattr(sample, "read_documents", noted)
    shards = plan_shards(find_sources([str(path)]), 0.3)
    taken = list(sample.sample_documents(shards, PrepareConfig(validation_fraction=0.0), 30_001))
    assert 25_000 < sum(map(len, taken)) <= 30_001
    assert sum(read) < 1.5 * 30_001
