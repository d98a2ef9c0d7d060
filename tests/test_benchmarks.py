"""What the benchmarks compare is one and the same function, and the operations are counted right."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import associative_scan, flops, measure, stream
from benchmarks import vit as vit_speed
from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.memory.neural import scan
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig


def _wide(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


@pytest.mark.slow
def test_associative_scan_is_the_chunked_form():
    cfg = neural.NeuralMemoryConfig(width=8, head_dim=4, expansion=2, chunk=4, step_max=0.3)
    with jax.enable_x64(True):
        params = _wide(P.init_params(neural.specs(cfg), jax.random.key(0)))
        state = _wide(neural.init_state(params, cfg, 2))
        x, r = jax.random.normal(jax.random.key(1), (2, 2, 8, 8))

        def scalar(params, view):
            y, after, _ = neural.run(params, state, x, cfg, whole=True, view=view)
            return (y * r).sum() + sum(jnp.square(w).sum() for w in jax.tree.leaves(after[:3]))

        run = jax.jit(jax.value_and_grad(scalar), static_argnums=1)
        ours, theirs = run(params, scan), run(params, associative_scan)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), ours, theirs)


def test_count_of_operations_is_near_the_compiler_s():
    """One chunk, where the loop's body runs once, so the compiler's count is right too; it adds elementwise work."""
    from benchmarks.our_cases import layer, layer_specs
    cfg = neural.NeuralMemoryConfig(width=128, head_dim=64, chunk=64)
    params, x = P.abstract(layer_specs(cfg)), jax.ShapeDtypeStruct((1, 64, 128), jnp.float32)
    state = P.abstract(neural.state_specs(cfg, 1))
    compiled = jax.jit(lambda p, s, x: layer(p, s, x, cfg, scan)).lower(params, state, x).compile()
    counted = 64 * flops.layer_per_token(128, 2, 64)
    assert 0.95 < compiled.cost_analysis()["flops"] / counted < 1.15


def test_measure_reports_medians_and_failures():
    result = measure.measure(lambda: sum(range(1000)), seconds=0.01)
    assert result["repeats"] >= 3 and result["best_s"] <= result["seconds"] and measure.peak_mb() > 10
    assert measure.median_of([{"a": 1.0, "b": "x"}, {"a": 3.0, "b": "x"}, {"a": 2.0, "b": "x"}]) == {"a": 2.0, "b": "x"}
    assert measure.median_of([{"a": 1.0}, {"failed": "no"}]) == {"failed": "no"}


def test_operations_of_a_vision_transformer_are_counted_right():
    """Against the compiler's count of the same pass with its layers side by side (a loop would count once)."""
    sizes = dict(width=128, layers=2, patch=8)
    for registers in (0, 4):
        cfg = VitConfig(**sizes, heads=2, hidden=512, grid=(8, 8), registers=registers, unroll=2)
        x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        lowered = jax.jit(lambda p, x, cfg=cfg: vit.features(p, x, cfg).prenorm).lower(P.abstract(vit.specs(cfg)), x)
        counted = vit_speed.forward_operations(registers, 64, **sizes)
        assert 1.0 < lowered.compile().cost_analysis()["flops"] / counted < 1.05


@pytest.mark.parametrize("model", ["lmm", "mag", "mac"])
def test_the_models_that_are_streamed_can_be_made(model):
    cfg = stream.small_experiment({"model": model, "width": 64, "layers": 1, "train_steps": 10}).model
    assert (cfg.prefix > 0) == (model != "lmm")
