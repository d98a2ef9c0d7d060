"""One measured case of the peers of RMT and Transformer-XL; run by `benchmarks.recurrent` in the peers' Python.

    python -m benchmarks.recurrent_peer_cases --case='{"model": "rmt", "width": 256, ...}'

prints one line of JSON. Needs torch, recurrent-memory-transformer-pytorch==0.7.0 and transformers==4.35.2.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from torch.nn.functional import cross_entropy

from benchmarks import measure


def rmt(case: dict):
    """(network, function of ids and memory -> logits and memory): the mask of the paper, learned positions."""
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

    net = RecurrentMemoryTransformer(
        dim=case["width"], num_tokens=256, depth=case["layers"], num_memory_tokens=case["memory"], seq_len=case["segment"],
        causal=True, dim_head=case["width"] // case["heads"], heads=case["heads"], use_flash_attn=False, abs_pos_emb=True,
        rotary_pos_emb=False, use_xl_memories=False, num_residual_streams=1, emb_gradient_frac=1.0, memory_not_causal=True,
        add_write_to_next_write_mem=False, always_have_read_memories=True)
    return net, lambda ids, memory: net(ids, memory)[:2]


def transformer_xl(case: dict):
    """(network, function of ids and cache -> logits and cache), without dropout and adaptive softmax."""
    from transformers.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel

    net = TransfoXLLMHeadModel(TransfoXLConfig(
        vocab_size=256, d_model=case["width"], d_embed=case["width"], n_head=case["heads"], d_head=case["width"] // case["heads"],
        d_inner=4 * case["width"], n_layer=case["layers"], mem_len=case["segment"], clamp_len=-1, cutoffs=[], div_val=1,
        adaptive=False, proj_share_all_but_first=False, dropout=0.0, dropatt=0.0))

    def segment(ids, mems):
        out = net(ids, mems=mems)
        return out.prediction_scores, out.mems

    return net, segment


def run(case: dict) -> dict:
    """One update: gradient through all segments of the sequence, clipping to norm 1, AdamW."""
    net, segment = {"rmt": rmt, "transformer_xl": transformer_xl}[case["model"]](case)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4)
    ids = torch.randint(0, 256, (case["batch"], case["length"] + 1))
    losses = []

    def step():
        optimizer.zero_grad(set_to_none=True)
        memory, total = None, 0.0
        for begin in range(0, case["length"], case["segment"]):
            logits, memory = segment(ids[:, begin:begin + case["segment"]], memory)
            total = total + cross_entropy(logits.transpose(1, 2), ids[:, begin + 1:begin + 1 + case["segment"]])
        loss = total * case["segment"] / case["length"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())

    result = measure.measure(step, case["seconds"], case["repeats"])
    return {**result, "tokens": case["batch"] * case["length"], "first_loss": losses[0], "last_loss": losses[-1],
            "parameters": sum(p.numel() for p in net.parameters())}


def main() -> None:
    case = measure.read_case(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(measure.cores())
    result = run(case)
    print(json.dumps(result | {"tokens_per_second": result["tokens"] / result["seconds"], "peak_mb": measure.peak_mb(),
                               "torch": version("torch")}))


if __name__ == "__main__":
    main()
