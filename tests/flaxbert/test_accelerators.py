"""Where JAX will compute, guessed from the environment, device files and packages."""

import pytest

from flaxbert import accelerators

NVIDIA, VFIO = "/dev/nvidia[0-9]*", "/dev/vfio/[0-9]*"


@pytest.mark.parametrize("platforms, files, packages, kind", [
    ("", [], [], None),
    ("", [NVIDIA], ["jax_cuda13_plugin"], "gpu"),
    ("", [NVIDIA], [], None),
    ("", [], ["jax_cuda13_plugin", "libtpu"], None),
    ("", [VFIO], ["libtpu"], "tpu"),
    ("cpu", [NVIDIA], ["jax_cuda13_plugin"], None),
    ("cuda,cpu", [], [], "cuda"),
])  # fmt: skip
def test_where_jax_will_compute(monkeypatch, platforms, files, packages, kind):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(accelerators, "glob", lambda pattern: [pattern] if pattern in files else [])
    monkeypatch.setattr(accelerators.importlib.util, "find_spec", lambda name: name in packages or None)
    assert accelerators.accelerator() == kind
