"""A tokenizer of each kind, as a fine-tuned model holds it, and files of a task."""

import pytest

from data_pipeline.tokenizer import load


@pytest.fixture(scope="session")
def rust(tokenizer_folder):
    return load(tokenizer_folder).to_rust()


@pytest.fixture
def write(tmp_path):
    """Writes a file of the given name and content and gives its path."""

    def written(name: str, content: str | bytes) -> str:
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        (tmp_path / name).write_bytes(raw)
        return str(tmp_path / name)

    return written


@pytest.fixture
def refuses():
    """Asserts that a call raises ValueError with one sentence that matches."""

    def check(message, call, *arguments, **options):
        with pytest.raises(ValueError, match=message) as caught:
            call(*arguments, **options)
        assert "\n" not in str(caught.value)

    return check
