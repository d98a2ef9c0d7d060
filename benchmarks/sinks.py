"""What happens when the first tokens leave the window, and which models need them: StreamingLLM's tables 1 and 3 at a small scale.

    python -m benchmarks.sinks --output=docs/results/sinks                                      a small task, minutes
    python -m benchmarks.sinks --data=gutenberg_books --data_dir=DATA --output=docs/results/sinks_books      books, an hour and more

Each model is trained on whole contexts, each from an empty window, so that its first tokens are always seen. Then it reads
held-out streams with a window of equal size, in which the first 0, 1, 2 or 4 tokens of the stream keep their slots ("2+62").
Models differ in what else attention may go to (`memtok_jax/models/sinks.py`); "token" has a learned first token that never leaves.
Numbers are bits per token behind the first two windows of each stream. For "recomputed" the model reads the last window of tokens
alone, as if each token were the last of a training context; the table gives the difference to four kept tokens, on a sample.

Beside it, on the first 64 tokens of contexts: the sink rate (arXiv 2410.10781: the share of heads in which the first token gets
more than 0.3 of the attention), the attention that goes to no token, and the largest activation over the median one (arXiv
2402.17762). Learning rates are not tuned; scores are of test data.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report, sweep
from benchmarks.stream import read_run
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
PINNED = (0, 1, 2, 4)
ROWS, CALL = 16, 512                  # streams side by side, tokens of a call
SAMPLED, LOOKED = 512, (64, 64)       # tokens predicted from a recomputed window; contexts and their length for the sink rate


class Setting(NamedTuple):
    """Sizes for one source of data. slots: of the window, and tokens of a context."""

    slots: int
    width: int
    layers: int
    steps: int
    batch: int
    learning_rate: float


SETTINGS = {"backcopy": Setting(64, 64, 3, 1000, 32, 2e-3), "gutenberg_books": Setting(256, 192, 4, 1500, 4, 3e-3)}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", default="backcopy", choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=0, help="updates; 0: as in SETTINGS, like the next four")
    parser.add_argument("--batch", type=int, default=0, help="contexts of an update")
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=0.0)
    parser.add_argument("--test_tokens", type=int, default=65_536, help="test tokens that are scored")
    parser.add_argument("--data_dir", default="", help="folder of the local data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/sinks"), help="run directories")
    parser.add_argument("--output", default="", help="write OUTPUT.md, OUTPUT.json and OUTPUT.png")
    return parser.parse_args(arguments)


def setting(args: argparse.Namespace) -> Setting:
    """The sizes of a command."""
    base = SETTINGS[args.data]
    return Setting(*(getattr(args, name, 0) or value for name, value in zip(Setting._fields, base, strict=True)))


def experiment(name: str, seed: int, args: argparse.Namespace) -> Experiment:
    """The training of one model."""
    from memtok_jax.data.task import TaskConfig
    from memtok_jax.data.tasks.backcopy import BackcopyConfig, vocabulary
    from memtok_jax.data.text import TextConfig

    (prefix, style), own = MODELS[name], setting(args)
    books = args.data == "gutenberg_books"
    data = (TextConfig(args.data, own.slots, seed=seed, contiguous=False, visit=1, eval_bytes=32_768, data_dir=args.data_dir)
            if books else TaskConfig(BackcopyConfig(), own.slots, seed=seed))
    model = LanguageModelConfig(vocabulary=256 if books else vocabulary(BackcopyConfig()), width=own.width, layers=own.layers,
                                pattern=(WindowConfig(own.slots),), head_dim=32, prefix=prefix, style=replace(TITANS, **style))
    return Experiment(
        model=model, data=data,
        optimizer=OptimizerConfig(own.learning_rate, own.steps, own.steps // 10, final_fraction=0.02),
        training=TrainingConfig(own.batch, seed=seed, log_every=50, sample_tokens=0, data=1),
        evaluation=EvaluationConfig(batch=ROWS, streams=ROWS, lengths=(1,)))


# -------------------------------------------------------------------------------------------------------------- measurements

def pinning(cfg: LanguageModelConfig, sinks: int) -> Model:
    """The model with `sinks` of its slots kept for the first tokens of a stream."""
    return bind(replace(cfg, pattern=(WindowConfig(cfg.pattern[0].window - sinks, sinks),)))


def bits_of_streams(params, model: Model, ids: np.ndarray) -> np.ndarray:
    """f32[B, T] bits of each next token of streams ids[B, T + 1]."""

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
    """f32[N] bits of the tokens behind places `at` i32[N, 2] (row, column), each from the window of tokens that ends there."""
    model, slots = pinning(cfg, 0), cfg.pattern[0].window

    @jax.jit
    def last(params, windows):
        logits, _, _ = model.run(params, model.init_state(params, len(windows)), windows[:, :-1])
        return target_nats(logits[:, -1], windows[:, -1])[0]

    windows = np.stack([ids[row, column - slots + 1:column + 2] for row, column in at])
    parts = [last(params, jnp.asarray(part, jnp.int32)) for part in np.split(windows, len(windows) // 32)]
    return np.concatenate(parts) / np.log(2)


def looked(params, cfg: LanguageModelConfig, ids: np.ndarray) -> dict[str, Any]:
    """Sink rate, attention to no token, massive activations, of contexts ids[N, T]."""
    seen = jax.jit(partial(looking.look, cfg=cfg))(params, jnp.asarray(ids, jnp.int32))
    ratio, layer, place = looking.massive_activations(seen.hidden)
    return {"sink_rate": float(np.mean([sink_rate(one) for one in jnp.moveaxis(seen.weights, 1, 0)])),
            "off_token": looking.off_token_mass(seen.weights), "massive": ratio, "massive_state": layer, "massive_token": place}


def measured(place: Path, test: np.ndarray, contexts: np.ndarray) -> dict[str, Any]:
    """All numbers of a trained run. test: ids[B, T + 1] of streams. contexts: ids[N, T] of whole contexts."""
    saved, params = read_run(place)
    cfg = saved.model
    bits = {pinned: bits_of_streams(params, pinning(cfg, pinned), test) for pinned in PINNED}
    rng, skip = np.random.default_rng(0), 2 * cfg.pattern[0].window
    at = np.stack([rng.integers(0, len(test), SAMPLED), rng.integers(skip, test.shape[1] - 1, SAMPLED)], axis=1)
    gain = bits_recomputed(params, cfg, test, at) - bits[4][at[:, 0], at[:, 1]]
    return {"bits": {str(pinned): float(one[:, skip:].mean()) for pinned, one in bits.items()},
            "recomputed": float(gain.mean()), "recomputed_error": float(gain.std() / len(gain) ** 0.5),
            "curve": {str(pinned): one[:, :4 * skip].reshape(len(one), -1, 16).mean((0, 2)).tolist()
                      for pinned, one in bits.items()},
            **looked(params, cfg, contexts)}


def streams(data: Any, rows: int, tokens: int) -> np.ndarray:
    """ids[rows, tokens]: streams of the test books, spread evenly, or of the task; no training sample of it has their seed."""
    from memtok_jax.data.task import HELD_OUT, TaskConfig, module_of
    from memtok_jax.data.text import eval_text

    if isinstance(data, TaskConfig):
        return module_of(data).sample(data.task, tokens, rows, 2 * HELD_OUT).ids
    text = np.frombuffer(eval_text(replace(data, eval_split="test", eval_bytes=0)), np.uint8)
    begins = np.linspace(0, len(text) - tokens, rows).astype(int)
    return np.stack([text[begin:begin + tokens] for begin in begins])


# ------------------------------------------------------------------------------------------------------------------- report

def run_all(args: argparse.Namespace) -> list[dict]:
    """Train what is missing, and measure."""
    jobs = {f"{name.replace(' ', '_')}-{seed}": (name, seed) for name in args.models for seed in range(args.seeds)}
    found = sweep.run_all({job: experiment(*key, args) for job, key in jobs.items()}, args.folder)
    data, records = experiment("none", 0, args).data, []
    test, contexts = streams(data, ROWS, args.test_tokens // ROWS // CALL * CALL + 1), streams(data, *LOOKED)
    for job, (name, seed) in jobs.items():
        report.progress(f"reading with {job}")
        records.append({"model": name, "seed": seed, "seconds": found[job]["seconds"], "valid": found[job]["eval/loss"],
                        **measured(args.folder / job / "run", test, contexts), **sweep.software()})
    report.progress("")
    return records


def summary(records: list[dict], args: argparse.Namespace, command: str, load: float) -> str:
    """The table: one line a model and seed."""
    own = setting(args)
    kept = [f"{pinned}+{own.slots - pinned}" for pinned in PINNED]
    header = ["model", "seed", *kept, f"recomputed - {kept[-1]}", "sink rate", "to no token", "largest activation"]
    rows = [[r["model"], str(r["seed"]), *(f"{r['bits'][str(pinned)]:.3f}" for pinned in PINNED),
             f"{r['recomputed']:+.3f} +- {r['recomputed_error']:.3f}", f"{r['sink_rate']:.3f}", f"{r['off_token']:.3f}",
             f"{r['massive']:.0f} x (token {r['massive_token']}, state {r['massive_state']})"] for r in records]
    if args.output and figures.available():
        draw(args.output, records, own.slots)
    about = (f"{args.data}: {own.layers} layers of width {own.width}, {own.steps} updates of {own.batch} contexts of {own.slots} "
             f"tokens, learning rate {own.learning_rate:g}; {ROWS} test streams of {args.test_tokens // ROWS:,} tokens.")
    return "\n\n".join(["# Attention sinks", f"`{command}`", about, report.machine(records, load), report.table(header, rows)])


def draw(path: str, records: list[dict], slots: int) -> None:
    """Bits per token along the stream, without pinned tokens and with four, one panel a model."""
    panels = {}
    for r in (r for r in records if r["seed"] == 0):
        places = [16 * n + 8 for n in range(len(r["curve"]["0"]))]
        panels[r["model"]] = {f"{pinned}+{slots - pinned}": (places, r["curve"][str(pinned)]) for pinned in (0, 4)}
    figures.panels(Path(path + ".png"), panels, "tokens before", "bits per token", f"the first tokens leave at {slots}",
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
