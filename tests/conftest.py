"""Four virtual CPU devices in every run, and quick compiles: a test suite compiles more than it runs."""

import gc
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from data_pipeline import memory

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers 4 takes TensorFlow up where it finds it, and then refuses its Keras.
os.environ.setdefault("USE_TF", "0")

# A process of tests takes other memory in each of them: to keep it all would help none. Those that tests start keep it.
memory._OF_STEPS, memory._set_aside = memory._OF_BATCHES, lambda size: None

# Linux grants a process 65,530 mappings of memory. Each program that XLA keeps for a CPU takes some hundreds, and one
# too many ends the process with a segmentation fault.
MOST_MAPPINGS = 25_000

# A shell starts what runs in its background deaf to Ctrl-C, and so would be what the tests start to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of few tests that take minutes: begun last, one process would run them while the other has nothing left to do.
LONGEST = ("test_processes.py", "test_cli.py", "test_faults.py", "test_plan.py")

SHARED = pathlib.Path(os.environ.get("FLAXBERT_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, each in its own order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def few_mappings() -> Iterator[None]:
    """Forgets what was compiled before there is too much of it."""
    yield
    found = pathlib.Path("/proc/self/maps")
    if "jax" in sys.modules and found.exists() and found.read_bytes().count(b"\n") > MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def the_mesh_as_it_was() -> Iterator[None]:
    """Fails the test that leaves a mesh set: every later test of its process would compute on that mesh."""
    before = mesh_of_this_thread()
    yield
    assert mesh_of_this_thread() == before, "the test left a mesh set: write `with jax.set_mesh(mesh)`"


def mesh_of_this_thread() -> Any:
    """None where none is set."""
    if "jax" not in sys.modules:
        return None
    mesh = sys.modules["jax"].sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real text and vocabularies beside the checkout; tests that need it are skipped without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared data at {SHARED}; name its folder in FLAXBERT_SHARED")
    return SHARED / "data"


@pytest.fixture
def assert_parity(record_property) -> Callable[[str, str, float, float], None]:
    """Records one comparison, then asserts that its worst deviation is within the tolerance:

        def test_logits_equal_those_of_transformers(assert_parity):
            ...
            worst = np.abs(found - expected).max()
            assert_parity("MLM logits", "transformers BertForPreTraining", worst, TOLERANCE)

    The table has a row for each `what`, `peer` and `tolerance`, with the worst of all the tests that name them: leave
    the case out of `what` where all cases promise the same, and put the measure in where it is not the plain absolute
    difference ("…, relative to the tensor's largest entry"). What must be equal has tolerance 0 and, as its worst,
    the number of things that differ. NaN is never within a tolerance.
    """

    def record_and_assert(what: str, peer: str, worst: float, tolerance: float) -> None:
        record_property("parity", (what, peer, float(worst), tolerance))
        assert worst <= tolerance, f"{what} against {peer}: {worst:.3g} where {tolerance:.3g} is allowed"

    return record_and_assert
