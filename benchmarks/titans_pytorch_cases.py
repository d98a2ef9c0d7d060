"""One measured case of titans-pytorch; run by `benchmarks.neural_memory` and `benchmarks.model` in the peer's Python.

    python -m benchmarks.titans_pytorch_cases --case='{"what": "memory", "mode": "default", "width": 256, ...}'

prints one line of JSON. Needs torch and titans-pytorch, nothing of the package. On the CPU the per-head memory
parameters of titans-pytorch 0.5.5 are views with stride 0, on which every optimizer step raises; they are made
contiguous first, which changes no value.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version

import torch
from titans_pytorch import MemoryAsContextTransformer, NeuralMemory

from benchmarks import measure


def contiguous(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with no parameter that is a stride-0 view."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return module


# ------------------------------------------------------------------------------------------------ one memory layer


def memory_layer(mode: str, width: int, heads: int, chunk: int) -> NeuralMemory:
    """One layer at our sizes: head size width / heads, memory of two matrices with hidden size 4 times the head's.

    mode "default": one gate per chunk, all gradients of the call at the initial weights. mode "exact": the paper's
    rule, gates per token and gradients at the chunk start.
    """
    timing = {"default": {"chunk_size": chunk}, "exact": {"chunk_size": 1, "batch_size": chunk}}[mode]
    return contiguous(NeuralMemory(dim=width, heads=heads, dim_head=width // heads, **timing))


def run_memory(case: dict) -> dict:
    """Forward, or forward and backward, of one layer on [batch, length, width] random input."""
    layer = memory_layer(case["mode"], case["width"], case["heads"], case["chunk"])
    x = torch.randn(case["batch"], case["length"], case["width"])

    def forward():
        with torch.no_grad():
            layer(x)

    def forward_backward():
        layer.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        y, _ = layer(leaf)
        y.square().mean().backward()

    before = measure.peak_mb()
    result = measure.measure(forward_backward if case["backward"] else forward, case["seconds"], case["repeats"])
    return {**result, "tokens": case["batch"] * case["length"], "before_mb": before}


# ------------------------------------------------------------------------------------------------- the whole model


def model(case: dict) -> MemoryAsContextTransformer:
    """Their MAC model at our sizes: bytes, head size width / heads, memory in `memory_layers` (counted from one).

    streams: residual streams of its hyper-connections; 4 is the library's default, 1 is a plain residual.
    """
    head = case["width"] // case["heads"]
    return contiguous(
        MemoryAsContextTransformer(
            num_tokens=256,
            dim=case["width"],
            depth=case["layers"],
            heads=case["heads"],
            dim_head=head,
            segment_len=case["segment"],
            num_persist_mem_tokens=case["prefix"],
            neural_memory_layers=tuple(case["memory_layers"]),
            num_residual_streams=case["streams"],
            neural_memory_batch_size=case["chunk"] if case["mode"] == "refreshed" else None,
            neural_memory_kwargs={"heads": case["heads"], "dim_head": head},
        )
    )


def run_training(case: dict) -> dict:
    """One training step: loss, gradients, clipping to norm 1, AdamW."""
    net = model(case)
    used = [p for name, p in net.named_parameters() if ".memory_model." not in name]
    optimizer = torch.optim.AdamW(used, lr=3e-4)
    ids = torch.randint(0, 256, (case["batch"], case["length"] + 1))
    losses = []

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = net(ids, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
        losses.append(loss.item())

    before = measure.peak_mb()
    result = measure.measure(step, case["seconds"], case["repeats"])
    return {
        **result,
        "tokens": case["batch"] * case["length"],
        "before_mb": before,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "parameters": sum(p.numel() for p in used),
    }


def run_sampling(case: dict) -> dict:
    """`new` tokens after a prompt of `length`, with the library's cache; the prompt's own pass is timed apart."""
    net = model(case).eval()
    prompt = torch.randint(0, 256, (case["batch"], case["length"]))

    def sample(new: int) -> float:
        start = time.perf_counter()
        net.sample(prompt, case["length"] + new, use_cache=True, show_progress=False)
        return time.perf_counter() - start

    sample(2)
    cpu, wall = time.process_time(), time.perf_counter()
    prefill, total = sample(1), sample(1 + case["new"])
    used = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return {"prefill_s": prefill, "seconds": total - prefill, "tokens": case["batch"] * case["new"], "cores_used": used}


def main() -> None:
    case = measure.read_case(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(measure.cores())
    result = {"memory": run_memory, "training": run_training, "sampling": run_sampling}[case["what"]](case)
    result |= {
        "tokens_per_second": result["tokens"] / result["seconds"],
        "peak_mb": measure.peak_mb(),
        "compile_s": 0.0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "titans-pytorch": version("titans-pytorch"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
