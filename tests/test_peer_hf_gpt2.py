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
import ml_dtypes
import numpy as np
import pytest
from neural_cases import assert_equal as assert_same
from neural_cases import jit
from peers import export
from rmt_cases import segment_call

from memtok_jax.config import UserError
from memtok_jax.convert import gpt2, tensor_files
from memtok_jax.models import rmt

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "data" / "hf_gpt2_rmt.npz"


def read(path: Path):
    """(arrays, settings, their state dict)."""
    stored = np.load(path)
    theirs = {name.removeprefix("param/"): stored[name] for name in stored.files if name.startswith("param/")}
    return stored, json.loads(str(stored["settings"])), theirs


def model_of(settings, **options):
    return gpt2.config_of(settings["config"], settings["segment"], settings["tokens"], **options)


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
                logits, state, _ = rmt.run(params, state, x[0], cfg, segment_call(x[1]))
                return state, (logits, state.memory.tokens)

            xs = (jnp.moveaxis(jnp.asarray(stored["ids"], jnp.int32), 1, 0), lengths)
            _, (logits, memories) = jax.lax.scan(one, rmt.init_state(params, cfg, len(real)), xs)
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


def test_half_precision_becomes_float32():
    """Parameters of float16 and bfloat16 are float32, and the memory is drawn with the deviation of the float32 words."""
    _, settings, theirs = read(STORED)
    cfg, key = gpt2.config_of(settings["config"], 2, 7), jax.random.key(0)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = {name: array.astype(dtype) for name, array in theirs.items()}
        found = gpt2.from_gpt2(half, cfg, key)
        assert_same(found, gpt2.from_gpt2({name: array.astype(np.float32) for name, array in half.items()}, cfg, key))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_an_output_layer_of_another_matrix_is_used(tmp_path):
    """A file whose lm_head is not its embedding: the config is untied, the head scores, and the way back is exact."""
    _, settings, theirs = read(STORED)
    head = np.random.default_rng(0).standard_normal(theirs["transformer.wte.weight"].shape).astype(np.float32)
    weights = {name: array.astype(np.float32) for name, array in theirs.items()} | {"lm_head.weight": head}
    tensor_files.write_safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(settings["config"]))
    params, cfg = gpt2.load_gpt2(tmp_path, 2, 2, jax.random.key(0))
    assert cfg.model.style.embedding == "matrix"
    np.testing.assert_array_equal(params["model"]["words"]["output"], head.T)
    assert_same(gpt2.to_gpt2(params, cfg), weights)
    tied = weights | {"lm_head.weight": weights["transformer.wte.weight"]}
    tensor_files.write_safetensors(tmp_path / "model.safetensors", tied)
    params, cfg = gpt2.load_gpt2(tmp_path / "model.safetensors", 2, 2, jax.random.key(0))
    assert cfg.model.style.embedding == "tied" and "output" not in params["model"]["words"]
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config.json does not exist; the number of heads is told nowhere else"):
        gpt2.load_gpt2(tmp_path, 2, 2, jax.random.key(0))


@pytest.mark.parametrize("front", ["", "module.transformer.", "_orig_mod.model.transformer.", "teacher."])
def test_prefixes_do_not_matter(front):
    _, settings, theirs = read(STORED)
    cfg, key = gpt2.config_of(settings["config"], 2, 2), jax.random.key(0)
    bare = {name.removeprefix("transformer."): array for name, array in theirs.items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 4, 4), bool), "h.0.attn.masked_bias": np.float32(-1e4)}
    assert_same(gpt2.from_gpt2({front + name: array for name, array in (bare | masks).items()}, cfg, key),
                gpt2.from_gpt2(theirs, cfg, key))


def untied(cfg):
    """The config with an output layer of its own."""
    return replace(cfg, model=replace(cfg.model, style=replace(cfg.model.style, embedding="matrix")))


def test_mistakes_are_named():
    _, settings, theirs = read(STORED)
    cfg, key = model_of(settings), jax.random.key(0)
    less = {name: array for name, array in theirs.items() if "h.1.mlp.c_fc.bias" not in name}
    with pytest.raises(UserError, match="lacks 'h.1.mlp.c_fc.bias' of a GPT-2 of 2 layers .1 missing"):
        gpt2.from_gpt2(less, cfg, key)
    with pytest.raises(UserError, match="'h.2.ln_1.bias' has no place in a GPT-2 of 2 layers"):
        gpt2.from_gpt2(theirs | {"h.2.ln_1.bias": np.zeros(12)}, cfg, key)
    with pytest.raises(UserError, match=r"wpe.weight has the shape \(15, 12\), a GPT-2 of 2 layers has \(16, 12\)"):
        gpt2.from_gpt2(theirs | {"transformer.wpe.weight": np.zeros((15, 12))}, cfg, key)
    with pytest.raises(UserError, match="lacks 'lm_head.weight'"):
        gpt2.from_gpt2(theirs, untied(cfg), key)
    with pytest.raises(UserError, match="lm_head.weight differs from wte.weight: .*; set style.embedding='matrix' in the config"):
        gpt2.from_gpt2(theirs | {"lm_head.weight": -theirs["transformer.wte.weight"]}, cfg, key)
    with pytest.raises(UserError, match="wte.weight holds int8 numbers"):
        gpt2.from_gpt2(theirs | {"transformer.wte.weight": np.zeros((9, 12), np.int8)}, cfg, key)
    with pytest.raises(UserError, match="n_head=None: the config of a GPT-2 must have a whole number above 0 there"):
        gpt2.config_of({name: value for name, value in settings["config"].items() if name != "n_head"}, 4, 2)
    with pytest.raises(UserError, match="activation_function='relu': only GPT-2"):
        gpt2.config_of(settings["config"] | {"activation_function": "relu"}, 4, 2)
    with pytest.raises(ValueError, match="positions=16 is less than the 18 places"):
        gpt2.config_of(settings["config"], 12, 3)


def test_equals_transformers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_hf_rmt", path, "--seed=5", variable="MEMTOK_HF_PYTHON",
           imports=("torch", "transformers"), needs="torch and transformers==4.57.6")
    assert_equal_to(path)
