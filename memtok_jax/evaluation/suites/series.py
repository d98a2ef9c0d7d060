"""Series: squared and absolute errors of forecasts over all held-out cases, beside forecasts that need no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.config import UserError
from memtok_jax.data import series, series_baselines
from memtok_jax.evaluation.suites import Headline
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

HEADLINE = Headline("eval/mse", "mean squared error (z-scores)", lambda score: score.loss, "train/loss")
SHOWN = 3      # cases in the figure, evenly over the split, of the last channel


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Errors over all cases, steps and channels of the held-out split; no case is left out, and memories begin afresh in each.

    Raises UserError for a run on other data.
    """
    cfg = experiment.data
    if data.suite(cfg) != "series":
        raise UserError(f"suite 'series' judges forecasts, and this run is on {cfg.source}; leave out --suite")
    squared, absolute, count, shown = forecasts(params, cfg, experiment.evaluation.batch, model)
    say(f"{cfg.source}, horizon {cfg.horizon}, {cfg.eval_split}: squared error {squared:.4f}, absolute {absolute:.4f} over "
        f"{count:,} cases (z-scores)")
    yield "split", cfg.eval_split
    yield HEADLINE.name, squared
    yield "eval/mae", absolute
    yield "eval/cases", count
    for name, (mse, mae) in series_baselines.errors(cfg).items():
        say(f"    {name}: {mse:.4f}, {mae:.4f}")
        yield f"baseline/{name}", mse
        yield f"baseline/{name}_mae", mae
    if figures.available():
        figures.panels(workdir / "forecasts.png", shown, "rows", series.table(cfg).names[-1] + " (z-score)",
                       f"{workdir.name}: {cfg.source}, {cfg.eval_split}", accuracies=False)


@partial(jax.jit, static_argnames=("model",))
def forecast(params: P.Tree, inputs: jax.Array, *, model: Model) -> jax.Array:
    """Forecasts f32[B, 1, horizon * C] of cases f32[B, 1, look_back, C]."""
    return model.run(params, model.init_state(params, len(inputs)), inputs)[0]


def forecasts(params: P.Tree, cfg: series.SeriesConfig, rows: int, model: Model) -> tuple[float, float, int, dict]:
    """(mean squared error, mean absolute error, cases, lines for a figure)."""
    squared = absolute = 0.0
    cases, shown, channels = 0, {}, series.table(cfg).values.shape[1]
    every = series.starts(cfg, series.table(cfg), cfg.eval_split)
    chosen = set(np.linspace(0, len(every) - 1, SHOWN).round().astype(int).tolist())
    for batch in data.open_eval(cfg, rows):
        real, number = batch["length"] > 0, batch["document"]
        y = np.asarray(forecast(params, batch["inputs"], model=model), np.float64)[real]
        off = y - batch["targets"][real]
        squared, absolute, cases = squared + np.square(off).sum(), absolute + np.abs(off).sum(), cases + len(off)
        for n in np.flatnonzero(np.isin(number[real], list(chosen))):
            past, at = batch["inputs"][n, 0, :, -1], np.arange(cfg.look_back, cfg.look_back + cfg.horizon)
            lines = {"seen": (np.arange(cfg.look_back), past), "true": (at, batch["targets"][n, 0].reshape(-1, channels)[:, -1]),
                     "forecast": (at, y[n, 0].reshape(-1, channels)[:, -1])}
            shown[f"case {number[n]}"] = lines
    numbers = cases * cfg.horizon * channels
    return float(squared / numbers), float(absolute / numbers), cases, shown
