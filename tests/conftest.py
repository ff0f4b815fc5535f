"""Four virtual CPU devices in every run, and quick compiles: a test suite compiles more than it runs."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers 4 takes TensorFlow up where it finds it, and then refuses its Keras.
os.environ.setdefault("USE_TF", "0")

SHARED = pathlib.Path(os.environ.get("FLAXBERT_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real text and vocabularies beside the checkout; tests that need it are skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared data at {SHARED}; name its folder in FLAXBERT_SHARED")
    return SHARED / "data"
