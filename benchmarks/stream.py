"""Stream millions of tokens through small trained models and see whether anything grows.

    python -m benchmarks.stream --model=mac,mag,lmm --tokens=2000000
    python -m benchmarks.stream --workdir=RUN --tokens=2000000 --output=docs/results/stream

Without --workdir each model is first trained briefly on the standard library's text, in a process of its own, so that
what training took does not hide what streaming takes. Then, in a second process:

1. one stream of real text (the training text, cyclic), block by block, each byte scored as it comes: tokens per
   second, peak memory, compiles and bits per byte of each of four parts;
2. time of single tokens, of decoding k tokens per call and of blocks, each call waited for.

Recomputing a window for every token is what a model without a carry would have to do; its cost is that of a block.
Prints a table and, as the last line, everything as one JSON object; OUTPUT.md and OUTPUT.json where --output is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import measure

MODELS = ("mac", "mag", "lmm")
FEED_BLOCKS = (16, 64, 256)
PARTS = 4                             # of the long stream, reported one by one


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--model", default=",".join(MODELS), help="kinds of layers to train here, comma-separated")
    parser.add_argument("--workdir", default="", help="a run directory; its model is streamed instead")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="length of the stream")
    parser.add_argument("--block", type=int, default=512, help="tokens per call in the long stream")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows of the timed calls")
    parser.add_argument("--k", type=int, default=32, help="tokens per decoding call")
    parser.add_argument("--calls", type=int, default=1000, help="single-token calls to time; fewer of others")
    parser.add_argument("--width", type=int, default=128, help="of the models trained here")
    parser.add_argument("--layers", type=int, default=2, help="of the models trained here")
    parser.add_argument("--train_steps", type=int, default=60, help="updates of 8 x 512 bytes before streaming")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    parser.add_argument("--case", default="", help="JSON of one model, for the process that measures it")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------------------ the model

def prepare(case: dict) -> dict:
    """Train a model, or read it from a run directory, and write it and its text into `folder`."""
    import jax
    import numpy as np

    from memtok_jax import config
    from memtok_jax.data.text import train_text

    folder = Path(case["folder"])
    if case["workdir"]:
        (experiment, params), about = read_run(Path(case["workdir"])), case["workdir"]
    else:
        experiment = small_experiment(case)
        params, loss = train(experiment)
        about = f"trained here for {case['train_steps']} updates, to {loss / math.log(2):.2f} bits per byte"
    np.savez(folder / "params.npz", *jax.device_get(jax.tree.leaves(params)))
    (folder / "text").write_bytes(train_text(experiment.data))
    (folder / "model.json").write_text(config.to_json(experiment.model))
    return {"about": about}


def load_model(folder: Path):
    """(model, params, text) as `prepare` wrote them."""
    import jax
    import numpy as np

    from memtok_jax import config
    from memtok_jax.models.protocol import bind
    from memtok_jax.params import abstract

    model = bind(config.from_json((folder / "model.json").read_text()))
    with np.load(folder / "params.npz") as saved:
        leaves = [jax.device_put(saved[name]) for name in saved.files]
    params = jax.tree.unflatten(jax.tree.structure(abstract(model.specs())), leaves)
    return model, params, (folder / "text").read_bytes()


def read_run(workdir: Path):
    """Experiment and newest parameters of a run directory, on one device. Raises UserError where there are none."""
    import jax

    from memtok_jax.models.protocol import bind
    from memtok_jax.params import abstract
    from memtok_jax.training.checkpoint import Checkpoints
    from memtok_jax.training.run_folder import read_config

    experiment = read_config(workdir)
    shapes = abstract(bind(experiment.model).specs())
    with Checkpoints(workdir, keep=experiment.training.keep) as checkpoints:
        params, _ = checkpoints.restore_params(jax.tree.map(on_first_device, shapes))
    return experiment, params


def on_first_device(shape):
    """The same shape, to be restored onto one device."""
    import jax

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def small_experiment(case: dict):
    """A small model of one kind of layer on the standard library's text."""
    from memtok_jax.data.text import TextConfig
    from memtok_jax.memory.neural import NeuralMemoryConfig
    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig
    from memtok_jax.training.recipes import segment_of, titans_layer

    kind, memory = case["model"], NeuralMemoryConfig(head_dim=32, chunk=32)
    prefix = 0 if kind == "lmm" else 16   # nothing attends in an LMM, so nothing would read a prefix
    return Experiment(
        model=LanguageModelConfig(width=case["width"], layers=case["layers"], prefix=prefix,
                                  pattern=(titans_layer(kind, 128, memory),), segment=segment_of(kind, 128)),
        data=TextConfig(source="stdlib", sequence=512),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=case["train_steps"], warmup_steps=case["train_steps"] // 5),
        training=TrainingConfig(batch=8))


def train(experiment) -> tuple[dict, float]:
    """Parameters after the experiment's updates, and the loss of the last one in nats."""
    import jax

    from memtok_jax import data, sharding
    from memtok_jax.models.protocol import bind
    from memtok_jax.training.step import Batch, compile_step, init_train_state, update_of

    mesh, update = sharding.make_mesh(1, 1, 1), update_of(experiment, bind(experiment.model))
    with jax.set_mesh(mesh):
        step = compile_step(update, mesh)
        state = jax.jit(lambda key: init_train_state(update, key))(jax.random.key(0))
        batches = data.open_train(experiment.data, experiment.training.batch)
        for _ in range(experiment.optimizer.steps):
            batch = next(batches)
            state, metrics = step(state, Batch(batch["inputs"], batch["targets"], batch["start"]))
        batches.close()
        params = jax.device_get(state.params)
    return jax.device_put(params, jax.devices()[0]), float(metrics["loss"])


# ------------------------------------------------------------------------------------------------- the long stream

def blocks_of(text: bytes, block: int) -> Iterator:
    """Endless (ids i32[1, block], targets i32[1, block]) of a text, cyclic."""
    import numpy as np

    ids = np.frombuffer(text, np.uint8)
    first = 0
    while True:
        piece = np.take(ids, np.arange(first, first + block + 1), mode="wrap").astype(np.int32)[None]
        yield piece[:, :-1], piece[:, 1:]
        first = (first + block) % len(ids)


def stream_long(case: dict, model, params, text: bytes) -> dict:
    """Stream `tokens` tokens and report on each part."""
    import jax
    import jax.numpy as jnp

    from memtok_jax.inference import session as S
    from memtok_jax.inference import stream as F
    from memtok_jax.inference.compiles import compile_count
    from memtok_jax.training.machine import begin_peak

    block = case["block"]
    stream = S.new_stream(model, params, 1, jax.random.key(0))
    source = blocks_of(text, block)
    finite = jax.jit(F.is_finite)

    @functools.partial(jax.jit, donate_argnums=1)
    def append_and_score(params, stream, ids, targets):
        logits, stream = F.append(model, params, stream, ids, jnp.full(1, block, jnp.int32))
        return mean_nats(logits, targets), stream

    def run(calls: int, stream: F.Stream) -> tuple[F.Stream, dict]:
        begin_peak()
        nats, times, compiles = 0.0, [], compile_count()
        for _ in range(calls):
            start = time.perf_counter()
            score, stream = append_and_score(params, stream, *next(source))
            nats += float(score)
            times.append(time.perf_counter() - start)
        return stream, {
            "tokens": calls * block, "tokens_per_second": calls * block / sum(times), "peak_mb": measure.peak_mb(),
            "bits_per_byte": nats / calls / math.log(2), "finite": bool(finite(stream)),
            "compiles": compile_count() - compiles, "live_bytes": sum(a.nbytes for a in jax.live_arrays()),
            "block_ms": quantiles(times)}

    stream, _ = run(8, stream)                       # warm-up: every program has run once
    calls, parts = max(1, case["tokens"] // block // PARTS), []
    for _ in range(PARTS):
        stream, part = run(calls, stream)
        parts.append(part)
        say(f"{case['model']}: {part['tokens']:,} tokens, {part['tokens_per_second']:,.0f} a second, peak {part['peak_mb']:.1f} MB")
    return {"parts": parts, "peak_growth": parts[-1]["peak_mb"] / parts[0]["peak_mb"] - 1,
            "consumed": int(stream.t[0]), "stream_bytes": F.stream_bytes(model, 1),
            "stream_bytes_live": sum(leaf.nbytes for leaf in jax.tree.leaves(stream))}


def mean_nats(logits_BTV, targets_BT):
    """Mean negative log-likelihood of the targets."""
    import jax
    import jax.numpy as jnp

    picked = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits_BTV, axis=-1) - picked).mean()


# --------------------------------------------------------------------------------------------------- single calls

def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {"p50": 1e3 * ordered[last // 2], "p99": 1e3 * ordered[math.ceil(0.99 * last)]}


def time_calls(call: Callable, stream, calls: int) -> tuple[object, dict[str, float]]:
    """Quantiles of `stream = call(stream)`, each call waited for."""
    import jax

    times = []
    for i in range(calls + 3):
        start = time.perf_counter()
        stream = jax.block_until_ready(call(stream))
        if i >= 3:
            times.append(time.perf_counter() - start)
    return stream, quantiles(times)


def time_batch(case: dict, model, params, batch: int) -> dict:
    """Times of single tokens, decoding and blocks with `batch` streams side by side."""
    import jax
    import numpy as np

    from memtok_jax.inference import session as S
    from memtok_jax.inference.compiles import compile_count, compile_seconds

    k, calls = case["k"], case["calls"]
    stream = S.new_stream(model, params, batch, jax.random.key(1))
    before = compile_seconds()
    session = S.open_session(model, params, stream, feed_blocks=FEED_BLOCKS, k=k)
    out = {"batch": batch, "compile_seconds": compile_seconds() - before, "feed_ms": {}}
    ids = np.random.RandomState(0).randint(0, session.vocabulary, (batch, max(FEED_BLOCKS))).astype(np.int32)
    last, compiles = ids[:, 0].copy(), compile_count()
    stream, out["step_ms"] = time_calls(lambda s: session.step(params, s, last)[1], stream, calls)
    stream, out["decode_ms"] = time_calls(lambda s: session.decode(params, s, last, 1.0)[2], stream, max(3, calls // k))
    for n in FEED_BLOCKS:
        feed = functools.partial(session.feed, params, ids_BT=ids[:, :n])
        stream, out["feed_ms"][n] = time_calls(lambda s, feed=feed: feed(stream=s), stream, max(3, calls // n))
    return {**out, "compiles": compile_count() - compiles}


# ---------------------------------------------------------------------------------------------------- the command

def say(line: str) -> None:
    """Progress, beside the output."""
    print(line, file=sys.stderr, flush=True)


def run_one(case: dict) -> dict:
    """Everything about one model, in this process."""
    import jax

    model, params, text = load_model(Path(case["folder"]))
    long = stream_long(case, model, params, text)
    times = [time_batch(case, model, params, batch) for batch in case["batches"]]
    return {"model": case["model"], "about": case["about"], "k": case["k"], "block": case["block"], **long,
            "calls": times, "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "machine": {"device": jax.devices()[0].device_kind, "cores": measure.cores(), "jax": jax.__version__,
                        "python": platform.python_version()}}


PHASES = {"prepare": prepare, "run": run_one}


def in_a_process(case: dict, phase: str) -> dict:
    """One phase in a process of its own; its progress goes to stderr. Exits with its status where it fails."""
    command = [sys.executable, "-m", "benchmarks.stream", f"--case={json.dumps({**case, 'phase': phase})}"]
    done = subprocess.run(command, cwd=measure.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    machine = results[0]["machine"]
    size = results[0]["parts"][0]["tokens"]
    lines = [f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']}, Python {machine['python']}; "
             f"one stream in blocks of {results[0]['block']} tokens, {PARTS} parts of {size:,} tokens", ""]
    lines += [f"- {r['model']}: {r['about']}; {r['parameters']:,} parameters" for r in results]
    lines += ["", "| model | part | tokens/s | block p50 / p99 ms | peak MB | bits per byte | compiles | finite |",
              "|---|---|---|---|---|---|---|---|"]
    for r in results:
        for n, part in enumerate(r["parts"], 1):
            lines.append(f"| {r['model']} | {n} | {part['tokens_per_second']:,.0f} | {_both(part['block_ms'])} | "
                         f"{part['peak_mb']:.1f} | {part['bits_per_byte']:.3f} | {part['compiles']} | {part['finite']} |")
    lines += ["", "| model | peak memory, last part to first | tokens/s, last to first | stream MB declared | live |",
              "|---|---|---|---|---|"]
    for r in results:
        speed = r["parts"][-1]["tokens_per_second"] / r["parts"][0]["tokens_per_second"] - 1
        lines.append(f"| {r['model']} | {r['peak_growth']:+.2%} | {speed:+.1%} | {r['stream_bytes'] / 1e6:.3f} | "
                     f"{r['stream_bytes_live'] / 1e6:.3f} |")
    k = results[0]["k"]
    blocks = "".join(f" feed({n}) p50 ms |" for n in FEED_BLOCKS)
    lines += ["", f"| model | streams | step p50 / p99 ms | decode({k}) p50 / p99 ms per token |{blocks} "
              "compiles | compiling s |", "|---|---|---|---|" + "---|" * (len(FEED_BLOCKS) + 2)]
    for r in results:
        for c in r["calls"]:
            per_token = {q: ms / k for q, ms in c["decode_ms"].items()}
            feeds = "".join(f" {ms['p50']:.1f} |" for ms in c["feed_ms"].values())
            lines.append(f"| {r['model']} | {c['batch']} | {_both(c['step_ms'])} | {_both(per_token)} |{feeds} "
                         f"{c['compiles']} | {c['compile_seconds']:.1f} |")
    return "\n".join(lines)


def _both(ms: dict[str, float]) -> str:
    return f"{ms['p50']:.2f} / {ms['p99']:.2f}"


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    if args.case:
        case = json.loads(args.case)
        print(json.dumps(PHASES[case["phase"]](case)))
        return
    results = []
    for model in [Path(args.workdir).name] if args.workdir else args.model.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = {**vars(args), "model": model, "folder": folder}
            case |= in_a_process(case, "prepare")
            say(f"{model}: {case['about']}")
            results.append(in_a_process(case, "run"))
    text = table(results)
    print(text, "\n")
    print(json.dumps(results))
    if args.output:
        Path(args.output + ".md").write_text(text + "\n")
        Path(args.output + ".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
