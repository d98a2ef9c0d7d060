"""A pretrained decoder of 135M parameters, loaded, read with and written on, beside the transformers library.

    python -m benchmarks.pretrained_speed --peer_python=PATH --output=docs/results/pretrained_speed

PATH is a Python that has torch and transformers==5.23.0. The model has the sizes of SmolLM-135M (Llama style: 30 layers, width 576,
9 heads of queries and 3 of keys, hidden 1536, 49,152 words, tied) and random weights in float32. This program writes the folder;
both sides load it. One stream:

    prefill   512 tokens of a prompt into the cache, and no logits but those of the last token (ours: none; `decode` begins there)
    decode    32 tokens, greedily, one after the other with the cache, behind the prompt

The sides take turns, each case in a fresh process that may use one core or two (--cores; the last of the machine, or with --loose
any of them by as many threads). On a machine that others use, wall time is what they leave over; processor seconds (all threads)
say what a side asks of the machine. Both are printed. The peak holds mapped files too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from benchmarks import measure, report

SIZES = dict(vocabulary=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, hidden=1536)
WORK = {"prefill": "prompt", "decode": "tokens"}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--peer_python", default="", help="a Python with torch and transformers; left out: no peer")
    parser.add_argument("--layers", type=int, default=SIZES["layers"])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a decode call")
    parser.add_argument("--context", type=int, default=1024, help="tokens that our cache holds")
    parser.add_argument("--cores", type=int, nargs="+", default=sorted({1, min(2, measure.cores())}), help="of a case")
    parser.add_argument("--loose", action="store_true", help="set the number of threads alone, and let the system choose cores")
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is run; the median counts")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to repeat each work in a case")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a case is given up")
    parser.add_argument("--output", default="", help="write OUTPUT.md and OUTPUT.json")
    return parser.parse_args(arguments)


def write_folder(folder: Path, layers: int) -> None:
    """A folder with random weights, as large as a trained model's: matrices 1 / sqrt(in), words 0.1."""
    import numpy as np

    from memtok_jax import params as P
    from memtok_jax.convert import decoders
    from memtok_jax.models import language_model

    theirs = {"model_type": "llama", "vocab_size": SIZES["vocabulary"], "hidden_size": SIZES["width"], "num_hidden_layers": layers,
              "num_attention_heads": SIZES["heads"], "num_key_value_heads": SIZES["kv_heads"], "head_dim": SIZES["head_dim"],
              "intermediate_size": SIZES["hidden"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
              "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    cfg = decoders.config_of(decoders.read_config(theirs))
    rng = np.random.default_rng(0)

    def draw(path, spec) -> np.ndarray:
        name = str(path)
        if "norm" in name:
            return np.ones(spec.shape, np.float32)
        std = 0.1 if "embedding" in name else spec.shape[1] ** -0.5
        return std * rng.standard_normal(spec.shape, np.float32)

    import jax

    specs = P.abstract(language_model.specs(cfg))
    decoders.save(folder, jax.tree_util.tree_map_with_path(draw, specs), cfg, theirs)


def run_all(args: argparse.Namespace) -> list[dict]:
    """One record for each number of cores, work and side."""
    sides = {"ours": (sys.executable, "pretrained_our_cases")}
    sides |= {"transformers": (args.peer_python, "pretrained_peer_cases")} if args.peer_python else {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        write_folder(folder, args.layers)
        case = {"folder": str(folder), "prompt": args.prompt, "tokens": args.tokens, "context": args.context,
                "seconds": args.seconds, "pinned": not args.loose}
        runs: dict[tuple, list] = {}
        for turn, cores, side in itertools.product(range(args.rounds), args.cores, sides):
            report.progress(f"round {turn + 1}/{args.rounds}: {side}, {cores} core(s)")
            python, module = sides[side]
            result = measure.run_case(python, f"benchmarks.{module}", case | {"cores": cores}, args.timeout)
            runs.setdefault((cores, side), []).append(result | {"load": report.load_average()})
    report.progress("")
    return [{"cores": cores, "work": work, "side": side,
             **measure.median_of([r if "failed" in r else numbers_of(r, work, case) for r in results])}
            for work in WORK for (cores, side), results in runs.items()]


def numbers_of(result: dict, work: str, case: dict) -> dict:
    """The numbers of one kind of work: by wall time, and by processor time of one core."""
    own, tokens = result[work], case[WORK[work]]
    return {**own, **result["about"], "load_s": result["load_s"], "compile_s": result.get("compile_s", 0.0), "load": result["load"],
            "tokens_per_second": tokens / own["seconds"],
            "tokens_per_processor_second": tokens / (own["seconds"] * own["cores_used"])}


def row_of(records: list[dict], r: dict) -> list[str]:
    """One line of a table, with the ratios of ours to the peer's in the line of ours."""
    if "failed" in r:
        return [str(r["cores"]), r["side"], r["failed"], *[""] * 6]
    other = next((o for o in records if (o["work"], o["cores"]) == (r["work"], r["cores"]) and o["side"] != r["side"]), {})
    ratio = lambda name: f"{r[name] / other[name]:.2f}x" if r["side"] == "ours" and name in other else ""
    return [str(r["cores"]), r["side"], f"{r['tokens_per_second']:.1f}", ratio("tokens_per_second"),
            f"{r['tokens_per_processor_second']:.1f}", ratio("tokens_per_processor_second"), f"{r['load_s']:.2f}",
            f"{r['peak_mb']:,.0f}", f"{r['load']:.1f}"]


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The whole result as Markdown."""
    header = ["cores", "side", "tokens/s", "ours is faster", "tokens/processor s", "ours takes less", "load s", "peak MB",
              "load average"]
    parts = ["# Speed of a pretrained decoder", "", f"    {command}", "", report.machine(records, load), "",
             f"Llama style with the sizes of SmolLM-135M ({args.layers} layers), random weights, float32, one stream; median of "
             f"{args.rounds} rounds. What each side does: `benchmarks/pretrained_speed.py`."]
    titles = {"prefill": f"Prefill of {args.prompt} tokens", "decode": f"Decoding {args.tokens} tokens with the cache"}
    for work, title in titles.items():
        chosen = [r for r in records if r["work"] == work]
        parts += ["", f"## {title}", "", report.table(header, [row_of(chosen, r) for r in chosen])]
    ours = [f"{r['compile_s']:.0f} s on {r['cores']}" for r in records if r["side"] == "ours" and r["work"] == "decode"
            and "failed" not in r]
    return "\n".join([*parts, "", f"Compiling takes ours {', '.join(ours)} core(s) beside loading; later starts take the kept "
                                  "programs."])


if __name__ == "__main__":
    report.main("benchmarks.pretrained_speed", sys.argv[1:], parse, run_all, summary)
