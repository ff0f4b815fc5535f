"""Where compiled programs are kept, and what becomes of a launch where they cannot be."""

import os
import pathlib

import jax
import pytest

from flaxbert.training.compilation import VARIABLE, cache_folder, keep_compilations


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """JAX's settings as they are without a variable, and back."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_below_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_compilations() == []
    assert jax.config.jax_compilation_cache_dir == str(cache_folder())
    assert cache_folder().is_relative_to(tmp_path / "flaxbert") and list(cache_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_of_once_and_nothing_is_kept(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    [said] = keep_compilations()
    assert said.startswith("what is compiled is not kept for the next launch (Not a directory)")
    assert jax.config.jax_compilation_cache_dir is None


def test_a_user_without_a_home_folder_is_told_of_it_and_goes_on(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    with pytest.raises(RuntimeError):
        pathlib.Path.home()
    assert "(Could not determine home directory)" in keep_compilations()[0]
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_the_user_names_is_jaxs_own_affair(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/nowhere")
    assert keep_compilations() == [] and jax.config.jax_compilation_cache_dir is None
