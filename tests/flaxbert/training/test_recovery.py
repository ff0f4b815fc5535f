"""Whatever happens to checkpoints on disk, a run goes on from the newest whole one, or says why it cannot."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from addresses import free_address

from flaxbert.training import orbax_manager
from flaxbert.training.checkpoint import open_checkpoints, restore_params
from flaxbert.training.guard import new_guard
from flaxbert.training.manifest import MANIFEST, find_damage
from flaxbert.training.recovery import REPLACED, saved_steps, settle_newest
from flaxbert.training.step import TrainState, step_sums


def state_of(step):
    params = {"kernel": jnp.full((40, 50), step, jnp.float32)}
    return TrainState(jnp.int32(step), params, optax.EmptyState(), new_guard(), step_sums())


ABSTRACT = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), jax.eval_shape(state_of, 0)
)


def save_steps(folder, steps, keep=3, say=None):
    with open_checkpoints(str(folder), keep, say or refuse) as checkpoints:
        for step in steps:
            checkpoints.commit(state_of(step), step, {"row": step}, {}, {"loss": 9.0 - step})


def refuse(sentence):
    raise AssertionError(f"nothing is to be said: {sentence}")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3; not to be changed."""
    save_steps(workdir := tmp_path_factory.mktemp("three"), [1, 2, 3])
    return workdir


@pytest.fixture
def run(three, tmp_path):
    """A copy of it."""
    return shutil.copytree(three, tmp_path / "run")


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    os.truncate(largest(folder), largest(folder).stat().st_size // 2)


def half_copy(folder):
    shutil.rmtree(folder / "state")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("?")


DAMAGES = {
    "truncated": (truncate, r"state/.* has [\d,]+ bytes, expected"),
    "a bit flipped in the weights": (lambda f: flip(largest(f), random.Random(0)), r"state/.* is altered"),
    "deleted in part": (lambda f: largest(f).unlink(), r"state/.* is missing"),
    "metadata unreadable": (lambda f: (f / "_CHECKPOINT_METADATA").write_text("{"), r"_CHECKPOINT_METADATA has 1 b"),
    "position altered": (lambda f: (f / "position" / "metadata").write_text('{"row": 9}'), r"position/metadata is"),
    "half a copy": (half_copy, r"state/.* is missing"),
    "empty": (empty, r"it is empty"),
    "without a manifest": (lambda f: (f / MANIFEST).unlink(), rf"it has no {MANIFEST}"),
    "a file": (replace_by_file, r"it is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_is_used(run, damage):
    inflict, reason = DAMAGES[damage]
    inflict(run / "checkpoints" / "3")
    left = everything(run / "checkpoints" / "3")
    said = []
    with open_checkpoints(str(run), 3, said.append) as checkpoints:
        state, position = checkpoints.restore(ABSTRACT)
        assert (checkpoints.latest, position, float(state.params["kernel"][0, 0])) == (2, {"row": 2}, 2.0)
        assert len(said) == 1 and str(run / "checkpoints" / "3") in said[0]
        assert re.search(reason, said[0])
        checkpoints.commit(state_of(3), 3, {"row": 33}, {}, None)
    assert everything(run / "checkpoints" / "damaged-000003") == left
    with open_checkpoints(str(run), 3, refuse) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[1] == {"row": 33}


def test_a_flipped_bit_in_any_file_is_found(run):
    folder, generator = run / "checkpoints" / "3", random.Random(1)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert {path.relative_to(folder).as_posix() for path in files} == {*listed, MANIFEST}
    for path in files:
        content = path.read_bytes()
        flip(path, generator)
        assert find_damage(folder).startswith(path.relative_to(folder).as_posix())
        path.write_bytes(content)
    assert find_damage(folder) is None


def test_junk_is_neither_used_nor_counted(run):
    (run / "checkpoints" / "99").mkdir()
    assert saved_steps(str(run)) == [1, 2, 3]
    said = []
    with open_checkpoints(str(run), 3, said.append) as checkpoints:
        assert checkpoints.latest == 3
    assert len(said) == 1 and "99 is damaged (it is empty)" in said[0]
    assert (run / "checkpoints" / "damaged-000099").is_dir()


def test_a_name_that_is_taken_is_numbered_on(run):
    for _ in range(3):
        (run / "checkpoints" / "99").mkdir()
        save_steps(run, [], say=lambda sentence: None)
    names = sorted(path.name for path in run.glob("checkpoints/damaged-*"))
    assert names == ["damaged-000099", "damaged-000099-2", "damaged-000099-3"]


def test_a_deletion_cut_short_leaves_no_damaged_checkpoint(run, monkeypatch):
    """The kill comes when the one that goes has been renamed, and before the first of its files is deleted."""
    with monkeypatch.context() as patch:
        patch.setattr(orbax_manager.shutil, "rmtree", lambda *arguments, **options: None)
        save_steps(run, [4], keep=1)
    assert {path.name for path in (run / "checkpoints" / "deleted").iterdir()} == {"1", "2", "3"}
    save_steps(run, [])
    assert not (run / "checkpoints" / "deleted").exists() and saved_steps(str(run)) == [4]


@pytest.mark.parametrize("come", [False, True], ids=["before it was saved anew", "after"])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_one_of_the_two(run, come):
    newest = max(saved_steps(str(run)))
    path = run / "checkpoints" / str(newest)
    aside = path.rename(path.with_name(f"{REPLACED}{newest}"))
    if come:
        shutil.copytree(aside, path)
    assert settle_newest(str(run), pytest.fail) == newest
    assert not aside.exists() and find_damage(path) is None


def test_a_checkpoint_comes_back_where_the_one_that_replaced_it_is_damaged(run):
    newest = max(saved_steps(str(run)))
    path = run / "checkpoints" / str(newest)
    shutil.copytree(path, path.with_name(f"{REPLACED}{newest}"))
    truncate(path)
    said = []
    assert settle_newest(str(run), said.append) == newest
    assert find_damage(path) is None and len(said) == 1 and f"damaged-{newest:06}" in said[0]
    assert not path.with_name(f"{REPLACED}{newest}").exists()


def test_what_is_set_aside_is_neither_listed_nor_deleted(run):
    truncate(run / "checkpoints" / "3")
    left = everything(run / "checkpoints" / "3")
    save_steps(run, [], say=lambda sentence: None)
    save_steps(run, range(3, 8), keep=1)
    assert saved_steps(str(run)) == [7]
    assert everything(run / "checkpoints" / "damaged-000003") == left


@pytest.mark.parametrize("name, content", [
    ("metrics/metrics", '{"loss":'), ("metrics/metrics", '{"loss": 0}'),
    ("_CHECKPOINT_METADATA", '{"item_handlers": 3}'),
])  # fmt: skip
def test_an_altered_older_checkpoint_does_not_stand_in_the_way(run, name, content):
    (run / "checkpoints" / "1" / name).write_text(content)
    said = []
    with open_checkpoints(str(run), 3, said.append) as checkpoints:
        assert checkpoints.restore(ABSTRACT)[1] == {"row": 3}
        assert checkpoints.best() == 3
    assert len(said) == 1 and f"checkpoints/1 is damaged ({name}" in said[0]


def test_without_a_whole_checkpoint_nothing_begins_anew(run):
    for step in (1, 2, 3):
        truncate(run / "checkpoints" / str(step))
    before = everything(run)
    for _ in range(2):
        with pytest.raises(ValueError, match="run/checkpoints holds checkpoints, and none is whole \\(3: state/"):
            save_steps(run, [])
    with pytest.raises(ValueError, match="none is whole"):
        restore_params(str(run))
    assert everything(run) == before
    for step in (1, 2, 3):
        shutil.move(run / "checkpoints" / str(step), run / "checkpoints" / f"damaged-{step:06}")
    with pytest.raises(ValueError, match="run/checkpoints holds damaged checkpoints alone"):
        save_steps(run, [])


@pytest.mark.parametrize("left", ["no folder", "an empty folder"])
def test_a_run_whose_checkpoints_were_taken_away_does_not_begin_anew(run, left):
    shutil.rmtree(run / "checkpoints")
    if left == "an empty folder":
        (run / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="run/checkpoints held checkpoints, and holds none now: put them back"):
        save_steps(run, [])


@pytest.mark.parametrize("made", ["", "checkpoints", "checkpoints/5.orbax-checkpoint-tmp/state"])
def test_a_run_that_saved_nothing_begins_anew(tmp_path, made):
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    with open_checkpoints(str(tmp_path), 3, refuse) as checkpoints:
        assert checkpoints.latest is None and checkpoints.restore(ABSTRACT) is None


def test_readers_take_the_newest_whole_one_with_a_warning_and_change_nothing(run):
    truncate(run / "checkpoints" / "3")
    before = everything(run)
    with pytest.warns(UserWarning, match=r"checkpoints/3 is damaged \(state/.* bytes, expected .*\): step 2 is read"):
        params, step = restore_params(str(run))
    assert (step, float(params["kernel"][0, 0])) == (2, 2.0)
    with pytest.raises(ValueError, match=r"checkpoints/3 is damaged \(state/.* bytes, expected"):
        restore_params(str(run), 3)
    assert float(restore_params(str(run), 1)[0]["kernel"][0, 0]) == 1.0
    assert everything(run) == before


SAVES_ON_AND_ON = """
import sys
from test_recovery import open_checkpoints, state_of
with open_checkpoints(sys.argv[1], 2) as checkpoints:
    step = checkpoints.latest or 0
    while True:
        step += 1
        checkpoints.save(state_of(step), step, {"row": step}, {}, None)
        print(checkpoints.latest or 0, flush=True)
"""


def python(code, *arguments):
    """A process of its own that can import this file."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_kill_at_any_moment_leaves_the_newest_committed_checkpoint_whole(tmp_path):
    generator, committed = random.Random(2), 0
    for _ in range(3):
        process = python(SAVES_ON_AND_ON, tmp_path)
        for _ in range(generator.randrange(2, 12)):
            committed = int(process.stdout.readline())
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        with open_checkpoints(str(tmp_path), 2, refuse) as checkpoints:
            assert checkpoints.latest >= committed
            state, position = checkpoints.restore(ABSTRACT)
        assert position == {"row": checkpoints.latest}
        np.testing.assert_array_equal(state.params["kernel"], np.full((40, 50), checkpoints.latest, np.float32))


ONE_OF_TWO = """
import json, sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from flaxbert.config import MeshConfig
from flaxbert.sharding import make_mesh
from flaxbert.training.checkpoint import open_checkpoints
from flaxbert.training.step import TrainState
mesh, said = make_mesh(MeshConfig(fsdp=8)), []
place = lambda value, *axes: jax.device_put(value, NamedSharding(mesh, PartitionSpec(*axes)))
with jax.set_mesh(mesh), open_checkpoints(sys.argv[1], 3, said.append) as checkpoints:
    begun = checkpoints.latest
    for step in (4, 5):
        kernel = place(np.full((40, 50), step, np.float32), "fsdp")
        state = TrainState(place(np.int32(step)), {"kernel": kernel}, (), (), {})
        checkpoints.commit(state, step, {"row": step}, {}, None)
print(json.dumps([begun, checkpoints.latest, said]))
"""


def test_two_processes_go_on_from_the_same_checkpoint_and_one_manifest_lists_the_files_of_both(run):
    truncate(run / "checkpoints" / "3")
    port = free_address().rpartition(":")[2]
    processes = [python(ONE_OF_TWO, run, port, number) for number in range(2)]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in ended)
    assert first[:2] == second[:2] == [2, 5]
    assert len(first[2]) == 1 and "checkpoints/3 is damaged" in first[2][0] and second[2] == []
    assert find_damage(run / "checkpoints" / "5") is None
    listed = json.loads((run / "checkpoints" / "5" / MANIFEST).read_text())["files"]
    assert {name.split("/")[1] for name in listed if "ocdbt.process" in name} == {"ocdbt.process_0", "ocdbt.process_1"}
    np.testing.assert_array_equal(restore_params(str(run))[0]["kernel"], np.full((40, 50), 5, np.float32))
