"""One measured case of transformers' Mamba, Mamba-2 and Falcon-H1 layers; run by `benchmarks.ssm_speed` in the peer's Python.

    python -m benchmarks.ssm_peer_cases --case='{"what": "train", "model": "mamba", "width": 256, ...}'

prints one line of JSON. Needs torch and transformers==5.23.0.
"""

from __future__ import annotations

import itertools
import json
from importlib.metadata import version

import torch
from transformers import DynamicCache, FalconH1Config, Mamba2Config, MambaConfig
from transformers.models.falcon_h1 import modeling_falcon_h1 as falcon
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from benchmarks import measure


def falcon_h1(case: dict):
    """(a whole layer of Falcon-H1 as a function of tokens, options and their places; its module; its config)."""
    width = case["width"]
    config = FalconH1Config(
        vocab_size=8, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, head_dim=64, mamba_d_ssm=2 * width, mamba_n_heads=2 * width // 64, mamba_d_head=64,
        mamba_n_groups=1, mamba_d_state=case["state"], mamba_chunk_size=64, mamba_rms_norm=True, mamba_norm_before_gate=False,
        attn_implementation="sdpa")
    layer, turn = falcon.FalconH1DecoderLayer(config, 0), falcon.FalconH1RotaryEmbedding(config)
    layer.mamba.register_buffer("mup_vector", falcon.compute_mup_vector(config), persistent=False)

    def call(x, first: int = 0, **options):
        places = torch.arange(first, first + x.shape[1])[None]
        return layer(x, position_embeddings=turn(x, places), position_ids=places, **options)[0]

    return call, layer, config


def mixer_of(case: dict):
    """(the layer as a function of tokens, its module, its config), sized as our defaults are."""
    base = {"vocab_size": 8, "hidden_size": case["width"], "state_size": case["state"], "num_hidden_layers": 1, "conv_kernel": 4,
            "expand": 2}
    if case["model"] == "mamba":
        config = MambaConfig(**base)
        mixer = MambaMixer(config, 0)
        return mixer, mixer, config
    config = Mamba2Config(**base, head_dim=64, num_heads=2 * case["width"] // 64, n_groups=1, chunk_size=64)
    mixer = Mamba2Mixer(config, 0)
    return mixer, mixer, config


def run(case: dict) -> dict:
    """The case's time."""
    call, module, config = falcon_h1(case) if case["model"] == "falcon_h1" else mixer_of(case)
    x = torch.randn(case["batch"], case["length"], case["width"], requires_grad=case["what"] == "train")
    if case["what"] == "train":
        def step():
            module.zero_grad(set_to_none=True)
            call(x).square().mean().backward()

        return measure.measure(step, case["seconds"])
    module.eval()
    with torch.no_grad():
        return measure.measure(decoder(call, x, config, case), case["seconds"], at_most=case["at_most"])


def decoder(call, x: torch.Tensor, config, case: dict):
    """A function that reads one more token through a cache."""
    cache, place = DynamicCache(config=config), itertools.count()
    if case["model"] == "falcon_h1":
        return lambda: call(x, next(place), past_key_values=cache)
    return lambda: call(x, cache_params=cache)


def main() -> None:
    case = measure.read_case(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(measure.cores())
    result = run(case)
    tokens = case["batch"] * case["length"]
    print(json.dumps(result | {"tokens_per_second": tokens / result["seconds"], "peak_mb": measure.peak_mb(),
                               "torch": version("torch"),
                               "transformers": version("transformers")}))


if __name__ == "__main__":
    main()
