"""One measured case of our selective scans and of a hybrid layer; run by `benchmarks.ssm_speed` in a process of its own.

    python -m benchmarks.ssm_our_cases --case='{"what": "train", "model": "mamba", "width": 256, ...}'

prints one line of JSON.
"""

from __future__ import annotations

import json

import jax

from benchmarks import measure

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", measure.cores())  # each core a device, as in training

import jax.numpy as jnp  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from memtok_jax import params as P  # noqa: E402
from memtok_jax import sharding  # noqa: E402
from memtok_jax.compiler import options  # noqa: E402
from memtok_jax.memory import ssm  # noqa: E402
from memtok_jax.models import layers  # noqa: E402
from memtok_jax.models.call import Call  # noqa: E402
from memtok_jax.models.mixers.segment import SegmentConfig  # noqa: E402
from memtok_jax.models.mixers.ssm import SsmConfig  # noqa: E402
from memtok_jax.models.mixers.window import WindowConfig  # noqa: E402
from memtok_jax.models.style import TITANS, Backbone  # noqa: E402

AXES = sharding.RULES["batch"]


def scan(case: dict):
    """(specs, initial state of rows, function of (params, state, x, whole)) of a scan with its projections."""
    kind = {"mamba": ssm.MambaConfig, "mamba2": ssm.Mamba2Config}[case["model"]]
    cfg = kind(width=case["width"], state=case["state"])
    module = ssm.MODULES[kind]
    return (module.specs(cfg), lambda params, rows: module.init_state(params, cfg, rows),
            lambda params, state, x, whole: module.apply(params, state, x, cfg, whole=whole))


def falcon_h1(case: dict):
    """The same of a whole layer of Falcon-H1: attention and Mamba-2 on one normed input, added; then the feed-forward network.

    In training the call is one segment of attention; in decoding, which goes on for ever, attention is a window.
    """
    width, slots = case["width"], case["slots"]
    b = Backbone(TITANS, width, 1, width // 64, 64, 4 * width, segment=case["length"])
    attention = SegmentConfig() if case["what"] == "train" else WindowConfig(slots)
    mixers = {"attention": attention, "ssm": SsmConfig(ssm.Mamba2Config(state=case["state"]))}
    specs = {name: m.module.specs(m, b) for name, m in mixers.items()} | {
        "norm": layers.norm_specs(b), "feed_forward": layers.feed_forward_specs(b)}

    def begin(params, rows):
        nothing = jnp.zeros((0, width))
        return {name: m.module.begin(params[name] | {"norm": params["norm"]}, nothing, m, b, rows, {})[1]
                for name, m in mixers.items()}

    def run(params, state, x, whole):
        y, after, rows = x, {}, len(x)
        call = Call(P.full_length(x), jnp.full(rows, whole), jnp.zeros(rows, jnp.int32), whole)
        for name, m in mixers.items():
            branch, after[name], *_ = m.module.run(params[name] | {"norm": params["norm"]}, state[name], x, m, b, call, {})
            y = y + branch
        own = params["feed_forward"]
        return y + layers.feed_forward(own, layers.enter(own, y, b), "swiglu", "float32"), after

    return specs, begin, run


def trainer(case: dict, specs, begin, apply):
    """A function that computes gradients of parameters and tokens, and the state; the cores divide the rows."""
    mesh = sharding.make_mesh(sharding.data_axis(jax.device_count(), 1, 1, (case["batch"],)), 1, 1)
    params = jax.device_put(P.init_params(specs, jax.random.key(0)), sharding.replicated(mesh))
    x = jax.device_put(jax.random.normal(jax.random.key(1), (case["batch"], case["length"], case["width"])), sharding.rows(mesh))

    def loss(params, x):
        y, after = apply(params, begin(params, len(x)), x, True)
        return jnp.square(y).mean(), after

    def gradient(params, x):
        (own, tokens), after = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return jax.lax.pmean(own, AXES), tokens, after

    rows, whole = PartitionSpec(AXES), PartitionSpec()
    divided = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, rows), out_specs=(whole, rows, rows), check_vma=False)
    step = jax.jit(divided, compiler_options=options("cpu"))
    return lambda: jax.block_until_ready(step(params, x))


def decoder(case: dict, specs, begin, apply):
    """A function that reads one more token."""
    params = P.init_params(specs, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (case["batch"], 1, case["width"]))
    one = jax.jit(lambda *args: apply(*args, False), donate_argnums=1, compiler_options=options("cpu"))
    carried = [begin(params, case["batch"])]

    def token():
        y, carried[0] = one(params, carried[0], x)
        y.block_until_ready()

    return token


def run(case: dict) -> dict:
    """The case's time."""
    parts = (falcon_h1 if case["model"] == "falcon_h1" else scan)(case)
    if case["what"] == "train":
        return measure.measure(trainer(case, *parts), case["seconds"])
    return measure.measure(decoder(case, *parts), case["seconds"], at_most=case["at_most"])


def main() -> None:
    case = measure.read_case(__doc__)
    result = run(case)
    tokens = case["batch"] * case["length"]
    print(json.dumps(result | {"tokens_per_second": tokens / result["seconds"], "peak_mb": measure.peak_mb(),
                               "jax": jax.__version__,
                               "device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
