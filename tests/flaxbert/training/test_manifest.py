"""A folder is proven by its manifest, or the file that is not what was written is named."""

import random

import pytest

from flaxbert.training.manifest import MANIFEST, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A few files, one of them empty, one in a folder of a folder."""
    written = tmp_path / "120"
    for name, content in {"a": b"first", "state/d/b": bytes(range(256)) * 40, "state/empty": b""}.items():
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        (written / name).write_bytes(content)
    write_manifest(written)
    return written


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_what_was_written_is_proven(folder):
    assert find_damage(folder) is None


def test_every_bit_of_a_file_counts(folder):
    path, generator = folder / "state" / "d" / "b", random.Random(0)
    for bit in [0, 8 * path.stat().st_size - 1, *generator.sample(range(8 * path.stat().st_size), 50)]:
        flip(path, bit)
        assert find_damage(folder) == "state/d/b is altered: its checksum differs"
        assert find_damage(folder, names=["a"]) is None
        flip(path, bit)
    assert find_damage(folder) is None


def test_every_bit_of_the_manifest_counts(folder):
    for bit in random.Random(0).sample(range(8 * (folder / MANIFEST).stat().st_size), 300):
        flip(folder / MANIFEST, bit)
        assert find_damage(folder, contents=False) == f"{MANIFEST} is unreadable or altered"
        flip(folder / MANIFEST, bit)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"files": []}', b'{"files": {"a": 1}}', b"\xff\xfe"])
def test_a_manifest_that_is_none_proves_nothing(folder, content):
    (folder / MANIFEST).write_bytes(content)
    assert find_damage(folder) == f"{MANIFEST} is unreadable or altered"


def test_a_missing_and_a_shorter_file_are_named_without_reading_contents(folder):
    (folder / "a").write_bytes(b"firs")
    assert find_damage(folder, contents=False) == "a has 4 bytes, expected 5"
    (folder / "a").unlink()
    assert find_damage(folder, contents=False) == "a is missing"


def test_a_folder_without_a_manifest_proves_nothing(folder, tmp_path):
    (folder / MANIFEST).unlink()
    assert find_damage(folder) == f"it has no {MANIFEST}"
    (tmp_path / "empty").mkdir()
    assert find_damage(tmp_path / "empty") == "it is empty"
    assert find_damage(folder / "a") == "it is no folder"


def test_a_file_that_another_program_left_is_no_damage(folder):
    (folder / ".DS_Store").write_bytes(b"?")
    assert find_damage(folder) is None
