"""RMT over GPT-2 equals GPT-2 of the Hugging Face library (transformers 4.57.6) in a plain RMT loop.

`tests/data/hf_gpt2_rmt.npz` (made by `peers_export/export_hf_rmt.py`) holds a scrambled GPT-2, three segments for two rows, one
of them short and one empty, in float64: logits, memories and gradients. It needs no torch. One test runs the loop anew with other
numbers where a Python that has torch and transformers is at hand:

    MEMTOK_HF_PYTHON=/path/to/python pytest tests/test_peer_hf_gpt2.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit
from peers import export

from memtok_jax.convert import gpt2
from memtok_jax.models import recurrent

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "data" / "hf_gpt2_rmt.npz"


def read(path: Path):
    """(arrays, settings, their state dict)."""
    stored = np.load(path)
    theirs = {name.removeprefix("param/"): stored[name] for name in stored.files if name.startswith("param/")}
    return stored, json.loads(str(stored["settings"])), theirs


def model_of(settings, **options):
    return gpt2.config_of(settings["config"], settings["segment"], settings["tokens"], ends="call", **options)


def assert_equal_to(path: Path) -> None:
    """Logits, memories and every gradient; rows of different lengths side by side, padded."""
    stored, settings, theirs = read(path)
    with jax.enable_x64(True):
        cfg = model_of(settings)
        params = gpt2.from_gpt2(theirs, cfg, jax.random.key(0)) | {"memory": {"tokens": jnp.asarray(stored["memory"])}}
        lengths = jnp.asarray(np.array(settings["lengths"]).T, jnp.int32)
        real = np.arange(cfg.segment) < np.array(settings["lengths"])[..., None]

        def scalar(params):
            def one(state, x):
                logits, state = recurrent.apply(params, state, *x[:1], cfg, x[1])
                return state, (logits, state.memory.tokens)

            xs = (jnp.moveaxis(jnp.asarray(stored["ids"], jnp.int32), 1, 0), lengths)
            _, (logits, memories) = jax.lax.scan(one, recurrent.init_state(params, cfg, len(real)), xs)
            logits, memories = jnp.moveaxis(logits, 0, 1), jnp.moveaxis(memories, 0, 1)
            logits = jnp.where(real[..., None], logits, 0.0)
            return (logits * stored["r"]).sum() + (memories[:, -1] * stored["s"]).sum(), (logits, memories)

        gradient, (logits, memories) = jit(jax.grad(scalar, has_aux=True))(params)
        np.testing.assert_allclose(logits, stored["logits"], rtol=0, atol=1e-11)
        np.testing.assert_allclose(memories, stored["memories"], rtol=0, atol=1e-11)
        found = gpt2.to_gpt2(gradient, cfg)
        for name in theirs:
            want = stored[f"gradient/{name}"]
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-10 * np.abs(want).max() + 1e-10, err_msg=name)
        assert min(np.abs(stored[f"gradient/{name}"]).max() for name in theirs) > 1e-2, "the case tests nothing"
        np.testing.assert_allclose(gradient["memory"]["tokens"], stored["gradient/memory"], rtol=0, atol=1e-9)


def test_equals_stored_case():
    assert_equal_to(STORED)


def test_round_trip_is_exact():
    _, settings, theirs = read(STORED)
    with jax.enable_x64(True):
        cfg = model_of(settings)
        back = gpt2.to_gpt2(gpt2.from_gpt2(theirs, cfg, jax.random.key(0)), cfg)
        assert back.keys() - {"lm_head.weight"} == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(back[name], array)
            assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back["lm_head.weight"], theirs["transformer.wte.weight"])


def test_memory_is_drawn_as_large_as_the_words():
    _, settings, theirs = read(STORED)
    cfg = gpt2.config_of(settings["config"], 2, 7)
    tokens = gpt2.from_gpt2(theirs, cfg, jax.random.key(0))["memory"]["tokens"]
    assert 0.7 < np.asarray(tokens).std() / theirs["transformer.wte.weight"].std() < 1.3


def test_mistakes_are_named():
    _, settings, theirs = read(STORED)
    cfg, key = model_of(settings), jax.random.key(0)
    less = {name: array for name, array in theirs.items() if "h.1.mlp.c_fc.bias" not in name}
    with pytest.raises(ValueError, match="missing: h.1.mlp.c_fc.bias"):
        gpt2.from_gpt2(less, cfg, key)
    with pytest.raises(ValueError, match="no arrays of a GPT-2 with the given config: h.2.ln_1.bias"):
        gpt2.from_gpt2(theirs | {"h.2.ln_1.bias": np.zeros(12)}, cfg, key)
    with pytest.raises(ValueError, match=r"wpe.weight has shape \(15, 12\), the config asks for \(16, 12\)"):
        gpt2.from_gpt2(theirs | {"transformer.wpe.weight": np.zeros((15, 12))}, cfg, key)
    with pytest.raises(ValueError, match="tied=False: the output layer of GPT-2 is its embedding"):
        gpt2.from_gpt2(theirs, replace(cfg, tied=False), key)
    with pytest.raises(ValueError, match="activation_function='relu': only GPT-2"):
        gpt2.config_of(settings["config"] | {"activation_function": "relu"}, 4, 2)
    with pytest.raises(ValueError, match="positions=16 is less than the 18 rows"):
        gpt2.config_of(settings["config"], 12, 3)


def test_equals_transformers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_hf_rmt", path, "--seed=5", variable="MEMTOK_HF_PYTHON",
           imports=("torch", "transformers"), needs="torch and transformers==4.57.6")
    assert_equal_to(path)
