"""Write small cases of attention as transformers computes it, for tests/test_peer_attention.py.

Runs in a Python with torch==2.13.0 and transformers==5.23.0:

    PEER_PYTHON tests/peers_export/export_attention.py --output=tests/data/attention_parity.npz

    llama      a whole model, two layers, grouped keys, with the mask of four pinned tokens and a window
    mistral    a whole model with its own sliding window
    mpt        one attention with linear biases (ALiBi)
    neox       one attention with rotary positions and biases in its projections
    gpt_oss    the attention function with a learned logit a head, grouped keys, and a sliding window
    falcon_h1  one layer: attention and Mamba-2 side by side, added, then the feed-forward network

Weights are random and float64; no case uses a cache. Each holds its weights (`CASE/param/NAME`), input (`CASE/x`), output
(`CASE/y`), weights of the sum of all outputs (`CASE/weights`) and the gradients of that sum (`CASE/grad/NAME`, and `CASE/grad/x`
if x is no id).
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch_cases import arrays_of, keep_float64, write
from transformers import FalconH1Config, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, MptConfig
from transformers.models.falcon_h1 import modeling_falcon_h1 as falcon
from transformers.models.gpt_neox import modeling_gpt_neox as neox
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

# The test has the same sizes.
VOCABULARY, WIDTH, HIDDEN, HEADS, GROUPS, SIZE, WINDOW, SINKS = 24, 16, 20, 4, 2, 4, 6, 4
SMALL = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": 2,
         "num_attention_heads": HEADS, "num_key_value_heads": GROUPS}

keep_float64()
softmax = torch.nn.functional.softmax
torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim)


def visible(tokens: int, window: int, sinks: int) -> torch.Tensor:
    """bool[T, T]: the last `window` tokens and the first `sinks`."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    return (key <= query) & ((query - key < window) | (key < sinks))


def added(mask: torch.Tensor) -> torch.Tensor:
    """A mask to add to scores: f64[1, 1, T, T]."""
    return torch.where(mask, 0.0, -1e30).double()[None, None]


def scrambled(module: torch.nn.Module, rng: np.random.Generator) -> torch.nn.Module:
    """The module in float64 with random weights, and frequencies that are right in float64."""
    module = module.double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            middle, size = (1.0, 0.3) if "norm" in name or name.endswith(".D") else (0.0, 0.3)
            weight.copy_(torch.from_numpy(middle + size * rng.standard_normal(weight.shape)))
        for name, buffer in module.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(10000.0 ** (-torch.arange(len(buffer), dtype=torch.float64) / len(buffer)))
    return module


def decoder(kind, config, mask) -> tuple:
    """Parameters by name and a function of ids."""
    return lambda rng: (model := scrambled(kind(config), rng), lambda ids: model(ids, attention_mask=mask, use_cache=False).logits)


def rotary(module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the positions of x[B, T, D]."""
    return scrambled(module, np.random.default_rng(0))(x, torch.arange(x.shape[1])[None])


def mpt(rng, tokens):
    """MPT's attention."""
    module = scrambled(MptAttention(MptConfig(d_model=WIDTH, n_heads=HEADS, max_seq_len=tokens), 0), rng)
    bias = build_mpt_alibi_tensor(HEADS, tokens).double()
    return module, lambda x: module(x, bias, attention_mask=~visible(tokens, tokens, 0))[0]


def gpt_neox(rng, tokens):
    """GPT-NeoX's attention, all features rotated."""
    config = GPTNeoXConfig(hidden_size=WIDTH, num_attention_heads=HEADS, rotary_pct=1.0, attn_implementation="eager")
    config.rope_parameters["partial_rotary_factor"] = 1.0
    module = scrambled(neox.GPTNeoXAttention(config, 0), rng)
    mask, turn = added(visible(tokens, tokens, 0)), neox.GPTNeoXRotaryEmbedding(config)
    return module, lambda x: module(x, mask, position_embeddings=rotary(turn, x))[0]


class GptOss(torch.nn.Module):
    """Their attention function on projections of our own."""

    def __init__(self):
        super().__init__()
        self.sinks = torch.nn.Parameter(torch.zeros(HEADS))
        self.q, self.k, self.v = (torch.nn.Linear(WIDTH, n * SIZE, bias=False) for n in (HEADS, GROUPS, GROUPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [p(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for p in (self.q, self.k, self.v)]
        options = SimpleNamespace(sinks=self.sinks, num_key_value_groups=HEADS // GROUPS, training=False)
        return gpt_oss_attention(options, *heads, added(visible(x.shape[1], WINDOW, 0)), SIZE ** -0.5)[0].flatten(2)


def falcon_h1(rng, tokens):
    """A layer of Falcon-H1 with all multipliers 1."""
    config = FalconH1Config(**SMALL, head_dim=SIZE, mamba_d_ssm=24, mamba_n_heads=6, mamba_d_head=4, mamba_n_groups=2,
                            mamba_d_state=5, mamba_d_conv=4, mamba_chunk_size=4, mamba_rms_norm=True, mamba_norm_before_gate=False,
                            attn_implementation="eager")
    layer = falcon.FalconH1DecoderLayer(config, 0)
    layer.mamba.register_buffer("mup_vector", falcon.compute_mup_vector(config), persistent=False)
    layer, turn = scrambled(layer, rng), falcon.FalconH1RotaryEmbedding(config)
    mask = added(visible(tokens, tokens, 0))
    return layer, lambda x: layer(x, attention_mask=mask, position_embeddings=rotary(turn, x))[0]


def cases(tokens: int) -> dict:
    """Name -> function of random numbers that gives a module and what it computes."""
    llama = LlamaConfig(**SMALL, head_dim=SIZE, tie_word_embeddings=False, attn_implementation="sdpa")
    mistral = MistralConfig(**SMALL, head_dim=SIZE, sliding_window=WINDOW, tie_word_embeddings=False, attn_implementation="eager")
    return {"llama": decoder(LlamaForCausalLM, llama, visible(tokens, WINDOW, SINKS)[None, None]),
            "mistral": decoder(MistralForCausalLM, mistral, None), "mpt": lambda rng: mpt(rng, tokens),
            "neox": lambda rng: gpt_neox(rng, tokens),
            "gpt_oss": lambda rng: (module := scrambled(GptOss(), rng), module), "falcon_h1": lambda rng: falcon_h1(rng, tokens)}


def run_case(make, name: str, batch: int, tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All arrays of one case, by name."""
    module, function = make(rng)
    if name in ("llama", "mistral"):
        return arrays_of(module, function, torch.from_numpy(rng.integers(0, VOCABULARY, (batch, tokens))), rng)
    return arrays_of(module, function, torch.from_numpy(rng.standard_normal((batch, tokens, WIDTH))).requires_grad_(), rng)


if __name__ == "__main__":
    write(__doc__, 19, lambda batch, tokens: {name: partial(run_case, make, name, batch, tokens)
                                              for name, make in cases(tokens).items()})
