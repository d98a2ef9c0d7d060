"""One measured case of our side; run by `benchmarks.neural_memory` and `benchmarks.model` in a process of its own.

    python -m benchmarks.our_cases --case='{"what": "memory", "view": "chunked", "width": 256, ...}'

prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import associative_scan, measure
from memtok_jax import params as P
from memtok_jax import sharding
from memtok_jax.compiler import options
from memtok_jax.data.text import TextConfig
from memtok_jax.inference.sample import decode_many
from memtok_jax.inference.session import new_stream, open_session
from memtok_jax.memory import neural
from memtok_jax.memory.neural import literal, scan
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import language_model
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2, TITANS, TRANSFORMER_XL
from memtok_jax.numerics import rms_norm
from memtok_jax.training.distributed import use_cores
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.step import Batch, compile_step, init_train_state, state_shardings, update_of

VIEWS = {"chunked": scan, "literal": literal, "associative_scan": associative_scan}


# ------------------------------------------------------------------------------------------------------- one layer


def layer_specs(cfg: neural.NeuralMemoryConfig) -> dict:
    """The memory as a layer: norm before it; norm of the reads, gate and projection after it (paper, section 4.4)."""
    d, k = cfg.width, cfg.head_dim
    return {
        "memory": neural.specs(cfg),
        "norm": P.ParamSpec((d,), (None,), P.ones, decayed=False),
        "read_norm": P.ParamSpec((k,), (None,), P.ones, decayed=False),
        "gate": P.ParamSpec((d, d), ("embed", "heads"), P.fan_in(0)),
        "out": P.ParamSpec((d, d), ("heads", "embed"), P.fan_in(0)),
    }


def layer(params, state, x, cfg: neural.NeuralMemoryConfig, view) -> tuple:
    """x[B, T, D] -> ([B, T, D], state): RMS norm, memory, RMS norm of each head's read, SiLU gate, projection."""
    u = rms_norm(x, params["norm"])
    reads, state, _ = neural.run(params["memory"], state, u, cfg, whole=True, view=view)
    reads = rms_norm(reads.reshape(*x.shape[:2], cfg.heads, cfg.head_dim), params["read_norm"]).reshape(x.shape)
    return (reads * jax.nn.silu(u @ params["gate"])) @ params["out"], state


def _compile(function, *args) -> tuple:
    """(compiled, seconds that tracing and compiling took, megabytes of temporaries in the compiled program)."""
    start = time.perf_counter()
    compiled = jax.jit(function, compiler_options=options(jax.default_backend())).lower(*args).compile()
    return compiled, time.perf_counter() - start, compiled.memory_analysis().temp_size_in_bytes / 1e6


def head_mesh(heads: int) -> Mesh:
    """The heads divided over the cores of a CPU (its compiler runs small batched products on one core), or one GPU."""
    divisors = [n for n in range(1, heads + 1) if heads % n == 0 and n <= len(os.sched_getaffinity(0))]
    jax.config.update("jax_num_cpu_devices", max(divisors))
    return sharding.make_mesh(1, 1, max(divisors) if jax.default_backend() == "cpu" else 1)


def run_memory(case: dict) -> dict:
    """Forward, or forward and backward, of one layer on [batch, length, width] random input."""
    mesh = head_mesh(case["heads"])
    with jax.set_mesh(mesh):
        return _run_memory(case, mesh)


def _run_memory(case: dict, mesh: Mesh) -> dict:
    cfg = neural.NeuralMemoryConfig(
        width=case["width"],
        head_dim=case["width"] // case["heads"],
        chunk=case["chunk"],
        dtype=case["dtype"],
    )
    specs = layer_specs(cfg)
    params = jax.device_put(P.init_params(specs, jax.random.key(0)), sharding.shardings(mesh, specs))
    x = jax.random.normal(jax.random.key(1), (case["batch"], case["length"], case["width"]))
    x = jax.device_put(x, sharding.replicated(mesh))
    state_specs = neural.state_specs(cfg, case["batch"])
    view = VIEWS[case["view"]]

    def forward(params, x):
        state = neural.init_state(params["memory"], cfg, case["batch"])
        return layer(params, sharding.constrain_tree(state, state_specs), x, cfg, view)

    def loss(params, x):
        return jnp.square(forward(params, x)[0]).mean()

    before = measure.peak_mb()
    work = jax.value_and_grad(loss, argnums=(0, 1)) if case["backward"] else forward
    compiled, seconds, temporaries = _compile(work, params, x)
    result = measure.measure(lambda: jax.block_until_ready(compiled(params, x)), case["seconds"], case["repeats"])
    return {
        **result,
        "tokens": case["batch"] * case["length"],
        "before_mb": before,
        "compile_s": seconds,
        "temporaries_mb": temporaries,
    }


# ------------------------------------------------------------------------------------------------- the whole model


def model_config(case: dict) -> language_model.LanguageModelConfig:
    """MAC over bytes: every other layer has the memory, the others attend over a window as long as the segment."""
    head = case["width"] // case["heads"]
    return language_model.LanguageModelConfig(
        vocabulary=256,
        width=case["width"],
        layers=case["layers"],
        pattern=(WindowConfig(case["segment"]), MacConfig(memory=neural.NeuralMemoryConfig(head_dim=head, chunk=case["chunk"]))),
        head_dim=head,
        segment=case["segment"],
        prefix=case["prefix"],
        style=replace(TITANS, embedding="matrix"),
        dtype=case["dtype"],
        remat=case["remat"],
    )


def run_training(case: dict) -> dict:
    """One update of the MAC model: gradients through the whole sequence."""
    return run_update(model_config(case), TrainingConfig(batch=case["batch"]), case)


def run_segments(case: dict) -> dict:
    """One update of a model that reads segment by segment; the gradient flows through all of them."""
    training = TrainingConfig(batch=case["batch"], call_tokens=case["segment"], remat=case["remat"])
    return run_update(segmented_config(case), training, case)


def segmented_config(case: dict):
    """RMT, ARMT or Transformer-XL over bytes, as large as the peer's of the same case."""
    layer, style = {"transformer_xl": (CachedConfig(XlConfig(case["segment"])), TRANSFORMER_XL),
                    "rmt": (SegmentConfig(), replace(GPT2, scale_embedding=True)),
                    "armt": (ArmtLayerConfig(), replace(GPT2, scale_embedding=True))}[case["model"]]
    inside = language_model.LanguageModelConfig(
        vocabulary=256, width=case["width"], layers=case["layers"], head_dim=case["width"] // case["heads"],
        hidden=4 * case["width"], segment=case["segment"], pattern=(layer,), style=style)
    if case["model"] == "transformer_xl":
        return inside
    return RmtConfig(inside, tokens=case["memory"], form="paper" if case["model"] == "rmt" else "suffix")


def run_diagonal(case: dict) -> dict:
    """Forward and backward of Transformer-XL over all segments, layer after layer or along diagonals."""
    cfg = segmented_config(case | {"model": "transformer_xl"})
    params = P.init_params(language_model.specs(cfg), jax.random.key(0))
    state = language_model.init_state(params, cfg, case["batch"])
    segments = case["length"] // case["segment"]
    ids = jax.random.randint(jax.random.key(1), (segments, case["batch"], case["segment"]), 0, 256)

    def sequential(params):
        return jax.lax.scan(lambda s, x: language_model.run(params, s, x, cfg, Call(whole=True))[1::-1], state, ids)[1]

    def diagonal(params):
        return language_model.run_segments(params, state, ids, cfg)[0]

    walk = {"sequential": sequential, "diagonal": diagonal}[case["order"]]
    compiled, seconds, temporaries = _compile(jax.grad(lambda p: jnp.square(walk(p)).mean()), params)
    result = measure.measure(lambda: jax.block_until_ready(compiled(params)), case["seconds"], case["repeats"])
    return {**result, "tokens": case["batch"] * case["length"], "compile_s": seconds, "temporaries_mb": temporaries}


def run_update(model, training: TrainingConfig, case: dict) -> dict:
    """One update of the trainer: loss, gradients, clipping to norm 1, AdamW."""
    experiment = Experiment(
        model,
        TextConfig(sequence=case["length"]),
        OptimizerConfig(learning_rate=3e-4, steps=1000, warmup_steps=10),
        training,
    )
    update = update_of(experiment, bind(model))
    use_cores(experiment.training, case["batch"])
    mesh = sharding.make_mesh(-1, 1, 1)
    ids = jax.random.randint(jax.random.key(1), (case["batch"], case["length"] + 1), 0, 256)
    batch = Batch(ids[:, :-1], ids[:, 1:], jnp.ones((case["batch"],), bool))
    with jax.set_mesh(mesh):
        init = jax.jit(lambda key: init_train_state(update, key), out_shardings=state_shardings(update, mesh))
        state = init(jax.random.key(0))
        before, start = measure.peak_mb(), time.perf_counter()
        step = compile_step(update, mesh).lower(state, batch).compile()
        compile_s, temporaries = time.perf_counter() - start, step.memory_analysis().temp_size_in_bytes / 1e6
        losses = []

        def work():
            nonlocal state
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))

        result = measure.measure(work, case["seconds"], case["repeats"])
    return {
        **result,
        "tokens": case["batch"] * case["length"],
        "before_mb": before,
        "compile_s": compile_s,
        "temporaries_mb": temporaries,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "parameters": P.count(update.model.specs()),
    }


def run_sampling(case: dict) -> dict:
    """`new` tokens after a prompt of `length`; the prompt's own pass is timed apart."""
    cfg, batch = model_config(case), case["batch"]
    # Layers side by side: a loop over layers copies the weights and the carry of each layer for each token.
    model = bind(replace(cfg, unroll=cfg.repeats))
    params = model.init(jax.random.key(0))
    prompt = np.asarray(jax.random.randint(jax.random.key(1), (batch, case["length"]), 0, 256))
    start = time.perf_counter()
    stream = new_stream(model, params, batch, jax.random.key(2))
    session = open_session(model, params, stream, feed_blocks=(case["length"] - 1,), k=32)
    compile_s = time.perf_counter() - start
    last = prompt[:, -1]
    stream = session.restart(
        params, session.feed(params, stream, prompt[:, :-1]), np.ones(batch, bool), jax.random.key(3)
    )
    start = time.perf_counter()
    stream = jax.block_until_ready(session.feed(params, stream, prompt[:, :-1]))
    prefill = time.perf_counter() - start
    _, last, stream = decode_many(session, params, stream, last, 32, 1.0)
    start, cpu = time.perf_counter(), time.process_time()
    decode_many(session, params, stream, last, case["new"], 1.0)
    seconds = time.perf_counter() - start
    return {
        "prefill_s": prefill,
        "seconds": seconds,
        "tokens": batch * case["new"],
        "compile_s": compile_s,
        "cores_used": (time.process_time() - cpu) / seconds,
    }


# ----------------------------------------------------------------------------------------------- the machine itself


def run_ceiling(case: dict) -> dict:
    """The fastest float32 product of two square matrices, over the given sizes, in operations a second."""
    rates = {}
    for size in case["sizes"]:
        a = jax.random.normal(jax.random.key(0), (size, size))
        product = jax.jit(jnp.matmul)
        result = measure.measure(
            lambda a=a, product=product: product(a, a).block_until_ready(), case["seconds"] / len(case["sizes"])
        )
        rates[size] = (2 * size**3 / result["best_s"], result["cores_used"])
    best = max(rates, key=rates.get)
    return {"flops_per_second": rates[best][0], "size": best, "cores_used": rates[best][1], "seconds": 1.0, "tokens": 0}


def main() -> None:
    case = measure.read_case(__doc__)
    cases = {"memory": run_memory, "training": run_training, "sampling": run_sampling, "ceiling": run_ceiling,
             "segments": run_segments, "diagonal": run_diagonal}
    result = cases[case["what"]](case)
    device = jax.devices()[0]
    result |= {
        "tokens_per_second": result["tokens"] / result["seconds"],
        "peak_mb": measure.peak_mb(),
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
    }
    if stats := device.memory_stats():
        result["device_peak_mb"] = stats["peak_bytes_in_use"] / 1e6
    print(json.dumps(result))


if __name__ == "__main__":
    main()
