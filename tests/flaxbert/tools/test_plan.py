"""`flaxbert plan`: what it says is what the step, the stream and the configuration say, and it says it plainly."""

import dataclasses
import json
import math
import random
import subprocess
import sys

import jax
import pytest

from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.prepare import prepare
from data_pipeline.store import open_corpus
from data_pipeline.stream import first_batch
from data_pipeline.tokenizer import SPECIAL_PIECES
from flaxbert import cli, launches
from flaxbert.config import PRESETS, Experiment, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from flaxbert.model import encoder
from flaxbert.phases import Phase
from flaxbert.sharding import make_mesh
from flaxbert.tools import compiled_step
from flaxbert.tools.compiled_step import compile_step, counted_flops
from flaxbert.tools.plan import _parameters, plan, what_would_fit
from flaxbert.tools.plan_tables import show
from flaxbert.tools.topologies import DeviceMemory
from flaxbert.training.metrics import flops_per_row
from flaxbert.training.step import abstract_batch, build_functions, step_bytes

# Quick to compile: a layer less halves it.
EXPERIMENT = Experiment(
    model=ModelConfig(vocab_size=250, hidden_size=64, num_layers=1, num_heads=2, max_length=32),
    data=DataConfig(sequence_length=32),
    optimizer=OptimizerConfig(warmup_steps=2),
    mesh=MeshConfig(data=2, fsdp=2),
    train=TrainConfig(steps=10, batch_size=64),
)
FLAGS = (
    "--model.hidden-size", "64", "--model.num-heads", "2", "--model.num-layers", "1", "--model.max-length", "32",
    "--data.sequence-length", "32", "--optimizer.warmup-steps", "2", "--train.steps", "10", "--train.batch-size", "64",
    "--mesh.data", "2", "--mesh.fsdp", "2", "--search", "0",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The tests compile one program in several ways to ask for it; the cache keeps what memory it takes too."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compilations")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def found(compiled_once):
    return plan(EXPERIMENT, search=1)[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("plan"), random.Random(0)
    words = [a + b + c for a in "bdfgklmnpr" for b in "aeiou" for c in "nlr"]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_PIECES, *words]) + "\n")
    documents = ["\n".join(" ".join(rng.choices(words, k=rng.randint(4, 9))) for _ in range(8)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    config = PrepareConfig(str(folder / "vocab.txt"), sentences="lines", validation_fraction=0.2)
    prepare(config, [str(folder / "text.txt")], str(folder / "corpus"), workers=1, progress=False)
    return folder / "corpus"


@pytest.mark.parametrize("data", [DataConfig(sequence_length=32), DataConfig(sequence_length=32, packing=3)])
def test_the_batch_that_is_planned_is_the_one_that_is_trained_on(corpus, data):
    """Keys, shapes and types are those of the stream, as the step's own `put` lays them on the devices."""
    experiment = dataclasses.replace(EXPERIMENT, data=data, train=TrainConfig(steps=10_000, batch_size=8))
    mesh = make_mesh(experiment.mesh)
    batch = first_batch(open_corpus(corpus), data, 8, "train")
    with jax.set_mesh(mesh):
        put = build_functions(experiment, mesh).put(batch)
    planned = abstract_batch(experiment)
    assert {name: (x.shape, x.dtype) for name, x in put.items()} == {
        name: (x.shape, x.dtype) for name, x in planned.items()
    }  # fmt: skip


def test_weights_and_moments_are_those_of_one_device(found):
    mesh = make_mesh(EXPERIMENT.mesh)
    state = build_functions(EXPERIMENT, mesh).abstract_state
    whole = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(state.params))
    assert whole / 2 <= found["memory"]["weights"] < 0.52 * whole, "mesh.fsdp divides all but biases and scales"
    assert found["memory"]["moments"] == 2 * found["memory"]["weights"] + 4, "two moments and a count"
    batch = sum(math.prod(leaf.shape) * 4 for leaf in abstract_batch(EXPERIMENT).values())
    assert found["memory"]["batch"] == batch / 4


def test_the_state_is_there_once_and_the_parts_are_the_whole(found):
    """What comes out beside the state, which is written over the old one, is less than a kilobyte."""
    assert found["memory"]["results beside the state"] < 1000
    assert found["memory_needed"] == sum(found["memory"].values())
    assert found["fits"] is True


def test_parameters_are_counted_without_the_padding_of_the_vocabulary():
    """110,106,428 is what transformers counts in BertForPreTraining of bert-base-uncased."""
    model = dataclasses.replace(PRESETS["base"], vocab_size=30_522)
    assert _parameters(Experiment(model=model), make_mesh(MeshConfig())) == 110_106_428


def test_the_parts_of_the_flops_are_those_that_mfu_is_measured_by(found):
    parts = found["flops"]["parts"]
    assert found["flops"]["model"] == sum(parts.values())
    data = EXPERIMENT.data
    assert found["flops"]["model"] == 64 * flops_per_row(EXPERIMENT.model, 32, data.predictions_per_row, data.packing)


def test_xlas_count_of_a_loop_over_layers_is_that_of_layers_written_out(monkeypatch):
    """Layers beyond the first two are extrapolated. Written out, XLA counts each of them."""
    written_out = compiled_step._lowered_flops(EXPERIMENT, 7)
    monkeypatch.setitem(encoder.UNROLLED_LAYERS, "cpu", 2)
    assert compiled_step._lowered_flops(EXPERIMENT, 7) < 0.7 * written_out, "in a loop only two are counted"
    deeper = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(EXPERIMENT.model, num_layers=7))
    assert counted_flops(deeper) == pytest.approx(written_out, rel=2e-4)


def test_xla_counts_the_products_of_the_formula_and_little_more():
    """Norms, softmax, GELU and the optimizer are the rest; they fade as the model grows wider."""
    wide = dataclasses.replace(EXPERIMENT.model, hidden_size=512, num_layers=3, num_heads=8, vocab_size=2000)
    experiment = dataclasses.replace(EXPERIMENT, model=wide)
    formula = 64 * flops_per_row(wide, 32, experiment.data.predictions_per_row, experiment.data.packing)
    assert 1.0 < counted_flops(experiment) / formula < 1.05


def test_what_is_sent_grows_with_the_shards_and_is_nothing_on_one_device(found):
    sent = found["collectives"]["kinds"]
    assert {"all-gather", "all-reduce"} <= sent.keys()
    assert sent["all-gather"]["bytes"] > found["memory"]["weights"], "every sharded weight is gathered"
    alone = compile_step(EXPERIMENT, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert alone.collectives.kinds == {}


def test_the_largest_batch_is_one_that_the_mesh_divides_and_that_fits(found):
    search = found["largest_batch"]
    assert len(search["tried"]) <= 2, "the first and one more"
    assert all(attempt["rows"] % 4 == 0 for attempt in search["tried"])
    fitting = [attempt for attempt in search["tried"] if attempt["fits"]]
    assert search["rows"] == max(attempt["rows"] for attempt in fitting) > 64
    assert all(attempt["bytes"] <= found["devices"]["memory"] for attempt in fitting)


def test_a_batch_that_outgrows_the_memory_is_told_what_would_fit():
    mesh = make_mesh(MeshConfig(data=4))
    experiment = dataclasses.replace(EXPERIMENT, mesh=MeshConfig(data=4))
    needed = compile_step(experiment, mesh).bytes
    room = DeviceMemory(int(0.75 * needed), "a small device")
    said = what_would_fit(experiment, mesh, room)
    assert f"needs {needed / 1e9:.3f} GB per device (" in said and f"has {room.bytes / 1e9:.3f} GB" in said
    rows = int(said.partition("--train.batch-size ")[2].split()[0])
    smaller = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, batch_size=rows))
    assert rows < 64 and compile_step(smaller, mesh).bytes <= room.bytes


def test_advice_never_fails_and_says_so_where_nothing_fits():
    mesh, pair = make_mesh(MeshConfig(), jax.devices()[:1]), TrainConfig(steps=10, batch_size=2)
    experiment = dataclasses.replace(EXPERIMENT, mesh=MeshConfig(), train=pair)
    assert "no setting tried would fit" in what_would_fit(experiment, mesh, DeviceMemory(1000, "a pocket calculator"))
    assert "something else holds memory" in what_would_fit(experiment, mesh, DeviceMemory(2**40, "a tebibyte"))
    assert "could not be found out" in what_would_fit(None, None)


def test_the_command_prints_what_its_json_says_and_never_imports_tensorflow(corpus):
    code = f"""
import sys
from flaxbert import cli
status = cli.main(["plan", "bert_tiny", "--corpus", {str(corpus)!r}, "--json", "-", *{FLAGS!r}])
assert "tensorflow" not in sys.modules, "the command imports TensorFlow"
sys.exit(status)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["settings"]["model"]["vocab_size"] == 155 and found["assumed"] == []
    assert found["devices"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1} and found["speed"] is None
    assert "compiling the step for 64 rows" in run.stderr


def test_the_tables_hold_every_kind_of_memory_every_part_and_every_collective(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    show([found])
    said = capsys.readouterr().out
    names = [*found["memory"], *found["flops"]["parts"], *found["collectives"]["kinds"]]
    assert [name for name in names if name not in said] == []
    assert f"{found['memory_needed'] / 1e9:.3f}" in said and f"{found['largest_batch']['rows']:,} sequences" in said


def test_speeds_are_told_of_a_device_whose_peak_its_user_knows(found, capsys, monkeypatch):
    """A row is a sequence, unless it is packed."""
    monkeypatch.setenv("COLUMNS", "100")
    assert found["speed"] is None
    told, = plan(EXPERIMENT, mfu=0.25, search=0, peak=1e12)
    rows = 0.25 * 1e12 * 4 * EXPERIMENT.train.batch_size / told["flops"]["model"]
    assert told["speed"]["rows_per_second"] == pytest.approx(rows)
    assert told["speed"]["tokens_per_second"] == pytest.approx(rows * 32)
    show([found, told])
    said = capsys.readouterr().out
    assert "no speed is foretold; --peak-flops says it" in said
    assert f"sequences a second {rows:,.0f}" in " ".join(said.split())
    assert f"tokens a second, padding included {rows * 32:,.0f}" in " ".join(said.split())
    settings = told["settings"] | {"data": told["settings"]["data"] | {"packing": 2}}
    show([told | {"settings": settings}])
    assert "rows a second" in capsys.readouterr().out


def test_a_run_knows_what_its_step_takes_without_compiling_it_again(found):
    """What several processes can still say when memory is exhausted: all of a plan but a CPU's own workspace."""
    mesh = make_mesh(EXPERIMENT.mesh)
    functions = build_functions(EXPERIMENT, mesh)
    with jax.set_mesh(mesh):
        compiled = functions.train.lower(functions.abstract_state, abstract_batch(EXPERIMENT)).compile()
    planned = sum(size for kind, size in found["memory"].items() if kind != "workspace of matrix products")
    assert step_bytes(compiled, "cpu") == planned


def test_several_processes_name_what_the_step_needs_and_the_flags_of_its_phase(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = "a larger --phases.1.microbatches, a smaller --phases.1.batch-size or `flaxbert plan` help"
    assert launches._what_would_fit(EXPERIMENT, 1, None) == said
    assert launches._what_would_fit(EXPERIMENT, 1, 8_600_000_000) == f"the step needs 8.6 GB of each device; {said}"


def test_the_hours_of_phases_are_those_of_their_steps_and_added_up(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    speed = {
        "mfu": 0.5, "peak_flops_per_device": 1e12, "seconds_per_step": 1.0, "rows_per_second": 1.0,
        "tokens_per_second": 1.0,
    }  # fmt: skip
    show([
        found | {"steps": steps, "speed": speed | {"seconds": 3600.0 * steps, "device_hours": 4.0 * steps}}
        for steps in (6, 4)
    ])
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if " steps " in line and "hours" in line]
    numbers = [[word for word in row if word[0].isdigit()] for row in rows]
    assert numbers == [["6", "6.00"], ["4", "4.00"], ["10", "10.00"]]
    assert "40.0" in said


def test_an_assumed_vocabulary_is_stated(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model = dataclasses.replace(EXPERIMENT.model, vocab_size=None)
    assumed, = plan(dataclasses.replace(EXPERIMENT, model=model), search=0)
    assert assumed["settings"]["model"]["vocab_size"] == 30_522 and found["assumed"] == []
    show([assumed])
    said = capsys.readouterr().out
    assert "a vocabulary of 30,522 is assumed: --model.vocab-size or --corpus says" in said
    assert "attention by xla: a run measures which backend is the fastest, a plan cannot" in said


def test_each_phase_is_planned_by_itself(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    phases = (Phase(steps=6, sequence_length=16), Phase(batch_size=32))
    first, second = plan(dataclasses.replace(EXPERIMENT, phases=phases), search=0)
    assert [first["steps"], second["steps"]] == [6, 4]
    settings = first["settings"], second["settings"]
    assert [each["data"]["sequence_length"] for each in settings] == [16, 32]
    assert [each["train"]["batch_size"] for each in settings] == [64, 32]
    alone = plan(dataclasses.replace(EXPERIMENT, train=TrainConfig(steps=10, batch_size=32)), search=0)[0]
    assert second["flops"] == alone["flops"] and second["memory"] == alone["memory"] != first["memory"]
    show([first, second], str(tmp_path / "plan.json"))
    said = capsys.readouterr().out
    assert said.index("phase 1 of 2") < said.index("batches of 64 sequences of 16") < said.index("phase 2 of 2")
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps({"phases": [first, second]}))


@pytest.mark.parametrize("flags, words", [
    (["--mfu", "0"], "--mfu 0.0 is not in (0, 1]"), (["--search", "-1"], "--search -1 is negative"),
    (["--peak-flops", "0"], "--peak-flops 0.0 is not positive"),
    (["--topology", "v5e:5x5"], "'v5e:5x5' is not known"), (["--mesh.data", "3"], "does not fit the 4 device(s) found"),
    (["--train.batch-size", "6"], "train.batch_size 6 is not a multiple of mesh.data x mesh.fsdp = 4"),
    (["--corpus", "nowhere"], "nowhere is not a prepared corpus"), (["--json", "no/such/folder.json"], "no folder no"),
])  # fmt: skip
def test_a_mistake_is_answered_in_one_sentence(capsys, flags, words):
    assert cli.main(["plan", "bert_tiny", *FLAGS, *flags]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert words in said and said.startswith("flaxbert: ") and len(said.splitlines()) == 1
