"""Time of one token of an endless stream: the ring, a recomputed window, and a full cache.

    python -m benchmarks.window_speed --output=docs/results/window_speed

For each number of slots S, with 4 pinned tokens:

    ring        the last S - 4 keys and the first 4 stay where they are; a token is one query (StreamingLLM, arXiv 2309.17453)
    recomputed  the model reads the last S tokens again for each token, as one segment of plain causal attention; this needs no
                pinned tokens
    full cache  keys of all of --full tokens are kept: one query to all of them, and memory that grows with the stream

All are one call from Python for one token, one row, float32, parameters random; weights and carry are arguments, the carry is
donated. The paper measures up to 22.2 times against recomputation; that baseline is a weak one, hence the full cache beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, report, sweep
from memtok_jax.compiler import options
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind

SINKS = 4


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--full", type=int, default=16_384, help="tokens in the full cache")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=1.0, help="time to repeat a case in a round")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def model_of(args: argparse.Namespace, mixer, segment: int = 0):
    """The model, all layers compiled side by side, as decoding wants it."""
    return bind(LanguageModelConfig(width=args.width, layers=args.layers, pattern=(mixer,), head_dim=32, segment=segment,
                                    unroll=args.layers))


def streaming(model, fill: int):
    """A function without arguments that consumes one token; the carry has `fill` tokens already. And the size of the carry."""
    params = model.init(jax.random.key(0))
    state = model.init_state(params, 1)
    own, weights, state = model.unstack(params, state)
    step = jax.jit(lambda p, s, ids: own.run(p, s, ids)[:2], donate_argnums=1, compiler_options=options(jax.default_backend()))
    feed = jax.jit(lambda p, s, ids: own.run(p, s, ids)[1], donate_argnums=1, compiler_options=options(jax.default_backend()))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 256)), jnp.int32)
    for _ in range(fill // 256):
        state = feed(weights, state, ids)
    held = [state]

    def one():
        logits, held[0] = step(weights, held[0], ids[:, :1])
        return logits.block_until_ready()

    return one, sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def recomputing(model, slots: int):
    """A function without arguments that computes the logits behind a window of tokens. And the size of what it keeps."""
    params = model.init(jax.random.key(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, slots)), jnp.int32)

    @partial(jax.jit, compiler_options=options(jax.default_backend()))
    def last(params, ids):
        return model.run(params, model.init_state(params, 1), ids, Call(whole=True))[0][:, -1]

    return lambda: last(params, ids).block_until_ready(), ids.nbytes


def run_all(args: argparse.Namespace) -> list[dict]:
    """A record for each way and size; rounds in which all take turns."""
    ways = {("full cache", args.full): streaming(model_of(args, WindowConfig(args.full)), args.full)}
    for slots in args.slots:
        report.progress(f"compiling {slots} slots")
        ways["ring", slots] = streaming(model_of(args, WindowConfig(slots - SINKS, SINKS)), 2 * slots)
        ways["recomputed", slots] = recomputing(model_of(args, CachedConfig(XlConfig(0)), slots), slots)
    times: dict[tuple, list[float]] = {key: [] for key in ways}
    for turn in range(args.rounds):
        for key, (work, _) in ways.items():
            report.progress(f"round {turn + 1}/{args.rounds}: {key[0]}, {key[1]} slots")
            times[key].append(measure.measure(work, args.seconds)["seconds"])
    report.progress("")
    return [{"way": way, "slots": slots, "seconds": statistics.median(times[way, slots]), "rounds": times[way, slots],
             "carry_bytes": ways[way, slots][1], **sweep.software()} for way, slots in ways]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The table: one line for each number of slots."""
    found = {(r["way"], r["slots"]): r for r in records}
    full = found["full cache", args.full]
    rows = []
    for slots in args.slots:
        ring, again = found["ring", slots], found["recomputed", slots]
        ms, times = (lambda r: f"{1e3 * r['seconds']:.2f}"), (lambda r, ring=ring: f"{r['seconds'] / ring['seconds']:.1f}x")
        rows.append([str(slots), ms(ring), ms(again), times(again), times(full), f"{ring['carry_bytes'] / 1e6:.2f}"])
    header = ["slots", "ring, ms a token", "recomputed, ms", "ring is faster by", "than the full cache by", "carry of the ring, MB"]
    about = (f"{args.layers} layers of width {args.width}, float32, one row. The full cache of {args.full:,} tokens takes "
             f"{1e3 * full['seconds']:.2f} ms a token and {full['carry_bytes'] / 1e6:.1f} MB.")
    return "\n\n".join(["# Time of a token of a stream", f"`{command}`", report.machine(records, load), about,
                        report.table(header, rows)])


if __name__ == "__main__":
    report.main("benchmarks.window_speed", sys.argv[1:], parse, run_all, summary)
