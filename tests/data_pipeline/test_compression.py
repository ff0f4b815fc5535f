"""Compressed files: read whole, member after member, or refused in one sentence, wherever they were cut."""

import bz2
import gzip
import io
import lzma
import random

import pyarrow as pa
import pytest

from data_pipeline import sample
from data_pipeline.compression import explained, unpacked
from data_pipeline.config import PrepareConfig
from data_pipeline.corpus import read_documents
from data_pipeline.sources import find_sources, plan_shards


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACK = {"gzip": gzip.compress, "zstd": zstd, "xz": lzma.compress, "bzip2": bz2.compress}
SUFFIX = {"gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2"}

every_kind = pytest.mark.parametrize("kind", PACK)


def unpack(packed, kind):
    with explained("a.txt", kind):
        return unpacked(io.BufferedReader(io.BytesIO(packed)), kind).read()


def noise(count):
    return random.Random(count).randbytes(count)


@every_kind
def test_concatenated_members_are_read_whole(kind):
    parts = [b"first\n", noise(300_000), b"", b"last\n" * 100_000, noise(70_000)]
    assert unpack(b"".join(map(PACK[kind], parts)), kind) == b"".join(parts)


@every_kind
def test_a_file_cut_anywhere_is_refused(kind):
    """At the border of two members alone nothing is missing that could be known of."""
    first, second = PACK[kind](b"some text\n" * 20), PACK[kind](noise(200))
    whole = first + second
    for end in range(1, len(whole)):
        if end == len(first):
            assert unpack(whole[:end], kind) == b"some text\n" * 20
            continue
        with pytest.raises(ValueError, match="a.txt is (cut short|not .* data, or damaged)") as caught:
            unpack(whole[:end], kind)
        assert "\n" not in str(caught.value)


@every_kind
def test_damage_is_refused_in_the_first_member_and_in_later_ones(kind):
    member = PACK[kind](noise(2_000))
    for start in (0, len(member)):
        damaged = bytearray(member * 2)
        damaged[start] ^= 0xFF
        with pytest.raises(ValueError, match=f"a.txt is not {kind} data, or damaged"):
            unpack(bytes(damaged), kind)
    with pytest.raises(ValueError, match=f"a.txt is not {kind} data, or damaged"):
        unpack(b"no compressed data at all, by its first bytes", kind)


@pytest.mark.parametrize("bits", [27, 28, 31])
def test_a_zstd_window_beyond_the_library_s_is_told_of_as_one(bits):
    """RFC 8878, section 3.1.1: magic, descriptor, window; a last raw block of four bytes."""
    frame = bytes.fromhex("28b52ffd00") + bytes([(bits - 10) << 3]) + bytes([4 << 3 | 1, 0, 0]) + b"text"
    if bits <= 27:
        assert unpack(frame, "zstd") == b"text"
        return
    with pytest.raises(ValueError, match="^a.txt has a window of more than 128 MiB: compress it again without --long"):
        unpack(frame, "zstd")


def test_zeros_after_an_xz_member_are_padding_and_before_the_first_are_not():
    member = lzma.compress(b"text")
    assert unpack(member + bytes(8) + member + bytes(100_000), "xz") == b"texttext"
    with pytest.raises(ValueError, match="is not xz data"):
        unpack(bytes(100_000), "xz")


@every_kind
def test_every_kind_reads_as_the_plain_file_does(tmp_path, kind):
    content = "one\ntwo\n\nthree\n" * 50
    (tmp_path / "plain.txt").write_text(content)
    packed = tmp_path / f"packed.txt{SUFFIX[kind]}"
    packed.write_bytes(PACK[kind](content.encode()))
    assert texts(packed) == texts(tmp_path / "plain.txt") and len(texts(packed)) == 51
    assert texts(tmp_path / f"*{SUFFIX[kind]}") == texts(packed)


@every_kind
def test_json_lines_are_known_behind_any_compression(tmp_path, kind):
    packed = tmp_path / f"packed.jsonl{SUFFIX[kind]}"
    packed.write_bytes(PACK[kind](b'{"text": "one"}\n{"text": "two"}\n'))
    assert texts(tmp_path) == ["one", "two"]


@every_kind
def test_a_file_cut_short_is_named(tmp_path, kind):
    packed = tmp_path / f"cut.txt{SUFFIX[kind]}"
    packed.write_bytes(PACK[kind](noise(500).hex().encode())[:-12])
    with pytest.raises(ValueError, match="cut.txt.* is cut short"):
        texts(packed)
    packed.write_bytes(b"")
    with pytest.raises(ValueError, match="cut.txt.* is cut short"):
        texts(packed)


@every_kind
def test_progress_counts_the_bytes_as_stored(tmp_path, kind):
    packed = tmp_path / f"a.txt{SUFFIX[kind]}"
    packed.write_bytes(PACK[kind](noise(100_000).hex().encode().replace(b"7", b"\n\n")))
    ((part,),) = plan_shards(find_sources([str(packed)]), 16.0)
    positions = [document.position for document in read_documents(part)]
    assert positions == sorted(positions) and positions[-1] == part.size == packed.stat().st_size


def test_the_sample_of_many_files_takes_their_heads_and_reads_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_SLICE_BYTES", 1_000)
    for index in range(20):
        lines = b"".join(b"%03d: %s\n\n" % (index, noise(number).hex().encode()) for number in range(30, 230))
        (tmp_path / f"{index:03}.txt.gz").write_bytes(gzip.compress(lines + b"\xff"))
    shards = plan_shards(find_sources([str(tmp_path)]), 16.0)
    found = list(sample.sample_documents(shards, PrepareConfig(validation_fraction=0.0), 20_000))
    assert 15_000 < sum(map(len, found)) <= 20_000
    assert {text[:3] for text in found} == {f"{index:03}" for index in range(20)}


def texts(path):
    shards = plan_shards(find_sources([str(path)]), 16.0)
    return [document.text for shard in shards for part in shard for document in read_documents(part)]
