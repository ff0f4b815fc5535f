"""Parquet: every row once however row groups are shared out; a column that is no text named in one sentence."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import sample
from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.documents import LONGEST_LINE
from data_pipeline.sources import find_sources, plan_shards

TEXTS = [f"document {index}\r\nin two lines" for index in range(500)]
EXPECTED = [text.replace("\r\n", "\n") for text in TEXTS]


def written(path, column, rows_in_group=50, name="text", **options):
    table = pa.table({"id": pa.array(range(len(column))), name: column})
    pq.write_table(table, path, row_group_size=rows_in_group, **options)
    return str(path)


def texts(path, shard_megabytes=16.0, field="text", errors="strict"):
    shards = plan_shards(find_sources([str(path)], field), shard_megabytes)
    return [document.text for shard in shards for part in shard for document in read_documents(part, field, errors)]


def refuses(message, *arguments, **options):
    with pytest.raises(ValueError, match=message) as caught:
        texts(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shard_megabytes", [16.0, 0.003, 1e-6])
def test_every_row_is_read_once_however_row_groups_are_shared_out(tmp_path, shard_megabytes):
    assert texts(written(tmp_path / "a.parquet", TEXTS), shard_megabytes) == EXPECTED


def test_a_file_feeds_as_many_shards_as_its_text_fills(tmp_path):
    source = written(tmp_path / "a.parquet", TEXTS, name="t", compression="zstd")
    shards = plan_shards(find_sources([source], "t"), 0.004)
    assert len(shards) == 5
    (source,) = find_sources([source], "t")
    assert sum(part.size for shard in shards for part in shard) == sum(source.groups) > 10_000


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string()),
    pa.string_view(),
])  # fmt: skip
def test_every_type_of_text_is_read(tmp_path, kind):
    column = pa.array(TEXTS, pa.string()).cast(kind)
    assert texts(written(tmp_path / "a.parquet", column)) == EXPECTED


def test_a_nested_column_is_named_with_dots(tmp_path):
    column = pa.array([{"title": "no", "body": {"text": text}} for text in TEXTS])
    path = written(tmp_path / "a.parquet", column, name="page")
    assert texts(path, field="page.body.text", shard_megabytes=0.003) == EXPECTED
    refuses("no column 'page.text'; found 'id', 'page'", path, field="page.text")
    refuses("column 'page.body' is struct<text: string>, expected text", path, field="page.body")
    assert texts(written(tmp_path / "b.parquet", TEXTS, name="a.b"), field="a.b") == EXPECTED


def test_blank_rows_are_no_documents(tmp_path):
    assert texts(written(tmp_path / "a.parquet", ["one", "", " \n", "two"])) == ["one", "two"]


def test_folders_and_urls_of_parquet_are_searched(tmp_path):
    written(tmp_path / "b.parquet", ["in b"])
    written(tmp_path / "a.parquet", ["in a"])
    assert texts(tmp_path) == texts(f"file://{tmp_path}") == ["in a", "in b"]


@pytest.mark.parametrize("column, message", [
    ([1, 2], "a.parquet: column 'text' is int64, expected text"),
    ([["one"], ["two"]], r"a.parquet: column 'text' is list<.*string>, expected text"),
    (["one", "two", None], "a.parquet, row 3: column 'text' is null, expected text"),
    ([b"one", b"two", b"t\xffo"], "a.parquet, row 3 is not UTF-8 at byte 1: found 0xff"),
    (["one", "x" * (LONGEST_LINE + 1)], "a.parquet, row 2 is longer than 16777216 bytes: is it text"),
])  # fmt: skip
def test_what_is_no_text_is_named(tmp_path, column, message):
    path = written(tmp_path / "a.parquet", column, rows_in_group=1)
    refuses(message, path)
    refuses(message, path, shard_megabytes=1e-6)


def test_a_missing_column_is_found_before_anything_is_read(tmp_path):
    path = written(tmp_path / "a.parquet", TEXTS, name="body")
    with pytest.raises(ValueError, match="a.parquet: no column 'text'; found 'id', 'body'"):
        find_sources([path])


def test_invalid_text_is_replaced_and_counted_on_request(tmp_path):
    path = written(tmp_path / "a.parquet", [b"one", b"t\xffo"])
    assert texts(path, errors="replace") == ["one", "t\ufffdo"]
    ((part,),) = plan_shards(find_sources([path]), 1.0)
    assert [document.replaced for document in read_documents(part, encoding_errors="replace")] == [0, 1]


def test_what_is_no_parquet_or_damaged_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"")
    refuses("a.parquet is not Parquet, or damaged", path)
    written(path, TEXTS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refuses("a.parquet is not Parquet, or damaged", path)
    written(path, TEXTS, write_page_checksum=True, use_dictionary=False)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    refuses("a.parquet is not Parquet, or damaged", path)
    (tmp_path / "b.parquet.gz").write_bytes(bytes(whole))
    refuses(".parquet files inside gzip files are not read", tmp_path / "b.parquet.gz")


@pytest.mark.parametrize("shard_megabytes", [0.5, 16.0])
def test_the_sample_is_bounded_spread_and_always_the_same(tmp_path, monkeypatch, shard_megabytes):
    monkeypatch.setattr(sample, "_SLICE_BYTES", 10_000)
    path = written(tmp_path / "a.parquet", [f"{index:05} " + "x" * 94 for index in range(20_000)], rows_in_group=1000)
    config = PrepareConfig(validation_fraction=0.0)
    shards = plan_shards(find_sources([path]), shard_megabytes)
    found = list(sample.sample_documents(shards, config, 100_000))
    assert found == list(sample.sample_documents(shards, config, 100_000))
    assert 80_000 <= sum(map(len, found)) <= 100_000
    thousands = {text[:2] for text in found}
    assert len(thousands) >= 8 and max(thousands) >= "15"
