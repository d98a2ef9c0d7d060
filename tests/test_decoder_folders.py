"""What is wrong with a folder of a pretrained model is told in one line that names the file, the field or the array."""

from __future__ import annotations

import json

import numpy as np
import pytest
from decoder_cases import STORED, Case, load

from memtok_jax.config import UserError
from memtok_jax.convert import decoders, tensor_files
from memtok_jax.convert.decoders.folder import is_pretrained


@pytest.fixture
def case():
    return Case(STORED, "llama")


@pytest.fixture
def folder(case, tmp_path):
    return case.folder(tmp_path)


def refused(folder, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as found:
        load(folder, **options)
    assert "\n" not in str(found.value)


def test_files(folder):
    assert is_pretrained(folder) and not is_pretrained(folder.parent)
    refused(folder / "nowhere", "nowhere is no folder; give the folder that holds a model's config.json")
    refused(folder.parent, "has no config.json")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused(folder, "model.safetensors is cut off: its header tells of .* fetch it again")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(folder, "model.safetensors is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    weights.write_text("<!DOCTYPE html><html>log in</html>")
    refused(folder, "model.safetensors is a web page, not a model: a gated model must be asked for")
    weights.unlink()
    refused(folder, "has neither model.safetensors nor model.safetensors.index.json")
    (folder / "consolidated.safetensors").write_bytes(whole)
    refused(folder, "only consolidated.safetensors, the layout of the model's makers")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(folder, r"its weights as pickles only \(pytorch_model.bin\), which are not opened")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}))
    refused(folder, "names x.safetensors, which is not there .2 of 2 files are missing.: the download is incomplete")
    (folder / "config.json").rename(folder / "params.json")
    refused(folder, "layout of the model's makers .params.json.")


def test_arrays(case, folder):
    weights = case.weights("redrawn")
    write = lambda arrays: tensor_files.write_safetensors(folder / "model.safetensors", arrays)
    write({name: array for name, array in weights.items() if "layers.2.mlp" not in name})
    refused(folder, "the file lacks 'layers.2.mlp.down_proj.weight' of the llama of 3 layers in .* .3 missing")
    write(weights | {"model.layers.3.mlp.up_proj.weight": np.zeros((48, 32), np.float32)})
    refused(folder, "'layers.3.mlp.up_proj.weight' has no place in the llama of 3 layers in .* .1 left over")
    write(weights | {"model.layers.1.self_attn.k_proj.weight": np.zeros((32, 32), np.float32)})
    refused(folder, r"k_proj.weight has the shape \(32, 32\), the llama of 3 layers in .* has \(16, 32\)")
    write(weights | {"model.norm.weight": np.zeros(32, np.int8)})
    refused(folder, "norm.weight holds int8 numbers; only weights in floating point can be converted")
    write({name: array for name, array in weights.items() if name != "lm_head.weight"})
    refused(folder, "lacks 'lm_head.weight'")
    # What old files hold beside the parameters has no place and no meaning.
    write(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})
    load(folder)


def test_words(case, tmp_path):
    tied = case.folder(tmp_path, tie_word_embeddings=True)
    refused(tied, "lm_head.weight differs from embed_tokens.weight, but config.json says tie_word_embeddings")
    same = case.weights("redrawn")
    tensor_files.write_safetensors(tied / "model.safetensors", same | {"lm_head.weight": same["model.embed_tokens.weight"]})
    assert "output" not in load(tied).params["words"]
    refused(case.folder(tmp_path, vocab_size=60), r"has the shape \(61, 32\), .* has \(60, 32\)")


@pytest.mark.parametrize("change, match", [
    (dict(model_type="lama"), "model_type='lama' is not among llama, .*; did you mean 'llama'"),
    (dict(hidden_act="relu"), "hidden_act='relu' means a function that the decoder does not have; only one of silu"),
    (dict(num_attention_heads=0), "num_attention_heads=0; it must be a whole number of at least 1"),
    (dict(rms_norm_eps="small"), "rms_norm_eps='small'; it must be a number of at least 0"),
    (dict(attention_bias="yes"), "attention_bias='yes'; it must be true or false"),
    (dict(rope_parameters=dict(rope_type="spiral")), "rope_type='spiral' is not known; known are default, linear"),
    (dict(quantization_config=dict(bits=4)), "tells of quantised weights"),
    (dict(num_key_value_heads=3), "kv_heads=3 does not divide the 4 heads of queries"),
])
def test_fields(case, tmp_path, change, match):
    refused(case.folder(tmp_path, **change), match)


@pytest.mark.parametrize("name, change, match", [
    ("mpt", dict(attn_config=dict(qk_ln=True)), "qk_ln=True means a function that the decoder does not have"),
    ("mpt", dict(attn_config=dict(alibi=False)), "alibi=False means"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True means"),
    ("smollm3", dict(no_rope_layers=[1, 2, 1]), "no_rope_layers must have 0 or 1 for each of 3 layers"),
    ("qwen2", dict(layer_types=["linear_attention"] * 3), "layer_types must name sliding_attention or full_attention"),
    ("falcon", dict(activation="silu"), "activation='silu' means"),
])
def test_fields_of_other_families(name, change, match, tmp_path):
    refused(Case(STORED, name).folder(tmp_path, **change), match)


def test_a_table_of_positions_ends(tmp_path):
    refused(Case(STORED, "gpt2").folder(tmp_path), "a table of 64 rows: context=65 must not be more", context=65)


def test_a_model_is_not_overwritten(folder):
    loaded = load(folder)
    with pytest.raises(UserError, match="holds a config.json already; give another folder"):
        decoders.save(folder, loaded.params, loaded.cfg, loaded.theirs)
