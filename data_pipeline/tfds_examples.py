"""TensorFlow Datasets that are prepared on disk: a range of a split's examples → the documents of one text feature."""

import contextlib
import logging
import re
from typing import Any, Iterator, NamedTuple

from data_pipeline.documents import Document, row_document
from data_pipeline.sources import Range
from data_pipeline.tensorflow_import import import_tensorflow

_FORM = re.compile(r"tfds:(?P<name>[^@#]+)@(?P<split>[^@#]+)(#(?P<field>[^@#]+))?")


class Split(NamedTuple):
    """One split of one version of a data set. `name` holds all that `tfds:` takes; `folder` is where its files lie;
    `size` in bytes as stored; `modified` in seconds."""

    name: str
    folder: str
    examples: int
    size: int
    modified: str


def find_split(name: str, text_field: str) -> Split:
    """What `tfds:NAME[/CONFIG][:VERSION]@SPLIT[#FIELD]` stands for. Nothing is downloaded.

    Raises ValueError for a data set that is not prepared, and for a split or feature that is missing or not text.
    """
    form = _FORM.fullmatch(name)
    if form is None:
        raise ValueError(f"{name} is no TFDS split: expected tfds:NAME[/CONFIG][:VERSION]@SPLIT[#FIELD]")
    split, field = form["split"], form["field"] or text_field
    builder = _found(name, form["name"])
    splits = builder.info.splits
    if split not in splits.keys():
        raise ValueError(f"{name}: no split {split!r}; found {', '.join(splits) or 'none'}")
    _check_text(builder.info.features, field, name)
    full_name = f"tfds:{builder.info.full_name.replace('/' + str(builder.version), f':{builder.version}')}"
    info = builder.data_path / "dataset_info.json"
    return Split(
        f"{full_name}@{split}#{field}", str(builder.data_path), splits[split].num_examples,
        splits[split].num_bytes or _stored_bytes(splits[split], name), str(info.stat().mtime),
    )


def _stored_bytes(split: Any, name: str) -> int:
    """Of the files themselves: data sets of older releases do not record it."""
    try:
        return sum(path.stat().length for path in split.filepaths)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}: {error.filename}") from None


def tfds_documents(part: Range, errors: str) -> Iterator[Document]:
    """Raises ValueError naming the split and the example, from 1, of what is not text."""
    name, count = part.source.path, part.end - part.start
    for read, raw in enumerate(_values(part), 1):
        where = f"{name}, example {part.start + read}"
        document = row_document(raw, errors, where, part.size * read // count)
        if document is not None:
            yield document


def _values(part: Range) -> Iterator[bytes]:
    import tensorflow_datasets as tfds

    tf, source = import_tensorflow(), part.source
    form = _FORM.fullmatch(source.path)
    assert form is not None
    names = form["field"].split(".")
    wanted: Any = True
    for name in reversed(names):
        wanted = {name: wanted}
    with _explained(source.path, tf.errors.OpError):
        with _without_its_own_warning():
            examples = tfds.builder_from_directory(source.folder).as_dataset(
                split=tfds.core.ReadInstruction(form["split"], from_=part.start, to=part.end, unit="abs"),
                decoders=tfds.decode.PartialDecoding(wanted),
                read_config=_in_order(tfds, tf),
                shuffle_files=False,
            )
        for example in examples.as_numpy_iterator():
            for name in names:
                example = example[name]
            yield example


@contextlib.contextmanager
def _without_its_own_warning() -> Iterator[None]:
    """TFDS reads a field that it calls deprecated, and says so ten times a process."""

    def is_of_use(record: logging.LogRecord) -> bool:
        return "`FeatureConnector.dtype` is deprecated" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(is_of_use)
    try:
        yield
    finally:
        logger.removeFilter(is_of_use)


def _in_order(tfds: Any, tf: Any) -> Any:
    """One file after another, one thread: examples come as they are stored, and workers keep to their core."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.deterministic = True
    return tfds.ReadConfig(
        options=options, interleave_cycle_length=1, num_parallel_calls_for_interleave_files=1, try_autocache=False,
        num_parallel_calls_for_decode=1,
    )


def _found(name: str, dataset: str) -> Any:
    """The data set's builder, from its files alone: TFDS's own look-up may ask the network."""
    import_tensorflow()
    from tensorflow_datasets.core import read_only_builder, registered
    from tensorflow_datasets.core.utils import file_utils

    try:
        return read_only_builder.builder_from_files(dataset)
    except registered.DatasetNotFoundError:
        folders = ", ".join(sorted(map(str, file_utils.list_data_dirs())))
        raise ValueError(
            f"{name}: no data set {dataset!r} is prepared in {folders}: prepare it with `tfds build {dataset}` or "
            f"tensorflow_datasets.load({dataset!r}), or set TFDS_DATA_DIR to the folder that holds it"
        ) from None
    except Exception as error:  # names that do not parse, folders of other versions of TFDS
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error


def _check_text(features: Any, field: str, name: str) -> None:
    tf = import_tensorflow()
    found = features
    for part in field.split("."):
        if not hasattr(found, "keys") or part not in found.keys():
            raise ValueError(f"{name}: no feature {field!r}; found {', '.join(map(repr, sorted(features.keys())))}")
        found = found[part]
    kind = found.get_tensor_spec()
    if not isinstance(kind, tf.TensorSpec) or kind.dtype != tf.string or kind.shape.rank != 0:
        raise ValueError(f"{name}: feature {field!r} is {type(found).__name__}, expected text")


@contextlib.contextmanager
def _explained(name: str, tensorflow_errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except tensorflow_errors as error:
        reason = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error), flags=re.DOTALL).split())
        raise ValueError(f"{name} cannot be read, or is damaged: {reason}") from None
