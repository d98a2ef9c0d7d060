"""What the exporters of single layers and decoders share: float64 throughout, and the file they write. Needs torch and numpy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
import torch


def keep_float64() -> None:
    """Let `float()` and `to(float32)` leave float64 alone: the peers cast here and there whatever the dtype of the module."""
    cast = torch.Tensor.to
    torch.Tensor.float = lambda self: self
    torch.Tensor.to = lambda self, *args, **kwargs: (
        self if torch.float32 in (*args, kwargs.get("dtype")) and self.dtype == torch.float64 else cast(self, *args, **kwargs))


def arrays_of(module: torch.nn.Module, function: Callable, x: torch.Tensor, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All arrays of a case: x, y = function(x), weights of the sum of all outputs, parameters, and the gradients of that sum."""
    y = function(x)
    y = y[0] if isinstance(y, tuple) else y
    assert y.dtype == torch.float64
    weights = rng.standard_normal(y.shape)
    (y * torch.from_numpy(weights)).sum().backward()
    out = {"x": x.detach().numpy(), "y": y.detach().numpy(), "weights": weights}
    out |= {} if x.grad is None else {"grad/x": x.grad.numpy()}
    for name, p in module.named_parameters():
        out |= {f"param/{name}": p.detach().numpy(), f"grad/{name}": p.grad.numpy()}
    return out


def write(doc: str, tokens: int, make_cases: Callable[[int, int], Mapping[str, Callable]],
          beside: Mapping[str, np.ndarray] | None = None) -> None:
    """Read the flags and write `CASE/NAME` arrays.

    tokens: default of --tokens. make_cases: (batch, tokens) -> {case: function}, each of a generator of random numbers, which gives
    the arrays of the case. beside: other arrays of the file.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=tokens)
    flags = parser.parse_args()
    arrays = dict(beside or {})
    for number, (name, make) in enumerate(make_cases(flags.batch, flags.tokens).items()):
        case = make(np.random.default_rng([flags.seed, number]))
        arrays |= {f"{name}/{key}": value for key, value in case.items()}
    np.savez_compressed(flags.output, **arrays)
