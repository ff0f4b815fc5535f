"""The store: what is written is what is read, and damage is named before it does harm."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_pipeline
from data_pipeline.store import Documents, ShardWriter, read_block, token_dtype, write_manifest
from data_pipeline.whole_files import canonical_digest

SENTENCES = st.lists(st.integers(0, 65_000), min_size=1, max_size=9)
DOCUMENTS = st.lists(st.lists(SENTENCES, min_size=1, max_size=4), min_size=1)


def flat(documents, dtype=np.uint16):
    sentences = [sentence for document in documents for sentence in document]
    return Documents(
        np.array([token for sentence in sentences for token in sentence], dtype),
        np.cumsum([0, *map(len, sentences)]),
        np.cumsum([0, *map(len, documents)]),
    )


def nested(documents):
    sentences = [part.tolist() for part in np.split(documents.tokens, documents.sentence_offsets[1:-1])]
    offsets = documents.document_offsets
    return [sentences[start:end] for start, end in zip(offsets[:-1], offsets[1:])]


def written(folder, groups, vocab_size=65_000):
    folder.mkdir(exist_ok=True)
    shards = {}
    for split, content in (("train", groups), ("validation", [])):
        writer = ShardWriter(folder / f"{split}-00000-of-00001.parquet", token_dtype(vocab_size))
        for group in content:
            writer.append(flat(group, token_dtype(vocab_size)))
        shards[split] = [writer.close()]
    tokenizer = dict(fingerprint="f", vocab_size=vocab_size, pad_id=0, unknown_id=1, cls_id=2, sep_id=3, mask_id=4)
    write_manifest(folder, {"tokenizer": tokenizer, "shards": shards})
    return folder


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(DOCUMENTS, max_size=3))
def test_what_is_read_is_what_was_written(tmp_path_factory, groups):
    corpus = data_pipeline.open_corpus(written(tmp_path_factory.mktemp("corpus"), groups), verify="content")
    assert [nested(read_block(corpus, block)) for block in corpus.blocks["train"]] == groups
    assert [block.tokens for block in corpus.blocks["train"]] == [len(flat(group).tokens) for group in groups]
    assert corpus.blocks["validation"] == ()


def test_large_vocabularies_get_wide_tokens(tmp_path):
    corpus = data_pipeline.open_corpus(written(tmp_path / "c", [[[[100_000]]]], vocab_size=120_000))
    documents = read_block(corpus, corpus.blocks["train"][0])
    assert documents.tokens.dtype == np.uint32 and documents.tokens.tolist() == [100_000]


def test_any_parquet_reader_can_inspect_a_shard(tmp_path):
    folder = written(tmp_path / "c", [[[[5, 6], [7]], [[8]]]])
    assert pq.read_table(folder / "train-00000-of-00001.parquet")["sentences"].to_pylist() == [[[5, 6], [7]], [[8]]]


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "corpus", [[[list(range(5, 4000))]] * 30])


def refuses(folder, message, verify="size"):
    with pytest.raises(ValueError, match=message) as caught:
        data_pipeline.open_corpus(folder, verify)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_shards_are_named(folder):
    shard = folder / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    refuses(folder, "train-00000-of-00001.parquet was truncated or altered")
    shard.unlink()
    refuses(folder, "train-00000-of-00001.parquet is missing")


def test_one_flipped_bit_in_a_shard_is_found_by_its_checksum_and_when_read(folder):
    shard = folder / "train-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    refuses(folder, "was altered: its sha256", verify="content")
    corpus = data_pipeline.open_corpus(folder)
    with pytest.raises(ValueError, match="train-00000-of-00001.parquet is damaged"):
        read_block(corpus, corpus.blocks["train"][0])


def test_an_abandoned_shard_leaves_nothing_on_a_full_disk_either(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writer = ShardWriter(tmp_path / "train-00000-of-00001.parquet", np.uint16)
    writer.append(flat([[[1, 2]]]))
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "close", full)
        writer.abandon()
    assert not list(tmp_path.iterdir())


def test_what_is_no_corpus_is_refused(folder, tmp_path):
    refuses(tmp_path / "nowhere", "no such folder")
    refuses(folder / "dataset.json", "dataset.json is not a prepared corpus: it is a file")
    refuses("gs://bucket/corpus", "^gs://bucket/corpus is a URL: expected the local folder of a prepared corpus")
    refuses(tmp_path, "has no dataset.json")
    manifest = folder / "dataset.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format_version": 99}))
    refuses(folder, "has format_version 99, this release reads 1")
    manifest.write_text(json.dumps(content | {"added": 1}))
    refuses(folder, "damaged or was edited")
    manifest.write_text("{")
    refuses(folder, "is damaged: it is not JSON")
    manifest.write_text("[]")
    refuses(folder, "is not the manifest of a prepared corpus")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    first, same = (written(tmp_path / name, [[[[1, 2]]]]) for name in ("a", "b"))
    other = written(tmp_path / "c", [[[[1, 3]]]])
    prints = [data_pipeline.open_corpus(each).fingerprint for each in (first, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert canonical_digest({"a": 1, "b": 2}) == canonical_digest({"b": 2, "a": 1})


def test_importing_the_front_half_loads_no_heavy_library():
    heavy = "{'jax', 'flax', 'flaxbert', 'tensorflow', 'pyarrow', 'sentencepiece', 'sentencex', 'tokenizers', 'rich'}"
    code = f"import data_pipeline.prepare, sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)
