"""On a CPU the rows of a memory go through their chunks some after the other; that changes nothing but the order of the work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, config, jit, random_params, random_state, tokens

from memtok_jax import sharding
from memtok_jax.memory import neural
from memtok_jax.memory.neural import scan
from memtok_jax.training import hlo, roofline

ROWS = 4


def everything(cfg, whole: bool):
    """Reads, carry, statistics and all gradients of a call; rows of unequal length, inside a chunk, unless whole."""
    params = random_params(neural.specs(cfg), 0, jnp.float64)
    state, x = random_state(cfg, ROWS, 1, jnp.float64), tokens(cfg, ROWS, 3 * cfg.chunk, 2, jnp.float64)
    length = None if whole else jnp.asarray([0, 2, cfg.chunk + 1, 3 * cfg.chunk])
    state = state._replace(phase=jnp.zeros_like(state.phase), anchor=state.weights) if whole else state

    def loss(params, weights, x):
        y, after, found = neural.run(params, state._replace(weights=weights), x, cfg, length, whole=whole)
        return jnp.sin(y).sum() + sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(after.surprise)), (y, after, found)

    return jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, state.weights, x)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("near", [pytest.param(1, marks=pytest.mark.slow), None])
def test_rows_after_each_other_are_rows_side_by_side(whole, near, monkeypatch):
    """One row at a time (near 1) or two (weights of two rows fit); the statistics join all rows too."""
    with jax.enable_x64(True):
        cfg = config()
        size = sum(leaf.size for leaf in jax.tree.leaves(random_params(neural.specs(cfg), 0, jnp.float64)["init"])) * 8
        want = everything(cfg, whole)
        monkeypatch.setattr(scan, "NEAR", near or 2 * size)
        assert scan._rows_at_once(random_params(neural.specs(cfg), 0, jnp.float64)["init"], ROWS, 3) == (1 if near else 2)
        assert_close(everything(cfg, whole), want, 1e-11)


def test_all_rows_stay_together_where_nothing_is_gained(monkeypatch):
    """For one piece, and where the compiler divides rows over devices."""
    monkeypatch.setattr(scan, "NEAR", 1)
    start = {"w0": np.zeros((2, 3, 4), np.float32)}
    assert scan._rows_at_once(start, ROWS, 1) == ROWS and scan._rows_at_once(start, ROWS, 2) == 1
    with jax.set_mesh(sharding.make_mesh(1, 1, 1)):
        assert scan._rows_at_once(start, ROWS, 2) == ROWS


@pytest.mark.parametrize("divided", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_first_weights_are_summed_over_devices_once_and_not_at_every_chunk(divided, monkeypatch):
    """Sums over devices in the gradient of a call, loops counted with their trips, for 2 and 6 chunks; the control leaves the
    weights shared by all rows."""
    if not divided:
        monkeypatch.setattr(scan, "_for_rows", lambda start, slow, batch: scan.Learned(start, slow, None))
    cfg = config(width=8, head_dim=4, chunk=4)
    specs, mesh = neural.specs(cfg), sharding.make_mesh(4, 1, 2)

    def sums(chunks: int) -> int:
        loss = lambda params, x: jnp.square(neural.apply(params, neural.init_state(params, cfg, ROWS), x, cfg, whole=True)[0]).sum()
        with jax.set_mesh(mesh):
            params = jax.device_put(random_params(specs, 0, jnp.float32), sharding.shardings(mesh, specs))
            x = jax.device_put(tokens(cfg, ROWS, chunks * cfg.chunk, 2, jnp.float32), sharding.rows(mesh))
            text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
        return roofline.cost_of(hlo.parse(text)).collectives.get("all-reduce", 0)

    assert (sums(6) == sums(2)) == divided
