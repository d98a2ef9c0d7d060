"""The config.json of a folder that is written: in both spellings, so that old and new readers find the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Class that transformers loads a model_type with, where it is not the type in capitals with ForCausalLM behind it.
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
           "smollm3": "SmolLM3ForCausalLM", "olmo2": "Olmo2ForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
           "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
           "falcon": "FalconForCausalLM", "mpt": "MptForCausalLM", "gpt2": "GPT2LMHeadModel"}


def config(theirs: Mapping[str, Any], dtype: str, tied: bool) -> dict[str, Any]:
    """The fields to write. theirs: those of the model that was read. dtype: of the weights."""
    out = dict(theirs) | {"architectures": [CLASSES[theirs["model_type"]]], "dtype": dtype, "torch_dtype": dtype,
                          "tie_word_embeddings": tied}
    new = out.get("rope_parameters")
    if new and any(isinstance(value, dict) for value in new.values()):
        full, near = new.get("full_attention") or {}, new.get("sliding_attention") or {}
        return out | _old(full) | ({"rope_local_base_freq": near["rope_theta"]} if "rope_theta" in near else {})
    if new:
        neox = theirs["model_type"] == "gpt_neox"
        named = {"partial_rotary_factor": "rotary_pct" if neox else "partial_rotary_factor",
                 "rope_theta": "rotary_emb_base" if neox else "rope_theta"}
        return out | _old(new) | {old: new[name] for name, old in named.items() if name in new}
    return out


def _old(new: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as files of transformers 4 have them."""
    kind = new.get("rope_type", "default")
    scaling = {name: value for name, value in new.items() if name not in ("rope_theta", "partial_rotary_factor")}
    base = {"rope_theta": float(new["rope_theta"])} if "rope_theta" in new else {}
    return base if kind == "default" else base | {"rope_scaling": scaling | {"type": kind}}
