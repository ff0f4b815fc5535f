"""Readers: a range of a source, of whatever format → documents, one at a time, each of them read once."""

from typing import Iterator

from data_pipeline.documents import Document
from data_pipeline.parquet_files import parquet_documents
from data_pipeline.sources import Range
from data_pipeline.text_files import text_documents
from data_pipeline.tfds_examples import tfds_documents


def read_documents(part: Range, text_field: str = "text", encoding_errors: str = "strict") -> Iterator[Document]:
    """The documents that belong to a range. None is blank; lines end in "\\n".

    Raises ValueError naming file and line, byte or row, for what is not text: invalid UTF-8 (unless encoding_errors is
    "replace"), a line beyond LONGEST_LINE, a damaged or shortened archive, a record without the field.
    """
    if part.source.format == "parquet":
        return parquet_documents(part, text_field, encoding_errors)
    if part.source.format == "tfds":
        return tfds_documents(part, encoding_errors)
    return text_documents(part, text_field, encoding_errors)
