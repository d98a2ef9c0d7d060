"""Forecasts without a trained model: repeat the last value, repeat the last day, and a linear map in closed form.

    ridge_nlinear   y - last = W (x - last), one W for all channels, W = (X'X + 1e-4 n I)^-1 X'Y over all n training cases of all
                    channels (NLinear of Zeng et al., arXiv 2205.13504, fitted without gradient steps)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from memtok_jax.data.series import SeriesConfig, Table, starts, table

RIDGE, PART = 1e-4, 2048     # strength of the ridge for each case; cases at a time
Forecast = Callable[[np.ndarray], np.ndarray]


def errors(cfg: SeriesConfig) -> dict[str, tuple[float, float]]:
    """(mean squared, mean absolute) error of each baseline over all cases, steps and channels of the held-out split."""
    return _errors(cfg, table(cfg).origin)


@functools.lru_cache(maxsize=8)
def _errors(cfg: SeriesConfig, origin: str) -> dict[str, tuple[float, float]]:
    found = table(cfg)
    forecasts = {"repeat": lambda x: repeat(x, cfg.horizon), "seasonal": lambda x: seasonal(x, cfg.horizon, found.day),
                 "ridge_nlinear": linear(ridge(cfg, found))}
    return {name: error(cfg, found, forecast) for name, forecast in forecasts.items()}


def repeat(x: np.ndarray, horizon: int) -> np.ndarray:
    """Last value for all steps: [n, look_back] -> [n, horizon]."""
    return np.repeat(x[:, -1:], horizon, axis=1)


def seasonal(x: np.ndarray, horizon: int, day: int) -> np.ndarray:
    """Value of the same hour of the last day; what is seen if that is less than a day."""
    return np.take(x, x.shape[1] - min(day, x.shape[1]) + np.arange(horizon) % min(day, x.shape[1]), axis=1)


def linear(weights: np.ndarray) -> Forecast:
    """The forecast of a linear map [look_back, horizon] of differences to the last value."""
    return lambda x: (x - x[:, -1:]) @ weights + x[:, -1:]


def ridge(cfg: SeriesConfig, found: Table) -> np.ndarray:
    """W' [look_back, horizon] in float64."""
    squares, products, count = np.zeros((cfg.look_back, cfg.look_back)), np.zeros((cfg.look_back, cfg.horizon)), 0
    for x, y in parts(cfg, found, "train"):
        last = x[:, -1:]
        squares += (x - last).T @ (x - last)
        products += (x - last).T @ (y - last)
        count += len(x)
    return np.linalg.solve(squares + RIDGE * count * np.eye(cfg.look_back), products)


def parts(cfg: SeriesConfig, found: Table, split: str):
    """(look-back [n, look_back], future [n, horizon]) of all cases of a split, one channel and some cases at a time."""
    every = starts(cfg, found, split)
    for channel in found.values.T:
        whole = sliding_window_view(channel, cfg.look_back + cfg.horizon)[every[0]:every[-1] + 1]
        for begin in range(0, len(whole), PART):
            piece = whole[begin:begin + PART]
            yield piece[:, :cfg.look_back], piece[:, cfg.look_back:]


def error(cfg: SeriesConfig, found: Table, forecast: Forecast) -> tuple[float, float]:
    """(mean squared, mean absolute) error of a forecast of one channel."""
    squared = absolute = count = 0.0
    for x, y in parts(cfg, found, cfg.eval_split):
        off = forecast(x) - y
        squared, absolute, count = squared + float(np.square(off).sum()), absolute + float(np.abs(off).sum()), count + off.size
    return squared / count, absolute / count
