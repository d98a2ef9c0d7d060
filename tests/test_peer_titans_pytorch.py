"""The neural memory equals titans-pytorch 0.5.5 in the mode in which that library computes the paper's rule.

`tests/data/titans_pytorch_parity.npz` (made by `peers_export/export_titans_pytorch.py`) holds one of its layers with
random parameters, in float64: 20 tokens in chunks of 6, so the last chunk stays open. One test needs no torch;
the other runs torch with other random numbers and another chunk where a Python that has it is named:

    MEMTOK_PEER_PYTHON=/path/to/python pytest -m peer
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import export

from memtok_jax.memory.neural import NeuralMemoryConfig, literal, scan
from memtok_jax.memory.neural.rule import Carry, Inputs

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "data" / "titans_pytorch_parity.npz"
FAST = {"memory_model_parameters.0": "gamma", "memory_model_parameters.1": "w0", "memory_model_parameters.2": "w1"}


def _config(settings: dict) -> NeuralMemoryConfig:
    """Our options for their rule: fast norm, forgetting to zero, and the mean over K in the inner loss."""
    return NeuralMemoryConfig(
        width=settings["heads"] * settings["head_dim"],
        head_dim=settings["head_dim"],
        chunk=settings["chunk"],
        fast_norm=True,
        forget_to="zero",
        read="after",
        surprise_clip=0.0,
        loss_scale=1 / settings["head_dim"],
    )


def _rms(x, weight):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + jnp.finfo(x.dtype).eps) * weight.reshape(1, 1, -1)


def _layer(params: dict, x, cfg: NeuralMemoryConfig, step_max: float, view):
    """Their layer around our memory: what stands before and after the rule is theirs. Returns y and our carry."""
    batch, tokens, _ = x.shape
    written, asked = _rms(x, params["store_norm.weight"]), _rms(x, params["retrieve_norm.weight"])

    def heads(u, name):
        return (u @ params[f"{name}.weight"].T).reshape(batch, tokens, cfg.heads, cfg.head_dim)

    def logits(name):
        return written @ params[f"{name}.0.weight"].T + params[f"{name}.0.bias"].reshape(1, 1, -1)

    inputs = Inputs(
        heads(written, "to_keys"),
        heads(written, "to_values"),
        heads(asked, "to_queries"),
        step_max * jax.nn.sigmoid(logits("to_adaptive_step")),
        jax.nn.log_sigmoid(logits("to_momentum")),
        jax.nn.log_sigmoid(-logits("to_decay_factor")),
        None,
    )
    start = {ours: params[theirs] for theirs, ours in FAST.items()}
    zeros = {name: jnp.zeros((batch, *w.shape)) for name, w in start.items()}
    rows = jnp.zeros((batch,), jnp.int32)
    y, carry = view.run(start, {}, Carry(zeros, zeros, zeros), rows, rows + tokens, inputs, cfg)[:2]
    y = y * jax.nn.sigmoid(asked @ params["retrieve_gate.0.weight"].T)[..., None]
    return y.reshape(batch, tokens, -1) @ params["combine_heads.weight"].T, carry


def _assert_equal_to(path: Path, view) -> None:
    """Outputs, end weights, momentum and every gradient of the stored case, computed by one view of our rule."""
    stored = np.load(path)
    settings = json.loads(str(stored["settings"]))
    with jax.enable_x64(True):
        cfg = _config(settings)
        params = {
            name.removeprefix("param/"): jnp.asarray(stored[name]) for name in stored.files if name.startswith("param/")
        }

        def scalar(params, x):
            y, carry = _layer(params, x, cfg, settings["step_max"], view)
            return (y * stored["r"]).sum(), (y, carry)

        (of_params, of_x), (y, carry) = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(
            params, jnp.asarray(stored["x"])
        )
        np.testing.assert_allclose(y, stored["y"], rtol=0, atol=1e-12)
        for i, (theirs, ours) in enumerate(FAST.items()):
            weights = params[theirs][None] + carry.weights[ours]
            np.testing.assert_allclose(weights, stored[f"weights/{i}"], rtol=0, atol=1e-12)
            np.testing.assert_allclose(carry.surprise[ours], stored[f"surprise/{i}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(of_x, stored["grad/x"], rtol=0, atol=1e-9)
        for name, gradient in of_params.items():
            assert np.abs(stored[f"grad/{name}"]).max() > 1, f"{name} has hardly any gradient: the case tests nothing"
            np.testing.assert_allclose(gradient, stored[f"grad/{name}"], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("view", [scan, literal], ids=["chunked", "literal"])
def test_equals_stored_case(view):
    _assert_equal_to(STORED, view)


def test_stored_case_depends_on_the_chunk():
    """Another chunk is another function: the equality above is no accident of a rule without chunks."""
    stored = np.load(STORED)
    settings = json.loads(str(stored["settings"]))
    with jax.enable_x64(True):
        params = {
            name.removeprefix("param/"): jnp.asarray(stored[name]) for name in stored.files if name.startswith("param/")
        }
        cfg = _config(settings | {"chunk": 5})
        y, _ = jax.jit(lambda params, x: _layer(params, x, cfg, settings["step_max"], scan))(params, stored["x"])
        assert np.abs(y - stored["y"]).max() > 1e-3


@pytest.mark.peer
def test_equals_titans_pytorch_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_titans_pytorch", path, "--seed=1", "--batch=1", "--length=32", "--chunk=8", variable="MEMTOK_PEER_PYTHON",
           imports=("torch", "titans_pytorch"), needs="torch and titans-pytorch==0.5.5")
    _assert_equal_to(path, scan)
