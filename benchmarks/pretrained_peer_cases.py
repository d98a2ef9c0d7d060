"""The peer's side of `benchmarks.pretrained_speed`: one line of JSON for one case. Needs torch, transformers.

    python -m benchmarks.pretrained_peer_cases --case='{"folder": "FOLDER", "cores": 1, "prompt": 512, "tokens": 32, ...}'
"""

from __future__ import annotations

import json
import os
import time

from benchmarks import measure

CASE = measure.read_case(__doc__)
if CASE["pinned"]:  # before torch counts them
    os.sched_setaffinity(0, measure.core_numbers()[-CASE["cores"]:])

import torch  # noqa: E402
import transformers  # noqa: E402


def run(case: dict) -> dict:
    """Loading, prefill and decoding by hand, without the checks of `generate` for each token."""
    torch.set_num_threads(case["cores"])
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(case["folder"], dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    checksum = sum(p.detach().sum() for p in model.parameters())  # its weights are mapped from the file until something reads them
    result = {"load_s": time.perf_counter() - began, "checksum": float(checksum)}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, case["prompt"]), generator=generator)
    kept = []

    def prefill():
        out = model(ids, use_cache=True, logits_to_keep=1)
        kept[:] = [out.past_key_values, out.logits[:, -1:].argmax(-1)]

    def decode():
        cache, token = kept
        for _ in range(case["tokens"]):
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        cache.crop(-case["tokens"])
        kept[:] = [cache, token]

    with torch.inference_mode():
        result["prefill"] = measure.measure(prefill, case["seconds"], at_least=2)
        result["decode"] = measure.measure(decode, case["seconds"], at_least=2)
    return result


def main() -> None:
    result = run(CASE)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "peak_mb": measure.peak_mb()}
    print(json.dumps(result | {"about": about}))


if __name__ == "__main__":
    main()
