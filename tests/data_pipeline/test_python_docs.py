"""python-docs: prose and nothing else, the same every time."""

import pytest

from data_pipeline import python_docs

DOCSTRING = """Return the :func:`sorted` copy of ``values``, see [1]_ and `the guide <x.html>`_ for more.

Parameters
----------
values : array_like
    The values to be sorted, which may be of any type that has an order.
axis : int, optional
    Axis along which to sort the values, the last one by default.

Args:
  key: A function of one argument that is used to extract a key from each value.

>>> sorted_copy([3, 1])
[1, 3]

Use it like this::

    x = sorted_copy(y)

.. note:: This is **never** in place, and the order of equal values is kept.

The result is **never** the same object as the argument, even if it is sorted already.
"""


def test_prose_is_kept_without_its_markup_and_the_rest_left_out():
    assert list(python_docs.paragraphs(DOCSTRING)) == [
        "Return the sorted copy of values, see and the guide for more.",
        "The values to be sorted, which may be of any type that has an order.",
        "Axis along which to sort the values, the last one by default.",
        "A function of one argument that is used to extract a key from each value.",
        "The result is never the same object as the argument, even if it is sorted already.",
    ]


@pytest.fixture
def small_machine(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    function = "It is a function that does nothing at all. " * 9
    (package / "a.py").write_text(f'"""{DOCSTRING}"""\ndef f():\n    """{function}"""\n')
    (package / "b.py").write_text(f'"""{DOCSTRING}"""\n')
    (package / "broken.py").write_text('"""No Python."""\ndef (:\n')
    (package / "test_c.py").write_text(f'"""{"This is a test and it is not to be read. " * 20}"""\n')
    monkeypatch.setattr(python_docs, "_folders", lambda: [package])
    return tmp_path


def test_a_paragraph_is_kept_once_and_the_text_is_the_same_every_time(small_machine):
    first, second = small_machine / "1.txt", small_machine / "2.txt"
    python_docs.write(first)
    python_docs.write(second)
    assert first.read_bytes() == second.read_bytes()
    lines = [line for line in first.read_text(encoding="utf-8").split("\n") if line]
    assert len(lines) == len({line.lower() for line in lines})
    assert any("does nothing at all" in line for line in lines)
    assert not any("not to be read" in line for line in lines)


def test_the_topics_of_python_itself_are_read(small_machine):
    documents = list(python_docs.documents())
    assert len(documents) > 40
    assert all(len(document) > 1 for document in documents)
    words = " ".join(line for document in documents for line in document).split()
    assert words.count("the") > 0.03 * len(words)
    assert not any(mark in word for word in words for mark in ("``", ":func:", ">>>", "::"))


def test_versions_name_python_and_the_packages_read():
    versions = python_docs.versions()
    assert versions[0].startswith("python 3.") and any(version.startswith("numpy ") for version in versions)
