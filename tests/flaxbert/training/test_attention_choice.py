"""A run computes attention by the backend that it names, or by the fastest one of those that can."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipeline.config import DataConfig
from flaxbert.config import MeshConfig
from flaxbert.model import attention, fused_blocks
from flaxbert.sharding import make_mesh
from flaxbert.training import attention_choice
from flaxbert.training.attention_choice import (
    candidates, chosen, deviation, foretold, measure, request_of, with_attention,
)  # fmt: skip
from flaxbert.training.files import KEPT_ATTENTION
from flaxbert.training.step import build_functions

# Float32 sums taken in another order, through three updates.
RTOL = 2e-5


@pytest.fixture(scope="module")
def long(experiment):
    """Rows of 128 tokens: the shortest that the kernels take."""
    return dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, hidden_size=32, max_length=128),
        data=DataConfig(sequence_length=128), train=dataclasses.replace(experiment.train, batch_size=4),
    )  # fmt: skip


@pytest.fixture
def mesh(experiment):
    return make_mesh(experiment.mesh)


@pytest.fixture
def on_tpu(monkeypatch):
    """As if the mesh were one of TPUs, on which backends take the times that are set."""
    times = {}

    def measured(backend, request):
        if isinstance(times[backend], Exception):
            raise times[backend]
        return times[backend]

    monkeypatch.setattr(attention_choice, "platform_of", lambda mesh: "tpu")
    monkeypatch.setattr(attention_choice, "measure", measured)
    monkeypatch.setattr(attention_choice, "deviation", lambda backend, request: 1e-3)
    attention_choice._measured.cache_clear()
    yield times
    attention_choice._measured.cache_clear()


def test_a_step_by_fused_attention_is_a_step_by_the_plain_one(long, batch_of, mesh):
    """On a mesh that divides rows and heads, with dropout on: losses and gradients of three updates."""

    def trained(backend):
        with jax.set_mesh(mesh):
            functions = build_functions(with_attention(long, backend), mesh)
            state, found = functions.init(), []
            for step in range(3):
                state, outcome = functions.train(state, functions.put(batch_of(step, rows=4, length=128)))
                found.append((float(outcome.loss), float(outcome.gradient_norm)))
        return found

    np.testing.assert_allclose(trained("fused"), trained("xla"), rtol=RTOL)


@pytest.mark.parametrize("backend, words", [
    ("splash", "train.attention splash does not run on cpu"), ("cudnn", "train.attention cudnn does not run on cpu"),
    ("fused", "train.attention fused needs a sequence length that is a multiple of 128 and at most 1024, found 16"),
])  # fmt: skip
def test_a_backend_that_cannot_is_refused_before_the_first_step(experiment, mesh, backend, words):
    with pytest.raises(ValueError, match=words):
        build_functions(with_attention(experiment, backend), mesh)


def test_on_a_cpu_nothing_is_measured(long, mesh, monkeypatch, tmp_path):
    monkeypatch.setattr(attention_choice, "measure", None)
    assert chosen(long, mesh, pytest.fail, tmp_path) == long
    assert candidates(long, mesh) == ["xla"]


def test_the_fastest_is_taken_and_the_log_says_so(long, mesh, on_tpu, tmp_path):
    on_tpu.update(xla=0.004, fused=0.0025)
    said = []
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        assert chosen(long, mesh, said.append, tmp_path / run).train.attention == "fused"
        on_tpu.clear()  # a shape is measured once
    assert said == ["attention by fused (xla 4 ms, fused 2.5 ms for 2 rows of 128, forward and backward)"] * 2


def test_a_run_that_goes_on_keeps_its_backend(long, mesh, on_tpu, tmp_path):
    on_tpu.update(xla=0.004, fused=0.0025)
    assert chosen(long, mesh, [].append, tmp_path).train.attention == "fused"
    attention_choice._measured.cache_clear()
    on_tpu.update(fused=0.005)
    said = []
    assert chosen(long, mesh, said.append, tmp_path).train.attention == "fused"
    path = tmp_path / KEPT_ATTENTION
    assert said == [f"attention by fused, as this run had it before: without {path} it would be measured again"]
    longer = dataclasses.replace(long, train=dataclasses.replace(long.train, batch_size=8))
    assert chosen(longer, mesh, said.append, tmp_path).train.attention == "xla", "another shape is measured"
    assert chosen(long, mesh, said.append, tmp_path).train.attention == "fused", "and the first is kept"


def test_a_choice_of_another_version_of_jax_is_made_again(long, mesh, on_tpu, tmp_path, monkeypatch):
    on_tpu.update(xla=0.004, fused=0.0025)
    assert chosen(long, mesh, [].append, tmp_path).train.attention == "fused"
    attention_choice._measured.cache_clear()
    on_tpu.update(fused=RuntimeError("the kernel is broken"))
    monkeypatch.setattr(jax, "__version__", "99.0")
    assert chosen(long, mesh, [].append, tmp_path).train.attention == "xla"


def test_a_choice_that_cannot_be_kept_is_said_and_the_run_goes_on(long, mesh, on_tpu, tmp_path):
    on_tpu.update(xla=0.004, fused=0.0025)
    (tmp_path / KEPT_ATTENTION).mkdir()
    said = []
    assert chosen(long, mesh, said.append, tmp_path).train.attention == "fused"
    assert "attention.json cannot be written (Is a directory): the next launch measures attention again" in said[-1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cpu: rows 2": "none of ours"}', "[" * 100_000])
def test_a_kept_choice_that_cannot_be_read_is_made_again(long, mesh, on_tpu, tmp_path, content):
    on_tpu.update(xla=0.004, fused=0.0025)
    (tmp_path / KEPT_ATTENTION).write_text(content)
    assert chosen(long, mesh, [].append, tmp_path).train.attention == "fused"


def test_a_backend_that_fails_is_left_out_with_a_sentence(long, mesh, on_tpu, tmp_path):
    on_tpu.update(xla=0.004, fused=RuntimeError("Mosaic failed\nto compile"), splash=0.002)
    said = []
    assert chosen(long, mesh, said.append, tmp_path).train.attention == "xla", "splash has no dropout"
    assert said[0] == "attention by fused is left out: RuntimeError: Mosaic failed to compile"
    without = dataclasses.replace(long, model=dataclasses.replace(long.model, attention_dropout=0.0))
    assert chosen(without, mesh, said.append, tmp_path).train.attention == "splash"


@pytest.mark.parametrize("off", [0.2, float("nan")])
def test_a_backend_that_is_wrong_is_left_out_however_fast(long, mesh, on_tpu, monkeypatch, off, tmp_path):
    on_tpu.update(xla=0.004, fused=0.001)
    monkeypatch.setattr(attention_choice, "deviation", lambda backend, request: off)
    said = []
    assert chosen(long, mesh, said.append, tmp_path).train.attention == "xla"
    assert said[0].startswith("attention by fused is left out: its results are up to")


def test_a_gradient_that_is_no_number_is_seen(long, mesh, monkeypatch):
    ones, none = np.ones(3), np.full(3, np.nan)
    results = {"fused": [ones, ones, none, ones], "xla": [ones] * 4}
    monkeypatch.setattr(attention_choice, "_results", lambda backend, request, ids: results[backend])
    assert np.isnan(deviation("fused", request_of(long, mesh)))


@pytest.mark.parametrize("packing", [1, 4])
def test_a_kernel_that_is_right_is_told_from_one_that_is_wrong(long, mesh, monkeypatch, packing):
    request = request_of(dataclasses.replace(long, data=dataclasses.replace(long.data, packing=packing)), mesh)
    assert deviation("fused", request) < 1e-5
    fused = attention.fused_attention
    other_seeds = lambda *arrays: fused(*arrays[:5], jax.numpy.zeros_like(arrays[5]), arrays[6])  # noqa: E731
    monkeypatch.setattr(attention, "fused_attention", other_seeds)
    assert deviation("fused", request) > attention_choice.MOST_DEVIATION, "another dropout"
    monkeypatch.undo()
    wrong = lambda query, key, own, ids: fused_blocks.product(query, key, 1, 1) * query.shape[-1] ** -0.5  # noqa: E731
    monkeypatch.setattr("flaxbert.model.fused_tpu.masked_scores", wrong)
    assert deviation("fused", request) > attention_choice.MOST_DEVIATION, "no mask"


def test_a_named_backend_is_not_measured(long, mesh, on_tpu, tmp_path):
    assert chosen(with_attention(long, "xla"), mesh, pytest.fail, tmp_path).train.attention == "xla"


def test_other_processes_take_what_the_first_has_chosen(long, mesh, on_tpu, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(attention_choice.multihost_utils, "broadcast_one_to_all", lambda own: np.int64(1))
    assert candidates(long, mesh)[1] == "fused"
    assert chosen(long, mesh, pytest.fail, tmp_path).train.attention == "fused"


def test_a_plan_takes_fused_for_a_tpu_where_it_can(experiment, long, mesh, on_tpu):
    assert foretold(long, mesh).train.attention == "fused"
    assert foretold(experiment, mesh).train.attention == "xla", "rows of 16 tokens"
    assert foretold(with_attention(long, "splash"), mesh).train.attention == "splash"


def test_what_is_measured_is_what_one_device_computes(long, mesh):
    request = request_of(long, mesh)
    assert (request.rows, request.length, request.heads, request.head_size) == (2, 128, 1, 16)
    assert request_of(long, make_mesh(MeshConfig(data=4))).heads == 2
    assert measure("xla", request) > 0 and measure("fused", request) > 0
