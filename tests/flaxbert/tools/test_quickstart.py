"""`flaxbert quickstart`: which commands the tour takes."""

import pytest

from flaxbert.tools.quickstart import commands


@pytest.mark.parametrize("made, left", [
    ([], ["prepare", "pretrain", "fill-mask", "export"]),
    (["corpus/unfinished"], ["prepare", "pretrain", "fill-mask", "export"]),
    (["corpus/dataset.json"], ["pretrain", "fill-mask", "export"]),
    (["corpus/dataset.json", "export/README.md"], ["pretrain", "fill-mask"]),
])  # fmt: skip
def test_what_is_whole_is_not_made_again(tmp_path, made, left):
    """Prepared again after a package was upgraded, the corpus would be refused: its sources have changed."""
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [command[0] for command in commands(str(tmp_path))] == left
