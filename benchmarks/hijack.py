"""Controlled hijack: do background patches give up what they show to hold something global, and do registers spare them that?

    python -m benchmarks.hijack                       3 seeds x 0, 1, 4 registers and a control, minutes on two cores
    python -m benchmarks.hijack --steps=20 --seeds=1  a look

The mechanism of Vision Transformers Need Registers (arXiv 2309.16588: tables 1, 4, 5), not its norms. An image is a grid of
cells: some carry symbols whose texture has to be kept, the rest is one flat colour. Every patch must tell its position and its
pixels (local loss); every symbol patch must also tell one bit that depends on which kind of symbol is the most frequent (global
loss: the counts of all kinds need room, the answer little). The width is so small that local contents of a symbol patch nearly
fill it.

Predictions of the paper's mechanism: without registers, background tokens carry the answer and lose position and pixels
("hijack", against a control that is trained on the local losses alone); with registers, these carry it and the background keeps
its own ("relief", against 0 registers). Differences are taken between runs of the same seed; a prediction holds if the sign is
right in every seed and the mean is larger than twice its standard error. Otherwise the result is a null.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, report
from memtok_jax import params as P
from memtok_jax.analysis import attention, figures, norms, probes
from memtok_jax.compiler import options
from memtok_jax.models.vision import edits, vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import split, token_norms

ARMS = {"0 registers": 0, "1 register": 1, "4 registers": 4}
CONTROL = "0, local only"
BLOCK, TEST_IMAGES = 50, 1500


@dataclass(frozen=True)
class Task:
    """side: cells along the grid. patch: pixels along a cell. kinds: of symbols. fewest, most: symbols in an image.
    content: random numbers in the texture of a symbol. batch, rate, steps: of training. answer: weight of the global loss.
    """

    side: int = 8
    patch: int = 4
    kinds: int = 8
    fewest: int = 6
    most: int = 10
    content: int = 10
    width: int = 16
    layers: int = 4
    heads: int = 2
    batch: int = 32
    rate: float = 5e-3
    steps: int = 600
    answer: float = 1.0

    @property
    def cells(self) -> int:
        """n."""
        return self.side**2

    @property
    def pixels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch**2


class Sample(NamedTuple):
    """B images."""

    images: jax.Array    # f32[B, rows, columns, 3]
    pixels: jax.Array    # f32[B, n, P P 3] of each cell, row by row
    symbol: jax.Array    # bool[B, n]
    answer: jax.Array    # i32[B] the bit


def fixed(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What never changes: a pattern for each kind [kinds, P P 3], directions of contents [content, P P 3], the bit of each kind."""
    rng = np.random.default_rng(0)
    patterns = 0.7 * rng.choice([-1.0, 1.0], (task.kinds, task.pixels))
    directions = rng.standard_normal((task.content, task.pixels)) / np.sqrt(task.content)
    return patterns.astype(np.float32), directions.astype(np.float32), np.arange(task.kinds) % 2


def draw(task: Task, key: jax.Array, batch: int) -> Sample:
    """Fresh images. One kind is favoured in each, so that there is a most frequent one; of equals the first counts."""
    patterns, directions, bits = fixed(task)
    k = jax.random.split(key, 7)
    count = jax.random.randint(k[0], (batch, 1), task.fewest, task.most + 1)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(k[1], (batch, task.cells)), axis=1), axis=1)
    symbol = rank < count
    favoured = jax.random.randint(k[2], (batch, 1), 0, task.kinds)
    kind = jnp.where(jax.random.bernoulli(k[3], 0.4, (batch, task.cells)), favoured,
                     jax.random.randint(k[4], (batch, task.cells), 0, task.kinds))
    counts = (jax.nn.one_hot(kind, task.kinds) * symbol[..., None]).sum(1)
    colour = jnp.tile(jax.random.uniform(k[5], (batch, 1, 3), minval=-1.0, maxval=1.0), (1, 1, task.patch**2))
    texture = jnp.asarray(patterns)[kind] + jax.random.normal(k[6], (batch, task.cells, task.content)) @ directions
    pixels = jnp.where(symbol[..., None], texture, colour)
    rows = pixels.reshape(batch, task.side, task.side, task.patch, task.patch, 3).swapaxes(2, 3)
    images = rows.reshape(batch, task.side * task.patch, task.side * task.patch, 3)
    return Sample(images, pixels, symbol, jnp.asarray(bits)[counts.argmax(1)])


# ---------------------------------------------------------------------------------------------------------------- model

def vit_config(task: Task, registers: int) -> VitConfig:
    """No class token: nothing but patches and registers can hold the answer."""
    return VitConfig(width=task.width, layers=task.layers, heads=task.heads, hidden=4 * task.width, patch=task.patch,
                     grid=(task.side, task.side), registers=registers, class_token=False, table_rows="patches", layerscale=0.3,
                     std=0.1, token_std=0.1)


def specs(task: Task, registers: int) -> dict:
    """The transformer, and one linear head for position, pixels and answer, the same at every patch."""
    size = task.cells + task.pixels + 2
    return {"vit": vit.specs(vit_config(task, registers)), "head": P.ParamSpec((task.width, size), (None, None), P.fan_in())}


def losses(params, sample: Sample, task: Task, registers: int) -> dict[str, jax.Array]:
    """Mean position loss, pixel error and global loss and accuracy: f32[] each."""
    out = vit.features(params["vit"], sample.images, vit_config(task, registers))
    place, pixels, answer = jnp.split(out.patches @ params["head"], [task.cells, task.cells + task.pixels], axis=2)
    position = -jnp.diagonal(jax.nn.log_softmax(place), axis1=1, axis2=2).mean()
    square = jnp.square(pixels - sample.pixels).mean()
    chosen = jax.nn.log_softmax(answer)[:, :, 0] * (sample.answer == 0)[:, None]
    chosen += jax.nn.log_softmax(answer)[:, :, 1] * (sample.answer == 1)[:, None]
    right = answer.argmax(2) == sample.answer[:, None]
    asked = sample.symbol / sample.symbol.sum()
    return {"position": position, "pixels": square, "answer": -(chosen * asked).sum(), "accuracy": (right * asked).sum()}


def total(parts: dict[str, jax.Array], weight: float) -> jax.Array:
    """What is trained. weight: of the global loss."""
    return parts["position"] + parts["pixels"] + weight * parts["answer"]


@partial(jax.jit, static_argnames=("task", "registers"), compiler_options=options("cpu"))
def train(params, key: jax.Array, weight: float, task: Task, registers: int):
    """(parameters after all steps, losses of every BLOCK steps). key: typed; the images of every step follow from it.

    weight: of the global loss. It is data, so that the control shares the program of the arm without registers.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, task.rate, max(task.steps // 10, 1), task.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.0))

    def step(carry, n):
        params, moments = carry
        sample = draw(task, jax.random.fold_in(key, 1 + n), task.batch)

        def loss(p):
            parts = losses(p, sample, task, registers)
            return total(parts, weight), parts

        gradient, parts = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), parts

    (params, _), seen = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(task.steps))
    return params, jax.tree.map(lambda x: x[:task.steps // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1), seen)


# ----------------------------------------------------------------------------------------------------------- measurement

@partial(jax.jit, static_argnames=("task", "registers"), compiler_options=options("cpu"))
def look(params, sample: Sample, task: Task, registers: int):
    """(losses, output with hidden states and attention, mass on registers f32[L, B, M])."""
    cfg = vit_config(task, registers)
    out = vit.features(params["vit"], sample.images, cfg, capture=("hidden", "attention"))
    mass = jax.vmap(lambda a: attention.mass(a, out.counts))(out.captured["attention"])
    return losses(params, sample, task, registers), out, mass


@partial(jax.jit, static_argnames=("task", "registers"), compiler_options=options("cpu"))
def shuffled_accuracy(params, sample: Sample, task: Task, registers: int) -> jax.Array:
    """Accuracy of the answer when the registers of every layer are those of another image."""
    cfg = vit_config(task, registers)
    out = vit.features(params["vit"], sample.images, cfg,
                       edits=(edits.replace_registers("shuffle", range(cfg.layers + 1)),))
    right = (out.patches @ params["head"])[..., -2:].argmax(2) == sample.answer[:, None]
    return (right * sample.symbol).sum() / sample.symbol.sum()


def measured(params, weight: float, task: Task, registers: int, seed: int) -> dict[str, float]:
    """All numbers of one trained model on fresh images."""
    sample = draw(task, jax.random.fold_in(jax.random.key(10**6), seed), TEST_IMAGES)
    parts, out, mass = jax.device_get(look(params, sample, task, registers))
    symbol, answer = np.asarray(sample.symbol), np.asarray(sample.answer)
    patch_norms = np.asarray(token_norms(out)["patches"])
    record = {f"loss_{name}" if name != "accuracy" else "answer_accuracy": float(v) for name, v in parts.items()}
    record["loss"] = float(total(parts, weight))
    record |= _local(out.patches, symbol, np.asarray(sample.pixels), task)
    record |= {"max_over_median": norms.max_over_median(patch_norms), "kurtosis": norms.kurtosis(out.prenorm)}
    for layer, hidden in enumerate(out.captured["hidden"]):
        tokens = split(hidden, out.counts)
        record[f"answer_from_background_layer_{layer}"] = _answer(np.asarray(tokens["patches"]), ~symbol, answer)
        if registers:
            record[f"answer_from_register_layer_{layer}"] = max(
                probes.image_class(np.asarray(tokens["registers"])[:, m], answer, 2) for m in range(registers))
    record["answer_from_background"] = _answer(np.asarray(out.patches), ~symbol, answer)
    record["answer_from_symbol"] = _answer(np.asarray(out.patches), symbol, answer)
    record["answer_majority"] = float(max(answer.mean(), 1 - answer.mean()))
    if registers:
        record["answer_from_register"] = max(probes.image_class(out.registers[:, m], answer, 2) for m in range(registers))
        record["mass_on_registers"] = float(mass.sum(-1).mean())
        record["uniform_mass"] = registers / (registers + task.cells)
        record["accuracy_with_others_registers"] = float(shuffled_accuracy(params, sample, task, registers))
    return record


def _local(patches: np.ndarray, symbol: np.ndarray, pixels: np.ndarray, task: Task) -> dict[str, float]:
    """Position and pixels read from single tokens by probes, background and symbols apart."""
    few = 400
    numbers, cells = np.repeat(np.arange(few), task.cells), np.tile(np.arange(task.cells), few)
    parts, features = probes.parts_of(numbers), np.asarray(patches[:few]).reshape(len(cells), -1)
    place = probes.position(features, cells, (task.side, task.side), parts)
    error = probes.pixels(features, pixels[:few].reshape(len(cells), -1), parts)
    out = {}
    for name, among in (("background", ~symbol[:few].ravel()), ("symbol", symbol[:few].ravel())):
        rows = among & parts.score
        out |= {f"position_{name}": float(place.right[rows].mean()), f"pixel_error_{name}": float(error[rows].mean())}
    return out


def _answer(tokens: np.ndarray, among: np.ndarray, answer: np.ndarray) -> float:
    """Accuracy of the answer from one random token of each image, mean of three draws."""
    first = among.argmax(1)
    return float(np.mean([probes.image_class(probes.one_of(tokens, among, first, seed), answer, 2) for seed in range(3)]))


# --------------------------------------------------------------------------------------------------------------- verdict

# measure: (sign of the difference that the mechanism predicts, words)
TAKEN = {"answer_from_background": (1, "answer read from a background token"),
         "pixel_error_background": (1, "pixel error of background tokens"),
         "position_background": (-1, "position read from background")}
RELIEVED = {name: (-sign, words) for name, (sign, words) in TAKEN.items()} | {"loss": (-1, "joint loss")}


def compare(runs: list[dict], arm: str, base: str, predictions: dict[str, tuple[int, str]]) -> list[dict]:
    """Mean difference of an arm to another of the same seeds, its standard error, and whether each prediction holds."""
    by = {(r["arm"], r["seed"]): r for r in runs}
    out = []
    for name, (sign, words) in predictions.items():
        gaps = np.array([by[arm, seed][name] - by[base, seed][name] for which, seed in by if which == arm])
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("nan")
        holds = bool((np.sign(gaps) == sign).all() and abs(gaps.mean()) > 2 * error)
        out.append({"arm": arm, "base": base, "measure": name, "words": words, "predicted": sign, "difference": float(gaps.mean()),
                    "error": error, "holds": holds})
    return out


def effects(runs: list[dict]) -> list[dict]:
    """First whether a global question takes the background away (against the control), then whether registers give it back."""
    none, *others = ARMS
    taken = compare(runs, none, CONTROL, TAKEN)
    return taken + [effect for arm in others for effect in compare(runs, arm, none, RELIEVED)]


def verdict(found: list[dict]) -> str:
    """Two sentences: is the background hijacked, and do registers relieve it?"""
    parts = {"Hijack (0 registers against the control)": [e for e in found if e["base"] == CONTROL],
             "Relief (registers against none)": [e for e in found if e["base"] != CONTROL]}
    return " ".join(f"{name}: {_holds(some)}." for name, some in parts.items())


def _holds(some: list[dict]) -> str:
    held = [f"{e['words']} ({e['arm']})" for e in some if e["holds"]]
    return f"{len(held)} of {len(some)} predictions hold, {', '.join(held)}" if held else "null, no prediction holds"


def given_back(found: list[dict]) -> str:
    """One sentence: how much of the rise in pixel error of the background the registers undo, whether or not that holds."""
    by = {(e["arm"], e["base"]): e["difference"] for e in found if e["measure"] == "pixel_error_background"}
    none, *others = ARMS
    shares = [f"{-by[arm, none] / by[none, CONTROL]:.1%} ({arm})" for arm in others]
    return f"Of the rise in pixel error of background tokens, registers undo {', '.join(shares)}."


# ---------------------------------------------------------------------------------------------------------------- running

def run_one(task: Task, arm: str, seed: int) -> dict:
    """Train and measure one model."""
    begun, key, registers = time.monotonic(), jax.random.key(seed), ARMS.get(arm, 0)
    weight = 0.0 if arm == CONTROL else task.answer
    params = P.init_params(specs(task, registers), jax.random.fold_in(key, 0))
    params, seen = jax.block_until_ready(train(params, key, weight, task, registers))
    record = {"arm": arm, "seed": seed, "seconds": time.monotonic() - begun}
    record["curve"] = {name: np.asarray(values).tolist() for name, values in seen.items()}
    record |= measured(params, weight, task, registers, seed)
    background = ", ".join(f"{name} {record[f'{field}_background']:.3f}" for name, field in
                           (("answer", "answer_from"), ("position", "position"), ("pixel error", "pixel_error")))
    report.progress(f"{arm}, seed {seed}: answer {record['answer_accuracy']:.3f}, loss {record['loss']:.3f}; "
                    f"background: {background}; {record['seconds']:.0f} s\n")
    return record


def tables(runs: list[dict], found: list[dict]) -> str:
    """Means and deviations over seeds, then the effects."""
    names = list(dict.fromkeys(name for r in runs for name, value in r.items()
                               if isinstance(value, float) and name != "seconds"))
    rows = []
    for name in names:
        cells = []
        for arm in (*ARMS, CONTROL):
            values = [r[name] for r in runs if r["arm"] == arm and name in r]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "-")
        rows.append([name.replace("_", " "), *cells])
    header = ["mean ± deviation over seeds", *ARMS, CONTROL]
    lines = [[e["words"], e["arm"], e["base"], f"{e['difference']:+.4f} ± {e['error']:.4f}",
              "lower" if e["predicted"] < 0 else "higher", "yes" if e["holds"] else "no"] for e in found]
    differences = report.table(["measure", "arm", "against", "difference ± standard error", "predicted", "holds"], lines)
    return "\n\n".join([report.table(header, rows), differences])


def draw_figure(path: Path, runs: list[dict], task: Task) -> None:
    """Where the answer can be read, layer by layer, and the local errors of the background."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    layers = range(task.layers + 1)
    for n, arm in enumerate((*ARMS, CONTROL)):
        mine = [r for r in runs if r["arm"] == arm]
        for kind, style in (("background", "-"), ("register", "--")):
            known = [r for r in mine if f"answer_from_{kind}_layer_0" in r]
            if known:
                values = np.array([[r[f"answer_from_{kind}_layer_{i}"] for i in layers] for r in known])
                left.plot(layers, values.mean(0), style, marker="o", markersize=3, color=f"C{n}",
                          label=f"{arm}: {'background patch' if kind == 'background' else 'best register'}")
        for axes, name in ((middle, "pixel_error_background"), (right, "position_background")):
            axes.plot([n] * len(mine), [r[name] for r in mine], "o", color=f"C{n}")
    left.axhline(np.mean([r["answer_majority"] for r in runs]), color="grey", linestyle=":", linewidth=1, label="more frequent bit")
    left.set(title="answer read from one token", xlabel="layer", ylabel="accuracy", xticks=list(layers))
    left.legend(fontsize="x-small")
    for axes, title in ((middle, "pixel error of background tokens"), (right, "position read from background")):
        axes.set(title=title, xlabel="one dot a seed", xticks=range(len(ARMS) + 1))
        axes.set_xticklabels([*ARMS, CONTROL], rotation=20)
        axes.set_xlim(-0.5, len(ARMS) + 0.5)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main(arguments: list[str]) -> None:
    """Run all arms and seeds, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Task.steps)
    parser.add_argument("--width", type=int, default=Task.width)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="docs/results", help="folder for hijack.json, hijack.md and hijack.png")
    args = parser.parse_args(arguments)
    task, load, begun = Task(steps=args.steps, width=args.width), os.getloadavg()[0], time.monotonic()
    with ThreadPoolExecutor(measure.cores()) as pool:
        futures = [pool.submit(run_one, task, arm, seed) for seed in range(args.seeds) for arm in (*ARMS, CONTROL)]
        runs = [f.result() for f in futures]
    head = (f"`{report.command_line('benchmarks.hijack', arguments)}`: {args.steps} steps, {args.seeds} seeds, "
            f"{time.monotonic() - begun:.0f} s on {measure.cores()} cores (load average before the start {load:.1f}). "
            "Design, predictions and the rule of the verdict: `benchmarks/hijack.py`.")
    write(Path(args.output), head, runs, task)


def write(output: Path, head: str, runs: list[dict], task: Task) -> None:
    """Print the report, and write hijack.md, hijack.json and hijack.png."""
    found = effects(runs)
    text = "\n\n".join(["# Controlled hijack", head, f"**{verdict(found)}** {given_back(found)}", tables(runs, found)])
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "hijack.md").write_text(text + "\n\n![where the answer is](hijack.png)\n")
    (output / "hijack.json").write_text(json.dumps({"runs": runs, "effects": found}, indent=1) + "\n")
    if figures.available():
        draw_figure(output / "hijack.png", runs, task)


if __name__ == "__main__":
    main(sys.argv[1:])
