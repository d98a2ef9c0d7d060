"""The pages of the table of all memories: a task each, with its training, its choice of a rate, its test and its columns.

A page is a recipe for every model alike. What it takes from `configs/` is there for one memory; here the model, the rate and the
seed are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.memories import Sizes

KINDS = ("passkey", "number", "uuid")


class Budget(NamedTuple):
    """How much a page may take.

    share: updates as a share of the recipe's. books_steps: updates of 4,096 bytes. lengths: tested multiples of the trained length.
    samples: test rows of a task for each seed (of needles, 500 took longer than the training); five times as many choose a rate.
    stream, streams: tokens and number of the streams of books; 0: as many as there are.
    """

    share: float
    books_steps: int
    lengths: tuple[int, ...]
    samples: int
    stream: int
    streams: int


BUDGETS = {"tiny": Budget(0.004, 2, (1, 2), 10, 1024, 4), "small": Budget(1.0, 500, (1, 2, 4, 8, 16), 100, 8192, 64),
           "large": Budget(4.0, 2000, (1, 2, 4, 8, 16, 32), 500, 16_384, 0)}


class Page(NamedTuple):
    """A task.

    about: for the header. sizes: of the models. longest: tokens that full attention sees in the test.
    experiment: (model, rate, seed) -> run.
    valid: overrides under which a rate is chosen, by the number `judged`. test, suite: overrides and suite of the test.
    columns: what the test found -> the numbers of a row.
    """

    about: str
    sizes: Sizes
    longest: int
    experiment: Callable[[Any, float, int], Any]
    valid: tuple[str, ...]
    judged: str
    lower_is_better: bool
    test: tuple[str, ...]
    suite: str
    columns: Callable[[dict], dict[str, float]]


def pages(budget: Budget, text: str, data_dir: str) -> dict[str, Page]:
    """All pages by name, of those whose recipe is in `configs/`. text: source of the page "books"."""
    from memtok_jax import config

    made = {"needles": ("needles", lambda: needles(budget)), "books": ("", lambda: books(budget, text, data_dir)),
            "parity": ("state_tracking", lambda: tracking(budget, "parity")),
            "s3": ("state_tracking", lambda: tracking(budget, "s3"))}
    return {name: make() for name, (recipe, make) in made.items() if recipe in ("", *config.config_names())}


# ------------------------------------------------------------------------------------------------------------------------- tasks

def _shorter(base: Any, share: float) -> Any:
    """The experiment and its stages with a share of their updates."""
    steps = lambda count: max(round(count * share), 2)
    change = lambda text: re.sub(r"optimizer\.steps=(\d+)", lambda found: f"optimizer.steps={steps(int(found[1]))}", text)
    stages = tuple(map(change, base.training.curriculum))
    o = base.optimizer
    return replace(base, optimizer=replace(o, steps=steps(o.steps), warmup_steps=min(o.warmup_steps, steps(o.steps) // 2)),
                   training=replace(base.training, curriculum=stages, log_every=min(base.training.log_every, steps(o.steps))))


def _of_model(base: Any, model: Any, rate: float, seed: int) -> Any:
    """The recipe for one model, on one device. A call is the model's own unit where it writes memory tokens, as in training RMT."""
    call = model.segment if hasattr(model, "tokens") else base.training.call_tokens
    return replace(base, model=model, data=replace(base.data, seed=seed), optimizer=replace(base.optimizer, learning_rate=rate),
                   training=replace(base.training, call_tokens=call, seed=seed, data=1, sample_tokens=0))


def _rows(split: str, samples: int, lengths: str) -> tuple[str, ...]:
    """Overrides that name what a task is evaluated on."""
    return f"data.eval_split={split}", f"data.eval_samples={samples}", f"evaluation.lengths={lengths}"


def needles(budget: Budget) -> Page:
    """Pass-key, number and uuid in one model, by length (`configs/needles.py`)."""
    from memtok_jax import config, data

    base = _shorter(config.load("needles:window"), budget.share)
    trained, lengths = base.data.sequence, ",".join(map(str, budget.lengths))

    def columns(found: dict) -> dict[str, float]:
        return {f"{kind} {n}x": found[f"eval/{kind}_exact_at_{n * trained}"] for kind in KINDS for n in budget.lengths}

    return Page(f"whole values written, trained on rows of up to {trained} tokens", Sizes(data.vocabulary(base.data), 16, trained),
                max(budget.lengths) * trained, lambda model, rate, seed: _of_model(base, model, rate, seed),
                _rows("valid", 5 * budget.samples, "1"), "eval/accuracy", False, _rows("test", budget.samples, lengths), "needles",
                columns)


def tracking(budget: Budget, group: str) -> Page:
    """Products of group elements beyond the trained length (`configs/state_tracking.py`); the chunk of a neural memory is 1."""
    from memtok_jax import config, data

    base = _shorter(config.load(f"state_tracking:{group}_window"), budget.share)
    trained, lengths = base.data.sequence, ",".join(map(str, budget.lengths))

    def columns(found: dict) -> dict[str, float]:
        return {f"{group} {n}x": found[f"eval/whole_rows_at_{n * trained}"] for n in budget.lengths} | {
            f"{group} first lost": found["eval/first_lost"]}

    return Page(f"{group}: whole rows, trained on up to {trained} tokens", Sizes(data.vocabulary(base.data), 8, trained, chunk=1),
                max(budget.lengths) * trained, lambda model, rate, seed: _of_model(base, model, rate, seed),
                _rows("valid", 5 * budget.samples, "1"), "eval/accuracy", False, _rows("test", budget.samples, lengths),
                "state_tracking", columns)


# ------------------------------------------------------------------------------------------------------------------------- books

def books(budget: Budget, text: str, data_dir: str) -> Page:
    """Loss by position in streams of held-out text, against the same model with its carry reset, and against its twin."""
    from memtok_jax.data.text import TextConfig
    from memtok_jax.training.experiment import EvaluationConfig, OptimizerConfig, TrainingConfig

    row, visit, segment, test = 256, 8, 64, "test" if text in ("gutenberg_books", "wikitext2") else "valid"
    data = TextConfig(text, sequence=row, contiguous=False, visit=visit, data_dir=data_dir, eval_bytes=16_384)
    optimizer = OptimizerConfig(learning_rate=2e-3, steps=budget.books_steps, warmup_steps=budget.books_steps // 20,
                                final_fraction=0.02)
    training = TrainingConfig(batch=16, call_tokens=segment, log_every=min(20, budget.books_steps))
    base = _Recipe(data, optimizer, training, EvaluationConfig(batch=16))

    def columns(found: dict) -> dict[str, float]:
        lines = {line["tokens"]: line for line in found["by_position"]["lines"]}
        last = [line for line in lines.values() if "first" in line][-1]
        out = {"bits per byte": found["eval/bits_per_byte"], "reset": found["eval/reset_minus_own"],
               "reset, last bin": last["reset"][0]}
        if "frozen" in last:
            out["frozen"] = found["eval/frozen_minus_own"]
        if "against" in last:
            out |= {"twin": found["eval/against_minus_own"], "twin, last bin": last["against"][0]}
            out |= {"twin, far copies": lines["far copies"]["against"][0]} if "far copies" in lines else {}
        return out

    positions, about = "evaluation.positions", f"{text}: loss by position in streams of {budget.stream:,} bytes"
    if test == "valid":
        about += "; this text has no test split, so rates are chosen on a part of what is tested"
    return Page(about, Sizes(256, segment, row * visit), row * visit,
                lambda model, rate, seed: _of_model(base.experiment(model), model, rate, seed),
                ("data.eval_split=valid", "data.eval_bytes=131072", "evaluation.streams=8"), "eval/bits_per_byte", True,
                (f"data.eval_split={test}", "data.eval_bytes=0", f"{positions}.tokens={budget.stream}",
                 f"{positions}.streams={budget.streams}", f"{positions}.reset={segment}", f"{positions}.far={2 * segment}"),
                "positions", columns)


class _Recipe(NamedTuple):
    """An experiment that waits for its model."""

    data: Any
    optimizer: Any
    training: Any
    evaluation: Any

    def experiment(self, model: Any) -> Any:
        """With this model."""
        from memtok_jax.training.experiment import Experiment

        return Experiment(model, *self)
