"""One measured case of our selective scans and of a hybrid layer; run by `benchmarks.ssm_speed` in a process of its own.

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
from memtok_jax.models import layers
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS, Backbone


def scan(case: dict):
    """(specs, initial state of the rows, function of (params, state, x, whole)) of a scan with its projections."""
    kind = {"mamba": ssm.MambaConfig, "mamba2": ssm.Mamba2Config}[case["model"]]
    cfg = kind(width=case["width"], state=case["state"])
    module = ssm.MODULES[kind]
    return (module.specs(cfg), lambda params: module.init_state(params, cfg, case["batch"]),
            lambda params, state, x, whole: module.apply(params, state, x, cfg, whole=whole))


def falcon_h1(case: dict):
    """The same of a whole layer of Falcon-H1: attention and Mamba-2 on one normed input, added; then the feed-forward network."""
    width, slots = case["width"], case["slots"]
    b = Backbone(TITANS, width, 1, width // 64, 64, 4 * width)
    mixers = {"window": WindowConfig(slots), "ssm": SsmConfig(ssm.Mamba2Config(state=case["state"]))}
    specs = {name: m.module.specs(m, b) for name, m in mixers.items()} | {
        "norm": layers.norm_specs(b), "feed_forward": layers.feed_forward_specs(b)}

    def begin(params):
        nothing = jnp.zeros((0, width))
        return {name: m.module.begin(params[name] | {"norm": params["norm"]}, nothing, m, b, case["batch"], {})[1]
                for name, m in mixers.items()}

    def run(params, state, x, whole):
        y, after, call = x, {}, Call(P.full_length(x), whole=whole)
        for name, m in mixers.items():
            branch, after[name], *_ = m.module.run(params[name] | {"norm": params["norm"]}, state[name], x, m, b, call, {})
            y = y + branch
        own = params["feed_forward"]
        return y + layers.feed_forward(own, layers.enter(own, y, b), "swiglu", "float32"), after

    return specs, begin, run


def train(params, state, x, apply):
    """Gradients of parameters and tokens, and the state."""

    def loss(params, x):
        y, after = apply(params, state, x, True)
        return jnp.square(y).mean(), after

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)


def run(case: dict) -> dict:
    """The case's time."""
    specs, begin, apply = (falcon_h1 if case["model"] == "falcon_h1" else scan)(case)
    params = P.init_params(specs, jax.random.key(0))
    state = begin(params)
    x = jax.random.normal(jax.random.key(1), (case["batch"], case["length"], case["width"]))
    compile_options = options(jax.devices()[0].platform)
    if case["what"] == "train":
        step = jax.jit(lambda *args: train(*args, apply), compiler_options=compile_options)
        return measure.measure(lambda: jax.block_until_ready(step(params, state, x)), case["seconds"])
    one = jax.jit(lambda *args: apply(*args, False), donate_argnums=1, compiler_options=compile_options)
    carried = [state]

    def token():
        y, carried[0] = one(params, carried[0], x)
        y.block_until_ready()

    return measure.measure(token, case["seconds"], at_most=case["at_most"])


def main() -> None:
    case = measure.read_case(__doc__)
    result = run(case)
    tokens = case["batch"] * case["length"]
    print(json.dumps(result | {"tokens_per_second": tokens / result["seconds"], "peak_mb": measure.peak_mb(),
                               "jax": jax.__version__,
                               "device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
