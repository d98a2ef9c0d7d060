"""Write a small GPT-2 of the Hugging Face library in a plain RMT loop, with logits and memories, to an .npz file.

Run with a Python that has torch and transformers (nothing of the package is imported):

    pip install torch==2.13.0          # first and alone; a CPU build is enough
    pip install transformers==4.57.6 numpy
    python tests/peers_export/export_hf_rmt.py --output=tests/data/hf_gpt2_rmt.npz

The loop: [m ; embeddings ; m] goes in as `inputs_embeds`; logits and last hidden states are cut at M and -M; the last M hidden
states (after the last norm) are the next m. Every row of the batch runs alone, so a short segment has no padding, and an empty
one is left out. All weights are random, none at its initial value. Everything is float64.

Names in the file:

    settings           JSON text: fields of the config, lengths of the segments of each row, seed, versions
    param/NAME         their state dict
    memory             m_0 [M, D]
    ids                i64[B, N, T], filled up with 0
    logits             [B, N, T, V], zero where there is no token
    memories           [B, N, M, D] after each segment
    gradient/NAME      gradient of sum(logits * r) + sum(last memories * s), "memory" among the names
    r, s               the weights of that sum
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

TOKENS, SEGMENT = 3, 6
LENGTHS = ((6, 4, 6), (6, 0, 5))  # a short segment in the middle; an empty one


def build(seed: int) -> GPT2LMHeadModel:
    """Two layers, two heads, every parameter scrambled."""
    config = GPT2Config(vocab_size=23, n_positions=16, n_embd=12, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
                        attn_pdrop=0, attn_implementation="eager")
    model = GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.ndim > 1 else 0.2
        parameter.data = scale * noise + (1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    return model


def loop(model: GPT2LMHeadModel, memory: torch.Tensor, segments: list[torch.Tensor]) -> tuple[list, list]:
    """Logits and memory after each segment of one row; an empty segment gives None and the memory before."""
    m, logits, memories = memory[None], [], []
    for ids in segments:
        if len(ids) == 0:
            logits.append(None)
            memories.append(m[0])
            continue
        inputs = torch.cat([m, model.transformer.wte(ids)[None], m], dim=1)
        out = model(inputs_embeds=inputs, output_hidden_states=True)
        logits.append(out.logits[0, TOKENS:-TOKENS])
        m = out.hidden_states[-1][:, -TOKENS:]
        memories.append(m[0])
    return logits, memories


def export(output: str, seed: int) -> None:
    """Compute the case and write it."""
    torch.set_default_dtype(torch.float64)
    model, generator = build(seed), torch.Generator().manual_seed(seed + 1)
    width, vocabulary = model.config.n_embd, model.config.vocab_size
    memory = torch.randn((TOKENS, width), generator=generator).requires_grad_()
    shape = (len(LENGTHS), len(LENGTHS[0]), SEGMENT)
    ids = torch.randint(vocabulary, shape, generator=generator)
    r, s = torch.randn((*shape, vocabulary), generator=generator), torch.randn((len(LENGTHS), TOKENS, width), generator=generator)
    logits, memories, total = torch.zeros(r.shape), torch.zeros((*shape[:2], TOKENS, width)), torch.zeros(())
    for b, lengths in enumerate(LENGTHS):
        rows, states = loop(model, memory, [ids[b, n, :size] for n, size in enumerate(lengths)])
        for n, (row, state) in enumerate(zip(rows, states, strict=True)):
            memories[b, n] = state.detach()
            if row is not None:
                logits[b, n, :len(row)] = row.detach()
                total = total + (row * r[b, n, :len(row)]).sum()
        total = total + (states[-1] * s[b]).sum()
    total.backward()
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()} | {"memory": memory.grad}
    fields = {name: value for name, value in model.config.to_dict().items()
              if name.startswith("n_") or name in ("vocab_size", "activation_function", "layer_norm_epsilon")}
    settings = {"config": fields, "lengths": LENGTHS, "segment": SEGMENT, "tokens": TOKENS, "seed": seed,
                "torch": torch.__version__, "transformers": version("transformers")}
    arrays = {f"param/{n}": p.detach().numpy() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    arrays |= {f"gradient/{name}": g.numpy() for name, g in gradient.items()}
    np.savez_compressed(output, settings=json.dumps(settings), memory=memory.detach().numpy(), ids=ids.numpy(), r=r.numpy(),
                        s=s.numpy(), logits=logits.numpy(), memories=memories.numpy(), **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
