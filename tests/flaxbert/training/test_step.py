"""One step: its losses do not depend on the mesh, its state is consumed, its sums add up."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from flaxbert.config import MeshConfig
from flaxbert.model.pretraining import BertForPreTraining
from flaxbert.sharding import make_mesh
from flaxbert.training.objective import loss_and_sums, summarize, zero_sums
from flaxbert.training.step import build_functions

STEPS = 3
# Float32 sums taken in another order, through three updates.
RTOL = 2e-5


def one_device():
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.devices()[:1])


def run(functions, mesh, batch_of):
    """The loss of each step, the state after them and a held-out summary."""
    with jax.set_mesh(mesh):
        state, losses = functions.init(), []
        for step in range(STEPS):
            state, outcome = functions.train(state, functions.put(batch_of(step)))
            losses.append(float(outcome.loss))
        sums = functions.evaluate(state.params, zero_sums(), functions.put(batch_of(99)))
        return losses, state, summarize(sums)


@pytest.fixture(scope="module")
def alone(functions_on, batch_of):
    """Three steps on one device, without a division of anything."""
    return run(functions_on(one_device()), one_device(), batch_of)


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=2, tensor=2), MeshConfig(fsdp=4)], ids=str)
def test_losses_do_not_depend_on_the_mesh(functions_on, batch_of, alone, mesh):
    """With dropout on: the masks too are those of one device."""
    losses, state, held_out = run(functions_on(make_mesh(mesh)), make_mesh(mesh), batch_of)
    np.testing.assert_allclose(losses, alone[0], rtol=RTOL)
    for name, value in alone[2].items():
        np.testing.assert_allclose(held_out[name], value, rtol=RTOL, err_msg=name)
    for name, value in alone[1].sums.items():
        np.testing.assert_allclose(state.sums[name], value, rtol=RTOL, err_msg=name)


def test_the_state_lies_as_the_mesh_says(experiment, batch_of):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        functions = build_functions(experiment, mesh)
        state = functions.init()
        wanted = jax.tree.map(lambda leaf: leaf.sharding, functions.abstract_state)
        same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, wanted)
        assert all(jax.tree.leaves(same))
        table = state.params["encoder"]["embeddings"]["word"]["embedding"]
        assert table.addressable_shards[0].data.shape == (64, 8)
        batch = functions.put(batch_of(0))
        assert batch["input_ids"].addressable_shards[0].data.shape == (4, 16)


@pytest.fixture(scope="module")
def functions_and_mesh(experiment, functions_on):
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        yield functions_on(mesh), mesh


def test_the_state_is_consumed(functions_and_mesh, batch_of):
    functions, _ = functions_and_mesh
    state = functions.init()
    after, _ = functions.train(state, functions.put(batch_of(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params) + jax.tree.leaves(state.optimizer_state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_sums_count_from_line_to_line(functions_and_mesh, batch_of):
    functions, _ = functions_and_mesh
    state, losses, norms = functions.init(), [], 0.0
    for step in range(3):
        state, outcome = functions.train(state, functions.put(batch_of(step)))
        losses.append(float(outcome.loss))
        assert state.sums["gradient_norm"] > norms
        norms = float(state.sums["gradient_norm"])
    assert int(state.step) == 3 == int(state.optimizer_state[1].count)
    assert state.sums["steps"] == 3
    tokens = sum((batch_of(step)["sequence_ids"] > 0).sum() for step in range(3))
    weights = sum(batch_of(step)["masked_weights"].sum() for step in range(3))
    assert (state.sums["tokens"], state.sums["mlm_weight"]) == (tokens, weights)
    assert state.sums["nsp_weight"] == 3 * 8
    summary = summarize({name: state.sums[name] for name in zero_sums()})
    assert summary["loss"] == pytest.approx(np.mean(losses), rel=0.02), "means of means weigh steps alike, sums do not"
    fresh = functions.zero_sums()
    assert fresh.keys() == state.sums.keys()
    assert not any(float(value) for value in fresh.values())


def test_a_step_is_the_gradient_of_the_objective_clipped(functions_and_mesh, experiment, batch_of):
    """The first moments are 0.1 of it and the second 0.001 of its square. Undivided sums differ in the last bits of
    float32, which gradients far below the largest feel most: hence the absolute part.
    """
    functions, _ = functions_and_mesh
    model, batch = BertForPreTraining(experiment.model, deterministic=False), batch_of(0)
    key = jax.random.fold_in(jax.random.split(jax.random.key(experiment.train.seed))[1], 0)

    def loss_of(params):
        return loss_and_sums(batch, *model.apply({"params": params}, batch, rngs={"dropout": key}))[0]

    state = functions.init()
    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(jax.device_get(state.params))
    after, found = functions.train(state, functions.put(batch))
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradients)))
    assert norm > 1, "or nothing is clipped"
    np.testing.assert_allclose(found.loss, loss, rtol=RTOL)
    np.testing.assert_allclose(after.sums["gradient_norm"], norm, rtol=RTOL)
    for m, v, g in zip(*(jax.tree.leaves(x) for x in (*after.optimizer_state[1][1:], gradients)), strict=True):
        np.testing.assert_allclose(m, 0.1 * g / norm, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(v, 0.001 * (g / norm) ** 2, rtol=2e-4, atol=1e-9)


def test_dropout_is_drawn_anew_at_each_step(functions_and_mesh, batch_of):
    """The rate of step 0 is zero, so step 1 sees the same parameters: only the mask can make its loss another one."""
    functions, _ = functions_and_mesh
    state = functions.init()
    before = jax.device_get(state.params)
    state, first = functions.train(state, functions.put(batch_of(0)))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), before, jax.device_get(state.params))))
    _, second = functions.train(state, functions.put(batch_of(0)))
    assert float(first.loss) != float(second.loss)
    assert float(first.loss) == pytest.approx(float(second.loss), rel=0.05)


def test_two_runs_are_bit_equal_and_another_seed_is_another_run(functions_and_mesh, batch_of, with_train):
    functions, mesh = functions_and_mesh

    def two_steps(functions):
        state = functions.init()
        for step in range(2):
            state, _ = functions.train(state, functions.put(batch_of(step)))
        return jax.device_get(state.params)

    first, again = two_steps(functions), two_steps(functions)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = build_functions(with_train(seed=1), mesh).init().params
    same = jax.tree.map(lambda a, b: bool((a == b).all()), other, functions.init().params)
    assert not same["encoder"]["embeddings"]["word"]["embedding"]


def test_evaluation_has_no_dropout_and_adds_to_what_it_is_given(functions_and_mesh, batch_of):
    functions, _ = functions_and_mesh
    params = functions.init().params
    one, other = (functions.evaluate(params, zero_sums(), functions.put(batch_of(seed))) for seed in (1, 2))
    both = functions.evaluate(params, one, functions.put(batch_of(2)))
    again = functions.evaluate(params, zero_sums(), functions.put(batch_of(1)))
    for name, value in both.items():
        np.testing.assert_allclose(value, one[name] + other[name], rtol=1e-6)
        assert one[name] == again[name]


def test_a_batch_that_the_mesh_does_not_divide_is_refused(with_train):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="train.batch_size 6 .* mesh.data x mesh.fsdp = 4"):
        build_functions(with_train(batch_size=6), mesh)


def test_bfloat16_products_leave_the_state_float32_and_the_loss_near(functions_and_mesh, batch_of, with_train):
    """A loss near log(90) + log(2); bfloat16 rounds to 2^-9 what goes into each product: one percent is asked."""
    functions, mesh = functions_and_mesh
    low = build_functions(with_train(compute_dtype="bfloat16"), mesh)
    state, batch = functions.init(), functions.put(batch_of(0))
    after, outcome = jax.eval_shape(low.train, state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.sums, outcome.loss))} == {np.dtype(np.float32)}
    exact, rounded = (summarize(f.evaluate(state.params, zero_sums(), batch))["loss"] for f in (functions, low))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
