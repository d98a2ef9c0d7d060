"""One measured case of transformers' Mamba and Mamba-2 layers; run by `benchmarks.ssm_speed` in the peer's Python.

    python -m benchmarks.ssm_peer_cases --case='{"what": "train", "model": "mamba", "width": 256, ...}'

prints one line of JSON. Needs torch and transformers==5.23.0.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from transformers import DynamicCache, Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from benchmarks import measure


def mixer_of(case: dict):
    """(the layer, its config), sized as our defaults are."""
    base = {"vocab_size": 8, "hidden_size": case["width"], "state_size": case["state"], "num_hidden_layers": 1, "conv_kernel": 4,
            "expand": 2}
    if case["model"] == "mamba":
        config = MambaConfig(**base)
        return MambaMixer(config, 0), config
    config = Mamba2Config(**base, head_dim=64, num_heads=2 * case["width"] // 64, n_groups=1, chunk_size=64)
    return Mamba2Mixer(config, 0), config


def run(case: dict) -> dict:
    """The case's time."""
    mixer, config = mixer_of(case)
    x = torch.randn(case["batch"], case["length"], case["width"], requires_grad=case["what"] == "train")
    if case["what"] == "train":
        def step():
            mixer.zero_grad(set_to_none=True)
            mixer(x).square().mean().backward()

        return measure.measure(step, case["seconds"])
    mixer.eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        return measure.measure(lambda: mixer(x, cache_params=cache), case["seconds"], at_most=20000)


def main() -> None:
    case = measure.read_case(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(measure.cores())
    result = run(case)
    tokens = case["batch"] * case["length"]
    print(json.dumps(result | {"tokens_per_second": tokens / result["seconds"], "torch": version("torch"),
                               "transformers": version("transformers")}))


if __name__ == "__main__":
    main()
