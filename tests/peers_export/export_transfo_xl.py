"""Write small cases of Hugging Face's Transformer-XL, for tests/test_peer_transfo_xl.py.

Runs in a Python with torch and transformers==4.35.2 (the last versions have no Transformer-XL):

    PEER_PYTHON tests/peers_export/export_transfo_xl.py --output=tests/data/transfo_xl_parity.npz

Each case is a model with random weights in float64 that reads three segments, carrying its cache from the empty one: its weights,
log-probabilities and cache after each segment, and the gradient of a weighted sum of all log-probabilities.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from transformers.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel

CASES = {
    "post": {},
    "pre": {"pre_lnorm": True},
    "clamp": {"clamp_len": 3},
    "same_length": {"same_length": True},
    "untied": {"untie_r": True, "pre_lnorm": True, "clamp_len": 4, "same_length": True},
    "clusters": {"cutoffs": [4, 7], "adaptive": True, "proj_share_all_but_first": True},
    "narrow": {"cutoffs": [4, 7], "div_val": 2, "adaptive": True, "proj_share_all_but_first": True},
}
BASE = {"vocab_size": 11, "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 3, "d_inner": 6, "n_layer": 2, "mem_len": 5,
        "clamp_len": -1, "pre_lnorm": False, "same_length": False, "untie_r": False, "cutoffs": [], "div_val": 1, "adaptive": False,
        "proj_share_all_but_first": False}
FIXED = {"dropout": 0.0, "dropatt": 0.0}
SEGMENTS, BATCH, TOKENS = 3, 2, 4


def make_model(options: dict, rng: np.random.Generator) -> TransfoXLLMHeadModel:
    """A model in float64 whose weights are all random, norms and biases too."""
    model = TransfoXLLMHeadModel(TransfoXLConfig(**FIXED, **options)).double().eval()
    # Made in float32 before the cast: the frequencies again, in float64.
    d = options["d_model"]
    model.transformer.pos_emb.inv_freq = 1 / (10000 ** (torch.arange(0.0, d, 2.0, dtype=torch.float64) / d))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            middle = 1.0 if "layer_norm.weight" in name else 0.0
            weight.copy_(torch.from_numpy(middle + 0.4 * rng.standard_normal(weight.shape)))
    return model


# It casts its attention scores to float32 and then fills in float64's smallest number, which does not fit: keep float64.
torch.Tensor.float = lambda self: self


def run_case(options: dict, seed: int) -> dict[str, np.ndarray]:
    """All arrays of one case, by name."""
    rng = np.random.default_rng(seed)
    model = make_model(options, rng)
    ids = rng.integers(options["vocab_size"], size=(SEGMENTS, BATCH, TOKENS))
    weights = rng.standard_normal((SEGMENTS, BATCH, TOKENS, options["vocab_size"]))
    mems = [torch.zeros(0, BATCH, options["d_model"], dtype=torch.float64) for _ in range(options["n_layer"])]
    out, total = {"ids": ids, "weights": weights}, 0.0
    for n in range(SEGMENTS):
        result = model(torch.from_numpy(ids[n]), mems=mems)
        mems = result.mems
        total = total + (result.prediction_scores * torch.from_numpy(weights[n])).sum()
        out[f"scores/{n}"] = result.prediction_scores.detach().numpy()
        out[f"mems/{n}"] = np.stack([m.numpy() for m in mems])
    total.backward()
    for name, p in model.named_parameters():
        out[f"grad/{name}"] = p.grad.numpy()
    out |= {f"param/{name}": value.numpy() for name, value in model.state_dict().items()}
    return out


def main() -> None:
    """Read the flags and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    arrays = {"settings": np.array(json.dumps({name: BASE | extra for name, extra in CASES.items()}))}
    for number, (name, extra) in enumerate(CASES.items()):
        case = run_case(BASE | extra, flags.seed + number)
        arrays |= {f"{name}/{key}": value for key, value in case.items()}
    np.savez_compressed(flags.output, **arrays)


if __name__ == "__main__":
    main()
