"""The kernel view of the neural memory equals the chunked one: reads, carry, statistics and all gradients, in float64, interpreted.

Where the TPU compiler is installed, both kernels are also compiled for a chip that is not here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit, random_params

from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.memory import neural
from memtok_jax.memory.neural import kernel, scan
from memtok_jax.training.compile_only import TPU_ENVIRONMENT

WIDTH, CHUNK = 8, 4
CHIP_BYTES = 16 * 2 ** 20  # a v5e gives a kernel this much of its fast memory

CASES = {
    "default": {},
    "per_layer": dict(gates="per_layer", network="gated"),
    "swiglu-before-zero": dict(network="swiglu", read="before", forget_to="zero"),
    "fast vectors": dict(fast_norm=True, fast_bias=True),
    "channel": dict(gates="per_layer", forget_by="channel"),
}


def memory(**options) -> neural.NeuralMemoryConfig:
    return neural.NeuralMemoryConfig(**dict(width=WIDTH, head_dim=WIDTH // 2, chunk=CHUNK, expansion=2) | options)


def everything(cfg, view, params, state, x, weight):
    """Reads, carry, statistics, and the gradients of a loss of reads and carry with respect to parameters, carry and tokens."""

    def loss(params, weights, surprise, x):
        given = state._replace(anchor=weights, weights=weights, surprise=surprise)
        y, after, found = neural.run(params, given, x, cfg, whole=True, view=view)
        ends = sum(jnp.sin(leaf + n).sum() for n, leaf in enumerate(jax.tree.leaves((after.weights, after.surprise))))
        return (y * weight).sum() + ends, (y, after, found)

    return jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(params, state.weights, state.surprise, x)


@pytest.mark.parametrize("name", [name if name == "default" else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_equals_the_chunked_view(name, rows=2, chunks=3):
    with jax.enable_x64(True):
        cfg, rng = memory(**CASES[name]), np.random.default_rng(0)
        params = random_params(neural.specs(cfg), 0, jnp.float64)
        draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape)) if leaf.dtype == jnp.float32 else leaf
        state = jax.tree.map(draw, neural.init_state(params, cfg, rows))
        x, weight = (jnp.asarray(rng.normal(size=(rows, chunks * CHUNK, WIDTH))) for _ in range(2))
        got, want = (everything(cfg, view, params, state, x, weight) for view in (kernel, scan))
        assert_close(got, want, 1e-11)


def test_a_call_of_any_length_is_that_of_the_chunked_view():
    cfg, x = memory(view="kernel"), jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, WIDTH)), jnp.float32)
    params = random_params(neural.specs(cfg), 0, jnp.float32)
    state = neural.init_state(params, cfg, 1)
    got, want = (jit(lambda x, view=view: neural.run(params, state, x, cfg, view=view))(x) for view in (None, scan))
    assert_close(got, want, 0)


def test_forgetting_by_channel_needs_short_chunks():
    with pytest.raises(UserError, match="forget_by='channel' needs memory.chunk of at most 16, not 64"):
        memory(view="kernel", forget_by="channel", chunk=64)


@pytest.mark.tpu_backend
@pytest.mark.parametrize("options", [dict(chunk=64), dict(chunk=16, gates="per_layer", forget_by="channel")],
                         ids=["v1", "published"])
def test_both_kernels_compile_for_a_tpu(options):
    """In a process of its own: the TPU compiler ends a process whose XLA_FLAGS it does not know."""
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | TPU_ENVIRONMENT | {"PYTHONPATH": "."}
    program = Path(__file__).with_name("tpu_kernel.py")
    done = subprocess.run([sys.executable, program, json.dumps(options)], cwd=program.parent.parent, env=variables,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    taken = json.loads(done.stdout.splitlines()[-1])
    assert len(taken) == 2 and all(0 < size < CHIP_BYTES for size in taken)


@pytest.mark.slow
def test_on_a_mesh_each_device_runs_its_own_rows_and_heads():
    cfg, x = memory(view="kernel"), jnp.asarray(np.random.default_rng(0).normal(size=(2, 2 * CHUNK, WIDTH)), jnp.float32)
    params = random_params(neural.specs(cfg), 0, jnp.float32)
    state = neural.init_state(params, cfg, 2)
    loss = lambda params, x: jnp.square(neural.apply(params, state, x, cfg, whole=True)[0]).sum()
    want = jit(jax.grad(loss, (0, 1)))(params, x)
    mesh = sharding.make_mesh(2, 1, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(mesh, neural.specs(cfg))), jax.device_put(x, sharding.rows(mesh))
        got = jit(jax.grad(loss, (0, 1)))(*placed)
    assert_close(got, want, 1e-5)
