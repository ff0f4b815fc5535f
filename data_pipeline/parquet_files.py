"""Parquet: a range of a file's row groups → the documents of one column, a row each."""

import contextlib
from typing import Any, Iterator

from data_pipeline.documents import Document, row_document
from data_pipeline.files import reading
from data_pipeline.sources import Range

_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 1 << 20


def text_sizes(path: str, field: str) -> tuple[int, ...]:
    """Bytes of the column's text, unpacked but encoded, in each row group.

    Raises ValueError for a file that is no Parquet, and for a column that is missing or not text.
    """
    with _opened(path) as file:
        name = ".".join(_column(file.schema_arrow, field, path))
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        columns = [[group.column(index) for index in range(group.num_columns)] for group in groups]
    return tuple(
        next(column.total_uncompressed_size for column in group if column.path_in_schema == name) for group in columns
    )


def parquet_documents(part: Range, field: str, errors: str) -> Iterator[Document]:
    """Raises ValueError naming the file and the row, from 1, of what is not text."""
    path, groups = part.source.path, range(part.start, part.end)
    with _opened(path) as file:
        names = _column(file.schema_arrow, field, path)
        rows = [file.metadata.row_group(index).num_rows for index in range(part.end)]
        count, before = sum(rows[part.start:]), sum(rows[:part.start])
        for index, raw in enumerate(_values(file, groups, names)):
            where = f"{path}, row {before + index + 1}"
            if raw is None:
                raise ValueError(f"{where}: column {field!r} is null, expected text")
            document = row_document(raw, errors, where, part.size * (index + 1) // count)
            if document is not None:
                yield document


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path) as stored:
        try:
            # Page by page: else a row group's whole column is held, which may be as large as the file.
            streamed = {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
            with pq.ParquetFile(stored, page_checksum_verification=True, **streamed) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not Parquet, or damaged: {reason}") from None


def _column(schema: Any, field: str, path: str) -> list[str]:
    """The names on the way to a column of text: one, or those between the dots of a nested column's path."""
    import pyarrow as pa

    names = [field] if field in schema.names else field.split(".")
    kind = pa.struct(schema)
    for name in names:
        index = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
        if index < 0:
            raise ValueError(f"{path}: no column {field!r}; found {', '.join(map(repr, schema.names[:8])) or 'none'}")
        kind = kind.field(index).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary")
    if not any(getattr(pa.types, test)(value) for test in tests):
        raise ValueError(f"{path}: column {field!r} is {kind}, expected text")
    return names


def _values(file: Any, groups: range, names: list[str]) -> Iterator[bytes | None]:
    """As bytes: Arrow takes a column's word for it that it is UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = {"row_groups": list(groups), "columns": [".".join(names)]}
    for batch in file.iter_batches(_ROWS_AT_ONCE, **chosen, use_threads=False):
        array = batch.column(0)
        for name in names[1:]:
            array = pc.struct_field(array, name)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        yield from array.cast(pa.large_binary()).to_pylist()
