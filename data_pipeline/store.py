"""The prepared corpus on disk: Parquet shards whose rows are documents, and dataset.json, written last."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.files import is_remote
from data_pipeline.whole_files import canonical_digest, file_digest, partial_name, write_json

FORMAT = "prepared-corpus"
FORMAT_VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation")
TOKENIZER_FOLDER = "tokenizer"

_COLUMN = "sentences"


class Documents(NamedTuple):
    """M documents of N sentences of T tokens, as flat arrays.

    Sentence n is tokens[sentence_offsets[n]:sentence_offsets[n + 1]]; document m is the sentences
    document_offsets[m] to document_offsets[m + 1]. Neither is ever empty.
    """

    tokens: np.ndarray  # [T] uint16 or uint32
    sentence_offsets: np.ndarray  # [N + 1] int64
    document_offsets: np.ndarray  # [M + 1] int64


def join(parts: list[Documents]) -> Documents:
    """One run of documents after another."""

    def offsets(name: str) -> np.ndarray:
        lengths = np.concatenate([np.diff(getattr(part, name)) for part in parts])
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    tokens = np.concatenate([part.tokens for part in parts])
    return Documents(tokens, offsets("sentence_offsets"), offsets("document_offsets"))


class Block(NamedTuple):
    """One row group of one shard: what is read at once."""

    shard: str
    row_group: int
    documents: int
    sentences: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A prepared corpus whose manifest has been read and whose shards have been found whole."""

    path: Path
    manifest: dict[str, Any]
    blocks: dict[str, tuple[Block, ...]]
    fingerprint: str
    """sha256 over what defines the content: tokenizer, shards and their row groups."""
    tokenizer_fingerprint: str
    vocab_size: int
    pad_id: int
    unknown_id: int
    cls_id: int
    sep_id: int
    mask_id: int


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest type that holds every id."""
    return np.uint16 if vocab_size <= 65_535 else np.uint32


def shard_name(split: str, index: int, count: int) -> str:
    """`train-00000-of-00016.parquet`."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


class ShardWriter:
    """Writes one shard under a temporary name; `close` makes it durable, renames it and returns its record."""

    def __init__(self, path: Path, dtype: type[np.unsignedinteger]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.row_groups = path, []  # type: tuple[Path, list[tuple[int, int, int]]]
        self._partial = partial_name(path)
        item = pa.field("item", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
        sentence = pa.field("item", pa.list_(item), nullable=False)
        self._schema = pa.schema([pa.field(_COLUMN, pa.list_(sentence), nullable=False)])
        # Token ids as 4-byte integers split into byte planes: the planes of zeros vanish, and zstd finds more in the
        # rest than it does in a dictionary's packed indices.
        self._writer = pq.ParquetWriter(
            self._partial.absolute(),  # a relative path with a colon would pass for a URI
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding={f"{_COLUMN}.list.element.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
            write_page_checksum=True,
        )

    def append(self, documents: Documents) -> None:
        """Writes the documents as one row group; without documents, nothing."""
        import pyarrow as pa

        if len(documents.document_offsets) < 2:
            return
        column = self._schema.field(_COLUMN).type
        sentences = pa.ListArray.from_arrays(
            pa.array(documents.sentence_offsets.astype(np.int32)), pa.array(documents.tokens), type=column.value_type
        )
        rows = pa.ListArray.from_arrays(pa.array(documents.document_offsets.astype(np.int32)), sentences, type=column)
        self._writer.write_table(pa.table([rows], schema=self._schema), row_group_size=len(rows))
        self.row_groups.append((len(rows), len(sentences), len(documents.tokens)))

    def close(self) -> dict[str, Any]:
        """Returns {name, rows, bytes, sha256, row_groups: [[documents, sentences, tokens], …]}."""
        self._writer.close()
        with open(self._partial, "rb") as file:
            os.fsync(file.fileno())
        record = {
            "name": self.path.name,
            "rows": sum(group[0] for group in self.row_groups),
            "bytes": self._partial.stat().st_size,
            "sha256": file_digest(self._partial),
            "row_groups": [list(group) for group in self.row_groups],
        }
        os.replace(self._partial, self.path)
        return record

    def abandon(self) -> None:
        """Closes and removes what was written, unless `close` came first."""
        with contextlib.suppress(OSError):  # a full disk, which is why the shard is abandoned
            self._writer.close()
        self._partial.unlink(missing_ok=True)


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Writes dataset.json: from here on the folder is a prepared corpus."""
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    write_json(path / MANIFEST, {**manifest, "checksum": canonical_digest(manifest)})


def open_corpus(path: str | os.PathLike[str], verify: Literal["size", "content"] = "size") -> Corpus:
    """Opens a prepared corpus after checking its manifest and shards.

    `verify="size"` compares the shards' sizes; `"content"` reads them and compares their sha256 too.
    Raises ValueError for a folder that is no prepared corpus, one of a newer version, or one that was altered.
    """
    if verify not in ("size", "content"):
        raise ValueError(f"verify {verify!r} is not one of 'size', 'content'")
    folder = Path(path)
    if is_remote(str(path)):
        raise ValueError(f"{path} is a URL: expected the local folder of a prepared corpus")
    manifest = _read_manifest(folder)
    for split in SPLITS:
        for shard in manifest["shards"][split]:
            _verify_shard(folder / shard["name"], shard, verify)
    tokenizer = manifest["tokenizer"]
    return Corpus(
        path=folder,
        manifest=manifest,
        blocks={split: tuple(_blocks(manifest["shards"][split])) for split in SPLITS},
        fingerprint=canonical_digest([FORMAT_VERSION, tokenizer["fingerprint"], manifest["shards"]]),
        tokenizer_fingerprint=tokenizer["fingerprint"],
        **{name: tokenizer[name] for name in ("vocab_size", "pad_id", "unknown_id", "cls_id", "sep_id", "mask_id")},
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        found = "it is a file" if folder.exists() else "no such folder"
        raise ValueError(f"{folder} is not a prepared corpus: {found}")
    if not path.is_file():
        raise ValueError(f"{folder} is not a prepared corpus: it has no {MANIFEST}; was prepare interrupted?")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f'{path} is not the manifest of a prepared corpus: expected "format": "{FORMAT}"')
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version}, this release reads {FORMAT_VERSION}: "
            "update the software or prepare the corpus again"
        )
    checksum = manifest.pop("checksum", None)
    if checksum != canonical_digest(manifest):
        raise ValueError(f"{path} is damaged or was edited: its checksum does not match its content")
    return manifest


def _verify_shard(path: Path, record: dict[str, Any], verify: str) -> None:
    if not path.is_file():
        raise ValueError(f"shard {path} is missing: the one whose sha256 is {record['sha256']}")
    size = path.stat().st_size
    if size != record["bytes"]:
        raise ValueError(
            f"shard {path} was truncated or altered: found {size} bytes, expected {record['bytes']}, "
            f"whose sha256 is {record['sha256']}"
        )
    if verify == "content" and file_digest(path) != record["sha256"]:
        raise ValueError(f"shard {path} was altered: its sha256 is not {record['sha256']}")


def _blocks(shards: list[dict[str, Any]]) -> list[Block]:
    return [Block(shard["name"], index, *group) for shard in shards for index, group in enumerate(shard["row_groups"])]


def read_block(corpus: Corpus, block: Block) -> Documents:
    """Reads one block, verifying its page checksums. The tokens [T] are Arrow's own memory: read-only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = corpus.path / block.shard
    try:
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
            column = file.read_row_group(block.row_group, use_threads=False).column(_COLUMN)
        rows = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        documents = _flat(rows)
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing") from None
    except (OSError, LookupError, AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        # The footer has no checksum: a flipped bit in it may rename the column or change its type.
        raise ValueError(f"shard {path} is damaged in row group {block.row_group}: {error}") from None
    found = (len(documents.document_offsets) - 1, len(documents.sentence_offsets) - 1, len(documents.tokens))
    if found != block[2:]:
        raise ValueError(f"shard {path} was altered: row group {block.row_group} holds {found}, expected {block[2:]}")
    return documents


def _flat(rows: Any) -> Documents:
    """list<list<id>> → arrays. Arrow's `offsets` honour a slice, its `values` do not: cut and rebase."""
    documents = rows.offsets.to_numpy(zero_copy_only=True)
    sentences = rows.values.slice(documents[0], documents[-1] - documents[0])
    offsets = sentences.offsets.to_numpy(zero_copy_only=True)
    tokens = sentences.values.to_numpy(zero_copy_only=True)[offsets[0]:offsets[-1]]
    return Documents(tokens, offsets.astype(np.int64) - offsets[0], documents.astype(np.int64) - documents[0])
