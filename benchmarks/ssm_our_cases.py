"""One measured case of our selective scans; run by `benchmarks.ssm_speed` in a process of its own.

    python -m benchmarks.ssm_our_cases --case='{"what": "train", "model": "mamba", "width": 256, ...}'

prints one line of JSON.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp

from benchmarks import measure
from memtok_jax import params as P
from memtok_jax.compiler import options
from memtok_jax.memory import ssm


def config(case: dict):
    """The memory's config."""
    kind = {"mamba": ssm.MambaConfig, "mamba2": ssm.Mamba2Config}[case["model"]]
    return kind(width=case["width"], state=case["state"])


def train(params, state, x, module, cfg):
    """Gradients of parameters and tokens, and the state."""

    def loss(params, x):
        y, after = module.apply(params, state, x, cfg, whole=True)
        return jnp.square(y).mean(), after

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)


def run(case: dict) -> dict:
    """The case's time."""
    cfg = config(case)
    module = ssm.MODULES[type(cfg)]
    params = P.init_params(module.specs(cfg), jax.random.key(0))
    state = module.init_state(params, cfg, case["batch"])
    x = jax.random.normal(jax.random.key(1), (case["batch"], case["length"], case["width"]))
    compile_options = options(jax.devices()[0].platform)
    if case["what"] == "train":
        step = jax.jit(lambda *args: train(*args, module, cfg), compiler_options=compile_options)
        return measure.measure(lambda: jax.block_until_ready(step(params, state, x)), case["seconds"])
    one = jax.jit(lambda *args: module.apply(*args, cfg), donate_argnums=1, compiler_options=compile_options)
    carried = [state]

    def token():
        y, carried[0] = one(params, carried[0], x)
        y.block_until_ready()

    return measure.measure(token, case["seconds"], at_most=20000)


def main() -> None:
    case = measure.read_case(__doc__)
    result = run(case)
    tokens = case["batch"] * case["length"]
    print(json.dumps(result | {"tokens_per_second": tokens / result["seconds"], "jax": jax.__version__,
                               "device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
