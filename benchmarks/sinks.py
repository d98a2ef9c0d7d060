"""What happens when the first tokens leave the window, and which models need them: StreamingLLM's tables 1 and 3 at a small scale.

    python -m benchmarks.sinks --data_dir=DATA --output=docs/results/sinks        7 models x 2 seeds
    python -m benchmarks.sinks --data_dir=DATA --steps=20 --seeds=1 --models none --test_bytes=20000    a look

Each model is trained on whole contexts of 256 bytes of books, each from an empty window, so that its first bytes are always seen.
Then it reads test books as streams, with a window of 256 slots, 0, 1, 2 or 4 of which the first bytes of the stream keep ("2+254").
Models differ in what else attention may go to (`memtok_jax/models/sinks.py`); "token" has a learned first token that never leaves.
Numbers are bits per byte, on bytes 512 and later of each stream. "recomputed" is the model on the last 256 bytes alone, as if each
byte were the last of a training context: the best that can be hoped for. It is measured on a sample of the bytes, and shown as the
difference to 4+252 on the same bytes.

byte were the last of a training context: the best that can be hoped for. It is measured on a sample of the bytes, shown as the
attention), the attention that goes to no byte, and the largest activation over the median one (arXiv 2402.17762).
The learning rate was chosen on the validation books, for "none"; scores are of the test books.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report, sweep
from memtok_jax.analysis import figures
from memtok_jax.analysis import text as looking
from memtok_jax.analysis.attention import sink_rate
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import Model, bind
from memtok_jax.models.style import TITANS
from memtok_jax.numerics import target_nats
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# Learned tokens in front, and what the style has.
MODELS = {"none": (0, {}), "token": (1, {}), "zero": (0, {"sink": "zero"}), "logit": (0, {"sink": "logit"}),
          "kv": (0, {"sink": "kv"}), "gate": (0, {"gate": "elementwise"}), "head gate": (0, {"gate": "head"})}
SLOTS, PINNED = 256, (0, 1, 2, 4)
ROWS, CALL, SKIP = 16, 512, 512       # streams side by side, tokens of a call, tokens that are not counted
SAMPLED, LOOKED = 512, (64, 64)       # bytes predicted from a recomputed window; texts and their length for the sink rate


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500, help="updates")
    parser.add_argument("--batch", type=int, default=4, help="contexts of an update")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--test_bytes", type=int, default=65_536, help="bytes of the test books that are scored")
    parser.add_argument("--data_dir", default="", help="folder of the local data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/sinks"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


def experiment(name: str, seed: int, args: argparse.Namespace) -> Experiment:
    """The training of one model."""
    from memtok_jax.data.text import TextConfig

    prefix, style = MODELS[name]
    model = LanguageModelConfig(width=args.width, layers=args.layers, pattern=(WindowConfig(SLOTS),), head_dim=32, prefix=prefix,
                                style=replace(TITANS, **style))
    return Experiment(
        model=model,
        data=TextConfig("gutenberg_books", SLOTS, seed=seed, contiguous=False, visit=1, eval_bytes=32_768, data_dir=args.data_dir),
        optimizer=OptimizerConfig(args.learning_rate, args.steps, args.steps // 10, final_fraction=0.02),
        training=TrainingConfig(args.batch, seed=seed, log_every=50, sample_tokens=0, data=1),
        evaluation=EvaluationConfig(batch=ROWS, streams=ROWS))


# -------------------------------------------------------------------------------------------------------------- measurements

def pinning(cfg: LanguageModelConfig, sinks: int) -> Model:
    """The model with so many of its slots for the first tokens."""
    return bind(replace(cfg, pattern=(WindowConfig(SLOTS - sinks, sinks),)))


def bits_of_streams(params, model: Model, ids: np.ndarray) -> np.ndarray:
    """f32[B, T] bits of each next byte of streams ids u8[B, T + 1]."""

    @jax.jit
    def call(params, state, ids):
        logits, state, _ = model.run(params, state, ids[:, :-1])
        return target_nats(logits, ids[:, 1:])[0], state

    state, out = model.init_state(params, len(ids)), []
    for begin in range(0, ids.shape[1] - 1, CALL):
        nats, state = call(params, state, jnp.asarray(ids[:, begin:begin + CALL + 1], jnp.int32))
        out.append(np.asarray(nats))
    return np.concatenate(out, axis=1) / np.log(2)


def bits_recomputed(params, cfg: LanguageModelConfig, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
    """f32[N] bits of the bytes behind places `at` i32[N, 2] (row, column), each from the window of bytes that ends there."""
    model = pinning(cfg, 0)

    @jax.jit
    def last(params, windows):
        logits, _, _ = model.run(params, model.init_state(params, len(windows)), windows[:, :-1])
        return target_nats(logits[:, -1], windows[:, -1])[0]

    windows = np.stack([ids[row, column - SLOTS + 1:column + 2] for row, column in at])
    parts = [last(params, jnp.asarray(part, jnp.int32)) for part in np.split(windows, len(windows) // 32)]
    return np.concatenate(parts) / np.log(2)


def looked(params, cfg: LanguageModelConfig, ids: np.ndarray) -> dict[str, Any]:
    """Sink rate, attention to no byte, massive activations."""
    texts, tokens = LOOKED
    places = np.random.default_rng(0).integers(0, ids.shape[1] - tokens, texts)
    cut = jnp.asarray(np.stack([ids[n % len(ids), at:at + tokens] for n, at in enumerate(places)]), jnp.int32)
    seen = jax.jit(partial(looking.look, cfg=cfg))(params, cut)
    ratio, layer, place = looking.massive_activations(seen.hidden)
    return {"sink_rate": float(np.mean([sink_rate(one) for one in jnp.moveaxis(seen.weights, 1, 0)])),
            "off_token": looking.off_token_mass(seen.weights), "massive": ratio, "massive_state": layer, "massive_token": place}


def measured(place: Path, test: np.ndarray) -> dict[str, Any]:
    """All numbers of a trained run. test: u8[B, T + 1] streams."""
    from memtok_jax import sharding
    from memtok_jax.evaluation.report import abstract_params
    from memtok_jax.training.checkpoint import Checkpoints, read_config

    cfg = read_config(place).model
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh), Checkpoints(place, None) as checkpoints:
        params, _ = checkpoints.restore_params(abstract_params(bind(cfg), mesh))
    params = jax.device_put(params, jax.devices()[0])
    bits = {pinned: bits_of_streams(params, pinning(cfg, pinned), test) for pinned in PINNED}
    rng = np.random.default_rng(0)
    at = np.stack([rng.integers(0, len(test), SAMPLED), rng.integers(SKIP, test.shape[1] - 1, SAMPLED)], axis=1)
    gain = bits_recomputed(params, cfg, test, at) - bits[4][at[:, 0], at[:, 1]]
    return {"bits": {str(pinned): float(one[:, SKIP:].mean()) for pinned, one in bits.items()},
            "recomputed": float(gain.mean()), "recomputed_error": float(gain.std() / len(gain) ** 0.5),
            "curve": {str(pinned): one[:, :2048].reshape(len(one), -1, 64).mean((0, 2)).tolist() for pinned, one in bits.items()},
            **looked(params, cfg, test)}


def streams(data: Any, test_bytes: int) -> np.ndarray:
    """u8[16, T + 1]: the test books, cut into streams of equal length."""
    from memtok_jax.data.text import eval_text

    text = np.frombuffer(eval_text(replace(data, eval_split="test", eval_bytes=0)), np.uint8)
    tokens = test_bytes // ROWS // CALL * CALL
    begins = np.linspace(0, len(text) - tokens - 1, ROWS).astype(int)   # spread over all books
    return np.stack([text[begin:begin + tokens + 1] for begin in begins])


# ------------------------------------------------------------------------------------------------------------------- report

def run_all(args: argparse.Namespace) -> list[dict]:
    """Train what is missing, and measure."""
    jobs = {f"{name.replace(' ', '_')}-{seed}": (name, seed) for name in args.models for seed in range(args.seeds)}
    found = sweep.run_all({job: experiment(*key, args) for job, key in jobs.items()}, args.folder)
    test = streams(experiment("none", 0, args).data, args.test_bytes)
    records = []
    for job, (name, seed) in jobs.items():
        report.progress(f"reading with {job}")
        records.append({"model": name, "seed": seed, "seconds": found[job]["seconds"], "valid": found[job]["eval/bits_per_byte"],
                        **measured(args.folder / job / "run", test), **sweep.software()})
    report.progress("")
    return records


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The table: one line a model and seed."""
    header = ["model", "seed", *(f"{pinned}+{SLOTS - pinned}" for pinned in PINNED), "recomputed - 4+252", "sink rate",
              "to no byte", "largest activation"]
    rows = [[r["model"], str(r["seed"]), *(f"{r['bits'][str(pinned)]:.3f}" for pinned in PINNED),
             f"{r['recomputed']:+.3f} +- {r['recomputed_error']:.3f}", f"{r['sink_rate']:.3f}", f"{r['off_token']:.3f}",
             f"{r['massive']:.0f} x (byte {r['massive_token']}, state {r['massive_state']})"] for r in records]
    if args.output and figures.available():
        draw(args.output, records)
    about = (f"{args.layers} layers of width {args.width}, {args.steps} updates of {args.batch} contexts of {SLOTS} bytes, "
             f"learning rate of {args.learning_rate:g}; {ROWS} streams of {args.test_bytes // ROWS:,} bytes of the test books.")
    return "\n\n".join(["# Attention sinks", f"`{command}`", about, report.machine(records, load), report.table(header, rows)])


def draw(path: str, records: list[dict]) -> None:
    """Bits per byte along the stream, without pinned tokens and with four, one panel a model."""
    panels = {}
    for r in (r for r in records if r["seed"] == 0):
        places = [64 * n + 32 for n in range(len(r["curve"]["0"]))]
        panels[r["model"]] = {f"{pinned}+{SLOTS - pinned}": (places, r["curve"][str(pinned)]) for pinned in (0, 4)}
    figures.panels(Path(path + ".png"), panels, "bytes of the stream before", "bits per byte", "the first bytes leave at 256",
                   accuracies=False)


def main(arguments: list[str]) -> None:
    args, load = parse(arguments), report.load_average()
    shown = [f"--data_dir={'DATA'}" if a.startswith("--data_dir=") else a for a in arguments]
    records = run_all(args)
    command = report.command_line("benchmarks.sinks", shown)
    text = summary(records, args, command, load)
    print(text)
    report.write(args.output, text, {"command": command, "load_average": load, "runs": records})


if __name__ == "__main__":
    main(sys.argv[1:])
