"""Models that were trained here, as folders of pretrained models: the same function, or a line that says why not; and the same
parameters whether a folder is read whole or onto a mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import STORED, Case, whole
from neural_cases import jit, random_params
from peers import ROOT, export

from memtok_jax import config
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import decoders
from memtok_jax.models import language_model as lm
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import GPT2, GPT2_RELATIVE, TITANS
from memtok_jax.sharding import make_mesh, shardings

SIZES = dict(vocabulary=62, width=32, layers=3, head_dim=8)
MODELS = {
    "windows": LanguageModelConfig(**SIZES, kv_heads=2, pattern=(WindowConfig(5),)),
    "segments": LanguageModelConfig(**SIZES, segment=24, pattern=(SegmentConfig(),), hidden=48,
                                    style=replace(TITANS, bias=True, eps=1e-3, rope_base=500.0, embedding="matrix")),
    "gpt2": LanguageModelConfig(**SIZES, segment=24, pattern=(SegmentConfig(),), style=replace(GPT2, feed_forward="relu")),
    "tied": LanguageModelConfig(**SIZES, pattern=(WindowConfig(24),), style=replace(TITANS, scale_embedding=False)),
}
KINDS = {"windows": "mistral", "segments": "llama", "gpt2": "gpt2", "tied": "mistral"}
IDS = np.random.default_rng(0).integers(0, 62, (2, 24)).astype(np.int32)


def drawn(cfg):
    return jit(lambda: random_params(lm.specs(cfg), 0, jnp.float32))()


@pytest.mark.parametrize("name", [n if n == "windows" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_what_is_written_computes_the_same(name, tmp_path):
    """Read again, the logits are those of the model that was trained, though its embeddings were scaled and tied."""
    cfg, params = MODELS[name], drawn(MODELS[name])
    theirs = decoders.save_ours(tmp_path / "out", params, cfg)
    assert theirs["model_type"] == KINDS[name] == json.loads((tmp_path / "out" / "config.json").read_text())["model_type"]
    loaded = decoders.load(tmp_path / "out", context=24)
    np.testing.assert_allclose(whole(loaded.params, loaded.cfg, IDS), whole(params, cfg, IDS), rtol=0, atol=2e-5)
    scale = np.float32(32 ** 0.5) if cfg.style.scale_embedding else np.float32(1)
    np.testing.assert_array_equal(loaded.params["words"]["embedding"], np.asarray(params["words"]["embedding"]) * scale)
    leaves = [jax.tree.leaves([next(v for k, v in layer.items() if k != "feed_forward"), layer["feed_forward"]])
              for layer in (loaded.params["layers"][0], params["layers"][0])]
    assert all(map(np.array_equal, *leaves))


@pytest.mark.parametrize("change, match", [
    (dict(pattern=(WindowConfig(5, sinks=2),)), "has no place for sinks of a window"),
    (dict(prefix=3), "no place for sinks of a window and for prefix tokens; .* .this one has 3 tokens"),
    (dict(pattern=(WindowConfig(5), WindowConfig(6)), layers=4), "layers .* are windows or segments, all alike; .* in 2 kinds"),
    (dict(pattern=(CachedConfig(),), segment=24), "this model has CachedConfig in 1 kinds"),
    (dict(style=replace(TITANS, gate="head")), "model.style.gate='head' has no place .* whose nearest kind has 'none'"),
    (dict(style=replace(TITANS, norm="layer")), "model.style.norm='layer' has no place .* whose nearest kind has 'rms'"),
    (dict(style=replace(TITANS, bias=True)), "model.style.bias=True has no place"),
    (dict(style=replace(TITANS, feed_forward="gelu")), "hidden_act='gelu' means a function"),
    (dict(value_dim=4), "model.value_dim=4 has no place"),
    (dict(style=GPT2_RELATIVE, pattern=(SegmentConfig(),), segment=24), "has no place|means a function"),
])
def test_what_has_no_place_is_told_in_a_line(change, match):
    with pytest.raises(UserError, match=match) as found:
        decoders.check_ours(replace(MODELS["windows"], **change))
    assert "\n" not in str(found.value)


def test_configs_of_the_project_that_have_a_place():
    assert decoders.check_ours(config.load("transformer:full").model)["sliding_window"] == 512
    with pytest.raises(UserError, match="LmmConfig"):
        decoders.check_ours(replace(config.load("titans_lmm").model, prefix=0))


@pytest.mark.parametrize("name", ["llama", "falcon_groups", "gemma3", "phi3", "gpt2"])
@pytest.mark.parametrize("mesh", [(2, 4, 1), (8, 1, 1)], ids=str)
def test_onto_a_mesh_is_the_same(name, mesh, tmp_path):
    """Every array lies as the rules say and holds the same bits: fused arrays, stacked layers, matrices [in, out]."""
    folder = Case(STORED, name).folder(tmp_path)
    want = decoders.load(folder, context=24)
    found = decoders.load_onto(make_mesh(*mesh), folder, context=24)
    assert found[1:] == want[1:]
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)


@pytest.mark.parametrize("name", ["windows", "gpt2"])
def test_every_axis_of_a_mesh_divides(name, tmp_path):
    cfg, mesh = MODELS[name], make_mesh(2, 2, 2)
    decoders.save_ours(tmp_path / "out", drawn(cfg), cfg, file_bytes=20_000)
    want = decoders.load(tmp_path / "out", context=24)
    found = decoders.load_onto(mesh, tmp_path / "out", context=24)
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    assert jax.tree.map(lambda x: x.sharding, found.params) == shardings(mesh, lm.specs(found.cfg))
    assert len(found.params["words"]["embedding"].addressable_shards) == 8
    with pytest.raises(UserError, match="does not divide into 2"):
        decoders.load_onto(make_mesh(1, 1, 2), Case(STORED, "llama").folder(tmp_path), context=24)


def test_devices_that_share_a_part_do_not_share_an_update(tmp_path):
    """Parameters of a folder can be donated: two devices with the same part in one buffer both get the new one."""
    cfg, mesh = MODELS["windows"], make_mesh(4, 2, 1)
    decoders.save_ours(tmp_path / "out", drawn(cfg), cfg)
    want = decoders.load(tmp_path / "out").params
    found = decoders.load_onto(mesh, tmp_path / "out").params
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(found)
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(want), strict=True):
        for shard in new.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(old)[shard.index] + 1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2,2,2", "1,4,1"])
def test_memory_beside_the_result(mesh, tmp_path):
    """Reading 176 MB onto 8 devices takes, beside the result, at most 1.2 times the largest part of a device."""
    cfg = LanguageModelConfig(vocabulary=4096, width=768, layers=6, head_dim=64, kv_heads=4, hidden=2048, segment=64,
                              pattern=(SegmentConfig(),), style=replace(TITANS, scale_embedding=False, embedding="matrix"))
    rng = np.random.default_rng(0)
    arrays = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), P.abstract(lm.specs(cfg)))
    decoders.save_ours(tmp_path / "out", arrays, cfg, file_bytes=50_000_000)
    found = subprocess.run([sys.executable, "tests/load_memory.py", str(tmp_path / "out"), mesh], cwd=ROOT, capture_output=True,
                           env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT),
                                             "JAX_PLATFORMS": "cpu"}, text=True, timeout=120, check=True)
    told = json.loads(found.stdout)
    assert told["result"] > 1.7e8 and told["peak"] <= told["result"] + 1.2 * told["largest"], told


@pytest.mark.slow
def test_transformers_reads_them(tmp_path):
    for name, cfg in MODELS.items():
        decoders.save_ours(tmp_path / "ours" / name, drawn(cfg), cfg)
    export("export_decoders", tmp_path / "read.npz", f"--read={tmp_path / 'ours'}", "--words=62", variable="MEMTOK_HF5_PYTHON",
           imports=("torch", "transformers"), needs="torch and transformers==5.23.0")
    found = np.load(tmp_path / "read.npz")
    for name, cfg in MODELS.items():
        want = whole(drawn(cfg), cfg, found["ids"])
        assert np.abs(found[f"{name}/logits"] - want).max() < 2e-5 * want.std(), name
