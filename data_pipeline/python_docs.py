"""The corpus that is on the machine already: English prose of Python's documentation topics and of docstrings.

Sources are parsed, never imported. A document is one topic or one module; a line is one paragraph.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Iterable, Iterator

NAME = "python-docs"
FILE = "python-docs.txt"

# Packages whose docstrings are written with care; those of them that are installed are read.
_PACKAGES = (
    "numpy", "scipy", "jax", "flax", "optax", "orbax", "pyarrow", "tensorflow", "keras", "tensorflow_datasets", "h5py",
    "huggingface_hub", "fsspec", "rich", "requests", "absl", "etils", "tensorstore", "pandas", "sklearn", "matplotlib",
    "networkx", "skimage", "statsmodels", "sympy", "torch", "transformers",
)
_SKIPPED_FOLDERS = frozenset(
    "test tests testing _testing test_data __pycache__ site-packages _vendor vendor lib2to3 idlelib turtledemo "
    "ensurepip pydoc_data encodings examples benchmarks".split()
)
_FUNCTION_WORDS = frozenset(
    "a an the is are be of to in and or for with this that it by as on if when not from".split()
)
_LEAST_CHARACTERS = 300
_LONGEST_SOURCE = 1_000_000

_MARKUP = (
    (re.compile(r"\[[\w#*]+\]_"), ""),
    (re.compile(r":[\w:+-]+:`[~!.]?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"\1"),
    (re.compile(r"``([^`]*)``"), r"\1"),
    (re.compile(r"`([^`<]*?)\s*(?:<[^`>]*>)?`_{0,2}"), r"\1"),
    (re.compile(r"!?\[([^\]]+)\]\([^)\s]+\)"), r"\1"),
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\\([*_`|\\])"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r" +([,.;:!?])(?= |$)"), r"\1"),
)
# `name : type` alone on its line, `name: text` of an Args section, and the marks of lists.
_FIELD = re.compile(r"^\*{0,2}[\w.*, ]{1,40} ?: ?\S.{0,70}$|^[*\w]+$")
_ARGUMENT = re.compile(r"^\*{0,2}\w+(?: \([^)]*\))?: +(?=[A-Z`\"])")
_UNDERLINE = re.compile(r"^([-=~^])\1{2,}$")
_LIST_MARK = re.compile(r"^(?:[-*+•]|\(?\d{1,2}[.)]|:\w[\w ]*:) +")
_NOT_PROSE = re.compile(
    r"https?:|www\.|>>>|\.\. |::$|[{}|\\$^~#]|==|->|=>|\+\+|--|\w=\S| = |\.{4}|__\w+__\(|@\w|[Cc]opyright|License"
    r"|%[sdr(]"
)
_SENTENCE = re.compile(r"^[\"'(]?[A-Z][\w'\"`,()-]* .*[.!?:][\"')]?$", re.DOTALL)


def versions() -> list[str]:
    """What the text depends on: Python and the packages that are read, with their versions."""
    found = [f"python {sys.version.split()[0]}"]
    for package in _installed():
        try:
            found.append(f"{package} {importlib.metadata.version(_distribution(package))}")
        except importlib.metadata.PackageNotFoundError:
            found.append(package)
    return found


def _installed() -> list[str]:
    return [package for package in _PACKAGES if importlib.util.find_spec(package) is not None]


def _distribution(package: str) -> str:
    renamed = {"sklearn": "scikit-learn", "skimage": "scikit-image", "absl": "absl-py", "orbax": "orbax-checkpoint"}
    if package == "tensorflow":
        names = importlib.metadata.packages_distributions().get(package, [package])
        return sorted(names)[0]
    return renamed.get(package, package)


def write(path: Path) -> None:
    """Writes the documents as plain text, a blank line between them. Raises ValueError if there is none."""
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for document in documents():
            file.write("\n".join(document) + "\n\n")
            count += 1
    if count == 0:
        partial.unlink()
        raise ValueError(f"{NAME}: no documentation was found on this machine")
    os.replace(partial, path)


def documents() -> Iterator[list[str]]:
    """Documents as lists of paragraphs, the same and in the same order for the same environment."""
    seen: set[bytes] = set()
    for text in _texts():
        kept = []
        for paragraph in paragraphs(text):
            key = hashlib.blake2b(paragraph.lower().encode("utf-8", "replace"), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if len(kept) > 1 and sum(map(len, kept)) >= _LEAST_CHARACTERS:
            yield kept


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    for folder in _folders():
        for path in _python_files(folder):
            yield "\n\n".join(_docstrings(path))


def _folders() -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for package in _installed():
        spec = importlib.util.find_spec(package)
        if spec is not None:
            yield from (Path(place) for place in spec.submodule_search_locations or ())


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if each not in _SKIPPED_FOLDERS)
        yield from (Path(parent, name) for name in sorted(names) if _is_written_by_hand(name))


def _is_written_by_hand(name: str) -> bool:
    """Tests say little in prose; TensorFlow's generated operations repeat what their wrappers say."""
    return name.endswith(".py") and "test" not in name and not name.startswith("gen_")


def _docstrings(path: Path) -> Iterable[str]:
    """The docstrings of a module, its classes and functions, in the order of the file."""
    try:
        source = path.read_text(encoding="utf-8")
        if len(source) > _LONGEST_SOURCE or '"""' not in source:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    found: list[str] = []
    _visit(tree, found)
    return found


def _visit(node: ast.AST, found: list[str]) -> None:
    text = ast.get_docstring(node)  # type: ignore[arg-type]
    if text:
        found.append(text)
    for child in getattr(node, "body", []):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _visit(child, found)


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a docstring or topic, a paragraph a string; code, tables, directives and headings are left out."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        for lines in _items(block):
            paragraph = _without_markup(" ".join(lines))
            if _is_prose(paragraph):
                yield paragraph


def _items(block: str) -> Iterator[list[str]]:
    """The items of a block without blank lines: list entries and descriptions of parameters stand by themselves."""
    lines = block.strip("\n").split("\n")
    if len(lines) > 1 and _UNDERLINE.match(lines[1].strip()):
        lines = lines[2:]
    if any(line.lstrip().startswith((">>>", "..", "$ ", "+-", "==", "--")) for line in lines):
        return
    item: list[str] = []
    for index, line in enumerate(lines):
        stripped = line.strip()
        deeper = index + 1 < len(lines) and _indent(lines[index + 1]) > _indent(line)
        if deeper and _FIELD.match(stripped) and not _ARGUMENT.match(stripped):
            yield item
            item = []
        elif _LIST_MARK.match(stripped) or _ARGUMENT.match(stripped):
            yield item
            item = [_ARGUMENT.sub("", _LIST_MARK.sub("", stripped))]
        else:
            item.append(stripped)
    yield item


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _is_prose(text: str) -> bool:
    if not _SENTENCE.match(text) or _NOT_PROSE.search(text):
        return False
    words = text.split()
    letters = sum(character.isalpha() or character == " " for character in text)
    plain = sum(word.strip(".,;:!?\"'()").isalpha() for word in words)
    return (
        7 <= len(words) <= 400
        and letters >= 0.9 * len(text)
        and plain >= 0.75 * len(words)
        and not _FUNCTION_WORDS.isdisjoint(word.lower() for word in words)
    )
