"""Our step, as the training loop runs it, with the attention that a run would choose, and the machine's own speed at a
large matrix product.
"""

import functools
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.train_step.case import PRODUCT_SIZE, PRODUCTS, Case, batches_of, product_factors
from data_pipeline.memory import keep_memory_of_steps
from flaxbert.interop.huggingface_tensors import to_tensors
from flaxbert.interop.safetensors_files import write_tensors
from flaxbert.model.products import results_dtype
from flaxbert.sharding import make_mesh
from flaxbert.training.attention_choice import chosen
from flaxbert.training.objective import summarize, zero_sums
from flaxbert.training.step import build_functions


class Ours:
    """`build_functions` on the one device that jax sees."""

    def __init__(self, case: Case, weights: str):
        """Writes the initial parameters to the file `weights`, under transformers' names."""
        if case.device == "cpu":
            keep_memory_of_steps()
        check_device(case)
        self.case, self.batches, self.steps = case, batches_of(case), 0
        self.mesh = make_mesh(case.experiment.mesh)
        self.said: list[str] = []
        with jax.set_mesh(self.mesh):
            experiment = chosen(case.experiment, self.mesh, self.said.append, os.path.dirname(weights))
            self.attention = "xla" if experiment.train.attention == "auto" else experiment.train.attention
            self.functions = build_functions(experiment, self.mesh)
            self.state = self.functions.init()
            write_tensors(Path(weights), to_tensors(jax.device_get(self.state.params), case.experiment.model))
            self.train = self.functions.train.lower(self.state, self.functions.put(self.batches[0])).compile()
        self.factors = [jnp.asarray(x, case.experiment.train.compute_dtype) for x in product_factors(case)]
        multiply = functools.partial(jnp.matmul, preferred_element_type=results_dtype(self.factors[0].dtype))
        self.multiply = jax.jit(multiply).lower(*self.factors).compile()

    def loss(self) -> float:
        """Of the first batch, without dropout."""
        with jax.set_mesh(self.mesh):
            sums = self.functions.evaluate(self.state.params, zero_sums(), self.functions.put(self.batches[0]))
        return summarize(jax.device_get(sums))["loss"]

    def attention_used(self) -> tuple[str, list[str]]:
        """(backend of attention, what was said of the choice)."""
        return self.attention, self.said

    def block(self, lead_in: int, steps: int) -> float:
        """Seconds of one step: `steps` of them are timed, after `lead_in` that are not."""
        with jax.set_mesh(self.mesh):
            self._run(lead_in)
            begin = time.perf_counter()
            self._run(steps)
            return (time.perf_counter() - begin) / steps

    def product(self) -> float:
        """FLOP/s of a large matrix product in the step's number format."""
        count, size = PRODUCTS[self.case.device], PRODUCT_SIZE[self.case.device]
        self.multiply(*self.factors).block_until_ready()
        begin = time.perf_counter()
        for _ in range(count):
            result = self.multiply(*self.factors)
        result.block_until_ready()
        return 2 * size**3 * count / (time.perf_counter() - begin)

    def peak_memory(self) -> int | None:
        """Bytes on the device at most; None where it is not told."""
        found = jax.devices()[0].memory_stats()
        return None if found is None else found["peak_bytes_in_use"]

    def _run(self, steps: int) -> None:
        outcome = None
        for _ in range(steps):
            batch = self.functions.put(self.batches[self.steps % len(self.batches)])
            self.state, outcome = self.train(self.state, batch)
            self.steps += 1
        jax.block_until_ready((self.state, outcome))


class Device:
    """What jax finds: asked before the cases are made, and in a process of its own, which leaves no memory taken."""

    def describe(self) -> dict[str, Any]:
        """`backend`, `kind` and `count`."""
        found = jax.devices()
        return {"backend": jax.default_backend(), "kind": found[0].device_kind, "count": len(found)}


def check_device(case: Case) -> None:
    """Raises ValueError where jax sees another number of devices than one: torch's step uses one."""
    if jax.device_count() != 1:
        raise ValueError(
            f"case {case.name}: jax sees {jax.device_count()} devices and torch's step uses one: choose it with "
            "CUDA_VISIBLE_DEVICES, or take --xla_force_host_platform_device_count out of XLA_FLAGS"
        )
