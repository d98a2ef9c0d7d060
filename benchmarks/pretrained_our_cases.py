"""Our side of `benchmarks.pretrained_speed`: one line of JSON for one case.

    python -m benchmarks.pretrained_our_cases --case='{"folder": "FOLDER", "cores": 1, "prompt": 512, "tokens": 32, ...}'
"""

from __future__ import annotations

import json
import os
import time

from benchmarks import measure

CASE = measure.read_case(__doc__)
if CASE["pinned"]:  # before jax counts them
    os.sched_setaffinity(0, measure.core_numbers()[-CASE["cores"]:])
elif CASE["cores"] == 1:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_platforms", "cpu")

from memtok_jax.convert import decoders  # noqa: E402
from memtok_jax.inference.session import new_stream, open_session  # noqa: E402
from memtok_jax.inference.stream import fork  # noqa: E402
from memtok_jax.models.protocol import bind  # noqa: E402


def run(case: dict) -> dict:
    """Loading, prefill and decoding."""
    began = time.perf_counter()
    loaded = decoders.load(case["folder"], context=case["context"], apart=True)
    result = {"load_s": time.perf_counter() - began}
    model, params = bind(loaded.cfg), loaded.params
    ids = np.random.default_rng(0).integers(0, model.vocabulary, (1, case["prompt"]))
    stream = new_stream(model, params, 1, jax.random.key(0))
    began = time.perf_counter()
    session = open_session(model, params, stream, feed_blocks=(case["prompt"],), k=case["tokens"])
    result["compile_s"] = time.perf_counter() - began
    kept = [stream, ids[:, -1]]

    def prefill():
        kept[0] = session.feed(params, fork(stream), ids)
        jax.block_until_ready(kept[0])

    def decode():
        said, kept[1], kept[0] = session.decode(params, kept[0], kept[1], 0.0)
        jax.block_until_ready(said)

    result["prefill"] = measure.measure(prefill, case["seconds"], at_least=2)
    result["decode"] = measure.measure(decode, case["seconds"], at_least=2)
    return result


def main() -> None:
    result = run(CASE)
    print(json.dumps(result | {"about": {"jax": jax.__version__, "peak_mb": measure.peak_mb()}}))


if __name__ == "__main__":
    main()
