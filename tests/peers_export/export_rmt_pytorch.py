"""Write a small RMT of recurrent-memory-transformer-pytorch with logits, memories and gradients to an .npz file.

Run with a Python that has torch and recurrent-memory-transformer-pytorch==0.7.0 (nothing of the package is imported):

    python tests/peers_export/export_rmt_pytorch.py --output=tests/data/rmt_pytorch_parity.npz

Its wrapper runs two rows of 13 tokens in segments of 5, 5 and 3, without cache, one residual stream, the paper's mask. Padding
at the end of two segments of the second row is told by its mask. All weights are random, none at its initial value, in float64.
Two runs of the same weights:

    added   the memory is added to its learned write tokens, with gradient, and nothing is cut
    fixed   write tokens are learned alone (its default), and the gradient is cut after every second segment

Names in the file:

    settings               JSON text: sizes, real tokens of the segments of each row, cut, seed, versions
    param/NAME             its state dict
    ids                    i64[B, 13]
    RUN/logits             [B, 13, V], zero where there is padding
    RUN/memory             [B, M, D] after the last segment
    RUN/gradient/NAME      gradient of sum(logits * r) + sum(memory * s)
    r, s                   the weights of that sum
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version

import numpy as np
import torch
from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

SIZES = {"dim": 8, "num_tokens": 11, "depth": 2, "num_memory_tokens": 3, "seq_len": 5, "dim_head": 4, "heads": 2}
LENGTHS = ((5, 5, 3), (5, 4, 2))  # the last segment holds three tokens; the second row is padded in two segments
CUT_AFTER = 2
RUNS = {"added": {"add_write_to_next_write_mem": True, "next_write_mem_stop_grad": False}, "fixed": {}}


def build(options: dict) -> RecurrentMemoryTransformer:
    """The network as `benchmarks/recurrent_peer_cases.py` has it."""
    return RecurrentMemoryTransformer(
        **SIZES, causal=True, use_flash_attn=False, abs_pos_emb=True, rotary_pos_emb=False, use_xl_memories=False,
        num_residual_streams=1, emb_gradient_frac=1.0, memory_not_causal=True, always_have_read_memories=True,
        **({"add_write_to_next_write_mem": False} | options)).eval()


def scrambled(net: RecurrentMemoryTransformer, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Other weights of the same shapes: norms near one, the rest large enough to matter."""
    return {name: 0.4 * torch.randn(weight.shape, generator=generator) + (1.0 if name.endswith("norm.weight") else 0.0)
            for name, weight in net.state_dict().items()}


def run(name: str, weights: dict, ids: torch.Tensor, real: torch.Tensor, r: torch.Tensor, s: torch.Tensor) -> dict:
    """Logits, last memory and all gradients of one run."""
    net = build(RUNS[name])
    net.load_state_dict(weights)
    wrapper = RecurrentMemoryTransformerWrapper(net, truncate_at_step=CUT_AFTER if name == "fixed" else None)
    logits, memory = wrapper(ids, mask=real)
    logits = logits * real[..., None]
    ((logits * r).sum() + (memory * s).sum()).backward()
    out = {"logits": logits, "memory": memory} | {f"gradient/{n}": p.grad for n, p in net.named_parameters()}
    return {f"{name}/{key}": value.detach().numpy() for key, value in out.items()}


def export(output: str, seed: int) -> None:
    """Compute the case and write it."""
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    weights = scrambled(build({}), generator)
    sizes = LENGTHS[0]
    real = torch.cat([torch.arange(t)[None] < torch.tensor(LENGTHS)[:, n:n + 1] for n, t in enumerate(sizes)], dim=1)
    ids = torch.randint(SIZES["num_tokens"], real.shape, generator=generator)
    r = torch.randn((*real.shape, SIZES["num_tokens"]), generator=generator)
    s = torch.randn((len(LENGTHS), SIZES["num_memory_tokens"], SIZES["dim"]), generator=generator)
    settings = {"sizes": SIZES, "lengths": LENGTHS, "cut": {"added": "full", "fixed": f"every:{CUT_AFTER}"}, "seed": seed,
                "torch": torch.__version__, "peer": version("recurrent-memory-transformer-pytorch")}
    arrays = {f"param/{name}": weight.numpy() for name, weight in weights.items()}
    for name in RUNS:
        arrays |= run(name, weights, ids, real, r, s)
    np.savez_compressed(output, settings=json.dumps(settings), ids=ids.numpy(), r=r.numpy(), s=s.numpy(), **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
