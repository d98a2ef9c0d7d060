"""Write a small case of one attention layer of compressive-transformer-pytorch, for tests/test_peer_compressive.py.

Runs in a Python with torch and compressive-transformer-pytorch==0.4.0:

    PEER_PYTHON tests/peers_export/export_compressive_transformer.py --output=tests/data/compressive_transformer_parity.npz

One `SelfAttention` in float64, in training mode without dropout and without its table of positions, reads four segments and carries
its two memories, detached. Written: its weights, inputs, outputs, memories and auxiliary losses, and the gradient of the sum of the
losses with respect to the convolution.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from compressive_transformer_pytorch.compressive_transformer_pytorch import Memory, SelfAttention

WIDTH, HEADS, SEGMENT, SLOTS, RATE, BATCH, SEGMENTS = 8, 2, 4, 3, 2, 2, 4


def main() -> None:
    """Read the flags and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    torch.manual_seed(flags.seed)
    layer = SelfAttention(WIDTH, SEGMENT, SEGMENT, SLOTS, RATE, HEADS).double().train()
    out = {f"param/{name}": weight.detach().numpy().copy() for name, weight in layer.named_parameters()}
    x, total, memories = torch.randn(SEGMENTS, BATCH, SEGMENT, WIDTH, dtype=torch.float64), 0.0, None
    for n in range(SEGMENTS):
        y, memories, loss = layer(x[n], memories)
        memories, total = Memory(*(m.detach() for m in memories)), total + loss.sum()
        out |= {f"y/{n}": y.detach().numpy(), f"mem/{n}": memories.mem.numpy(), f"cmem/{n}": memories.compressed_mem.numpy(),
                f"loss/{n}": loss.detach().numpy()}
    total.backward()
    convolution = layer.compress_mem_fn.conv
    out |= {"x": x.numpy(), "grad/kernel": convolution.weight.grad.numpy(), "grad/bias": convolution.bias.grad.numpy()}
    np.savez_compressed(flags.output, heads=HEADS, slots=SLOTS, rate=RATE, **out)


if __name__ == "__main__":
    main()
