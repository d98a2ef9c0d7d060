"""Write one neural-memory layer of titans-pytorch, with inputs, outputs, end state and gradients, to an .npz file.

Run with a Python that has torch and titans-pytorch (nothing of the package is imported):

    pip install torch==2.13.0          # first and alone; a CPU build is enough
    pip install titans-pytorch==0.5.5 numpy
    python tests/peers_export/export_titans_pytorch.py --output=tests/data/titans_pytorch_parity.npz

The layer is put into the mode in which it computes the paper's rule: `chunk_size=1` (gates for every token) and
`batch_size=CHUNK` (gradients at the weights of the chunk start). Everything is float64.

Names in the file (torch's own names of parameters are kept; `memory_model_parameters.0/.1/.2` are the initial
fast weights gamma [H, K] stored minus one, first matrix [H, K, 4K], second matrix [H, 4K, K]):

    settings              JSON text: sizes, seed, versions
    x [B, T, D], y [B, T, D], r [B, T, D]      input, output, the fixed weights of the scalar sum(y * r)
    param/NAME            every parameter that the output depends on
    weights/0..2          fast weights after the last token, [B, H, ...]
    surprise/0..2         their momentum after the last token, [B, H, ...]
    grad/NAME, grad/x     gradient of sum(y * r)
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version

import numpy as np
import torch
from titans_pytorch import NeuralMemory

HEADS, HEAD_DIM, WIDTH, STEP_MAX = 2, 8, 16, 0.5


def build_layer(chunk: int, generator: torch.Generator) -> NeuralMemory:
    """The layer in paper-exact mode with every parameter random, so that nothing is hidden by zeros or ones."""
    layer = NeuralMemory(
        dim=WIDTH,
        heads=HEADS,
        dim_head=HEAD_DIM,
        chunk_size=1,
        batch_size=chunk,
        default_step_transform_max_lr=STEP_MAX,
    )
    for name, parameter in layer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("_norm.weight"):
            parameter.data = 1 + 0.3 * noise
        elif parameter.ndim == 1 or name == "memory_model_parameters.0":
            parameter.data = 0.5 * noise
        else:
            # torch's Linear stores [out, in]; the fast matrices are [H, in, out].
            fan_in = parameter.shape[1]
            parameter.data = noise / fan_in**0.5
    return layer


def run_layer(layer: NeuralMemory, x: torch.Tensor, r: torch.Tensor) -> dict[str, np.ndarray]:
    """Forward and backward once; the arrays listed in the module docstring, without `settings`."""
    batch = x.shape[0]
    x = x.clone().requires_grad_()
    y, state = layer(x)
    (y * r).sum().backward()
    arrays = {"x": x, "y": y, "r": r, "grad/x": x.grad}
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            arrays[f"param/{name}"], arrays[f"grad/{name}"] = parameter, parameter.grad
    weights, surprise = state.states
    for i, name in enumerate(layer.memory_model_parameter_names):
        arrays[f"weights/{i}"] = weights[name].unflatten(0, (batch, HEADS))
        arrays[f"surprise/{i}"] = surprise[name][0].unflatten(0, (batch, HEADS))
    return {name: array.detach().numpy() for name, array in arrays.items()}


def export(output: str, seed: int, batch: int, length: int, chunk: int) -> None:
    """Compute the case and write it to `output`."""
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    layer = build_layer(chunk, generator)
    x, r = (torch.randn((batch, length, WIDTH), generator=generator) for _ in range(2))
    settings = {
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "width": WIDTH,
        "step_max": STEP_MAX,
        "chunk": chunk,
        "seed": seed,
        "torch": torch.__version__,
        "titans-pytorch": version("titans-pytorch"),
    }
    np.savez_compressed(output, settings=json.dumps(settings), **run_layer(layer, x, r))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--batch", type=int, default=1, help="rows of x")
    parser.add_argument("--length", type=int, default=32, help="tokens of x")
    parser.add_argument(
        "--chunk", type=int, default=8, help="tokens that share the weights at which gradients are taken"
    )
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
