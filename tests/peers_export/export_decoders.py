"""Logits of tiny decoders of the Hugging Face library, one for each family and kind of positions.

    PYTHON tests/peers_export/export_decoders.py --output=tests/data/decoder_parity.npz            (transformers==5.23.0, torch)
    PYTHON tests/peers_export/export_decoders.py --output=FILE --read=FOLDER                       logits of models in folders

Each model is saved by the library, its file is filled with the numbers of `decoder_random.py`, and the library loads it again.
Arrays: ids [B, T]; CASE/INIT/logits f64[B, T, columns], computed in float64 throughout; with --float32 also CASE/INIT/single
f32[B, T, V], as the library computes. settings: JSON, CASE -> config.json, shapes of all arrays in the file, whether norms have an
offset. With --read: NAME/logits f32[B, T, V] of each folder NAME; what the library then saves is in FOLDER/NAME/back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from decoder_random import INITS, ids, weights
from safetensors import safe_open
from safetensors.numpy import save_file
from torch_cases import keep_float64

V, TOKENS = 61, 24
Z = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
         max_position_embeddings=64)
NEOX = {name: value for name, value in Z.items() if name != "num_key_value_heads"}
FALCON = dict(vocab_size=V, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0)
LONG = dict(rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.5, short_factor=[1.0, 1.1], long_factor=[1.5, 2.5])
GEMMA3 = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def rope(kind: str, **more) -> dict:
    return dict(rope_type=kind, rope_theta=1e4, **more)


CASES = {
    "llama": lambda: hf.LlamaConfig(**Z),
    "llama_linear": lambda: hf.LlamaConfig(**Z, rope_parameters=rope("linear", factor=4.0)),
    "llama_dynamic": lambda: hf.LlamaConfig(**Z | dict(max_position_embeddings=16), rope_parameters=rope("dynamic", factor=2.0)),
    "llama_llama3": lambda: hf.LlamaConfig(**Z, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama_yarn": lambda: hf.LlamaConfig(**Z, rope_parameters=YARN),
    "llama_yarn_plain_ends": lambda: hf.LlamaConfig(**Z, rope_parameters=YARN | dict(truncate=False, beta_fast=2.0, beta_slow=0.25,
                                                                                     mscale=1.0, mscale_all_dim=0.7)),
    "llama_biases": lambda: hf.LlamaConfig(**Z, attention_bias=True, mlp_bias=True),
    "mistral": lambda: hf.MistralConfig(**Z, head_dim=16, sliding_window=5),
    "qwen2": lambda: hf.Qwen2Config(**Z, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**Z, head_dim=16),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**NEOX, rope_parameters=rope("default", partial_rotary_factor=0.25)),
    "gpt_neox_serial": lambda: hf.GPTNeoXConfig(**NEOX, use_parallel_residual=False,
                                                rope_parameters=rope("default", partial_rotary_factor=1.0)),
    "falcon": lambda: hf.FalconConfig(**FALCON),
    "falcon_groups": lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "falcon_groups_one_norm": lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True,
                                                      num_ln_in_parallel_attn=1),
    "falcon_alibi": lambda: hf.FalconConfig(**FALCON | dict(hidden_size=36, num_attention_heads=6), alibi=True, multi_query=False,
                                            parallel_attn=False, bias=True),
    "mpt": lambda: hf.MptConfig(vocab_size=V, d_model=36, n_heads=6, n_layers=3, max_seq_len=64),
    "mpt_clip": lambda: hf.MptConfig(vocab_size=V, d_model=36, n_heads=6, n_layers=3, max_seq_len=64,
                                     attn_config=dict(clip_qkv=1.0)),
    "smollm3": lambda: hf.SmolLM3Config(**Z, no_rope_layers=[1, 0, 1], pad_token_id=0),
    "olmo2": lambda: hf.Olmo2Config(**Z),
    "gemma": lambda: hf.GemmaConfig(**Z, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**Z, head_dim=16, query_pre_attn_scalar=24, sliding_window=5, attn_logit_softcapping=2.0,
                                      final_logit_softcapping=3.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**Z, head_dim=16, query_pre_attn_scalar=24, sliding_window=5, layer_types=KINDS,
                                          rope_parameters=GEMMA3),
    "phi3": lambda: hf.Phi3Config(**Z, pad_token_id=0, eos_token_id=0, sliding_window=5),
    "phi3_longrope": lambda: hf.Phi3Config(**Z, pad_token_id=0, eos_token_id=0, original_max_position_embeddings=16,
                                           rope_parameters=LONG),
    "gpt2": lambda: hf.GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=3, n_head=4),
}


def attention_of(kind: str) -> str:
    """Their eager attention adds Falcon's ALiBi twice."""
    return "sdpa" if kind == "falcon" else "eager"


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The library's model of a folder; every array must have its place."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True,
                                                          attn_implementation=attention_of(kind))
    assert not any(info.values()), info
    return model.eval()


def logits_of(model: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(batch), use_cache=False).logits.numpy()


def save_new(config, folder: Path) -> dict:
    """Save a new model; the settings of its case."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    return {"config": json.loads((folder / "config.json").read_text()), "shapes": shapes,
            "offset": config.model_type.startswith("gemma")}


def cases(chosen: list[str], seed: int, batch: np.ndarray, single: bool, root: Path) -> tuple[dict, dict]:
    """(arrays, settings)."""
    arrays, settings = {}, {}
    for name in chosen:
        settings[name] = save_new(CASES[name](), root / name)
        for init in INITS:
            drawn = weights(settings[name]["shapes"], init, settings[name]["offset"], seed)
            (root / name / init).mkdir()
            (root / name / init / "config.json").write_text(json.dumps(settings[name]["config"]))
            save_file(drawn, root / name / init / "model.safetensors", {"format": "pt"})
            if single:
                arrays[f"{name}/{init}/single"] = logits_of(load(root / name / init, torch.float32), batch)
    doubles = {(name, init): load(root / name / init, torch.float64) for name in chosen for init in INITS}
    float64_everywhere()
    for (name, init), model in doubles.items():
        arrays[f"{name}/{init}/logits"] = logits_of(with_new_angles(model), batch)
        assert arrays[f"{name}/{init}/logits"].dtype == np.float64
    return arrays, settings


def float64_everywhere() -> None:
    """Let every cast to float32 be one to float64. Files cannot be read after this."""
    keep_float64()
    torch.float = torch.float32 = torch.float64
    torch.set_default_dtype(torch.float64)


def with_new_angles(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its rotary frequencies computed again, in float64 now."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RotaryEmbedding"):
                setattr(module, name, type(child)(config=model.config))
    return model


def read_folders(root: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    out = {}
    for folder in sorted(path.parent for path in root.glob("*/config.json")):
        model = load(folder, torch.float32)
        out[f"{folder.name}/logits"] = logits_of(model, batch)
        model.save_pretrained(folder / "back")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--columns", type=int, default=4, help="Words whose logits are written; 0: all.")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--read", default="")
    parser.add_argument("--words", type=int, default=V, help="Words of the models that are read.")
    flags = parser.parse_args()
    batch = ids(flags.batch, flags.tokens, flags.words, flags.seed)
    if flags.read:
        np.savez_compressed(flags.output, ids=batch, **read_folders(Path(flags.read), batch))
        return
    with tempfile.TemporaryDirectory() as root:
        arrays, settings = cases(flags.cases.split(","), flags.seed, batch, flags.float32, Path(root))
    cut = {name: x[..., :flags.columns] if flags.columns and name.endswith("/logits") else x for name, x in arrays.items()}
    np.savez_compressed(flags.output, ids=batch, settings=json.dumps(settings), seed=flags.seed, **cut)


if __name__ == "__main__":
    main()
