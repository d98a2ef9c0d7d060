"""The selective scans equal the Mamba, Jamba and Mamba-2 mixers of transformers 5.23.0.

`tests/data/ssm_parity.npz` (made by `peers_export/export_ssm.py`) holds mixers whose weights are all random, in float64: outputs
of one full pass and all gradients. It needs no torch. One test makes other cases where a Python that has torch and transformers
is at hand:

    MEMTOK_SSM_PYTHON=/path/to/python pytest tests/test_peer_ssm.py
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit
from peers import assert_close_to_peer, export, part

from memtok_jax.memory import ssm

STORED = Path(__file__).with_name("data") / "ssm_parity.npz"
CASES = ("mamba", "jamba", "mamba2", "mamba2_groups")


def ours_from(theirs: dict, cfg) -> dict:
    """Our parameters out of their named ones, or our form of their gradients: both are permutations."""
    w = lambda name: {"w": jnp.asarray(theirs[f"{name}.weight"].T)}
    conv = {"w": jnp.asarray(theirs["conv1d.weight"][:, 0].T), "b": jnp.asarray(theirs["conv1d.bias"])}
    e = cfg.channels
    projected = theirs["in_proj.weight"].T
    if isinstance(cfg, ssm.MambaConfig):
        inner, z = np.split(projected, 2, axis=1)
        norms = {ours: jnp.asarray(theirs[f"{name}_layernorm.weight"]) for ours, name in
                 (("step", "dt"), ("write", "b"), ("read", "c"))} if cfg.norms else {}
        branch = {"conv": conv, "selection": w("x_proj")["w"], "step": w("dt_proj") | {"b": jnp.asarray(theirs["dt_proj.bias"])},
                  "log_rate": jnp.asarray(theirs["A_log"].T), "skip": jnp.asarray(theirs["D"]), "norms": norms}
        return {"x": {"w": jnp.asarray(inner)}, "z": {"w": jnp.asarray(z)}, "o": w("out_proj"), "branch": branch}
    branch = {"conv": conv, "step_bias": jnp.asarray(theirs["dt_bias"]), "log_rate": jnp.asarray(theirs["A_log"]),
              "skip": jnp.asarray(theirs["D"])}
    return {"x": {"w": jnp.asarray(projected[:, e:])}, "z": {"w": jnp.asarray(projected[:, :e])}, "o": w("out_proj"),
            "branch": branch, "norm": jnp.asarray(theirs["norm.weight"])}


def check(path: Path, name: str) -> None:
    """Outputs, and gradients of inputs and of all parameters."""
    stored = np.load(path)
    with jax.enable_x64(True):
        kind = ssm.Mamba2Config if name.startswith("mamba2") else ssm.MambaConfig
        cfg = kind(block=4, **json.loads(str(stored["settings"]))[name])
        module, x = ssm.MODULES[kind], jnp.asarray(stored[f"{name}/x"])
        params, want = (ours_from(part(stored, name, kind), cfg) for kind in ("param", "grad"))
        state = jax.tree.map(lambda s: s.astype(jnp.float64), module.init_state(params, cfg, len(x)))

        def scalar(params, x):
            y, _ = module.apply(params, state, x, cfg)
            return (y * stored[f"{name}/weights"]).sum(), y

        (found, for_x), y = jit(jax.grad(scalar, (0, 1), has_aux=True))(params, x)
    assert_close_to_peer((y, for_x, found), (stored[f"{name}/y"], stored[f"{name}/grad/x"], want))
    assert min(np.abs(g).max() for g in jax.tree.leaves(want)) > 1e-3, "the case tests nothing"


@pytest.mark.parametrize("name", CASES)
def test_equals_stored_case(name):
    check(STORED, name)


def test_equals_transformers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_ssm", path, "--seed=5", "--batch=3", "--tokens=14", variable="MEMTOK_SSM_PYTHON",
           imports=("torch", "transformers"), needs="torch and transformers==5.23.0")
    for name in CASES:
        check(path, name)
