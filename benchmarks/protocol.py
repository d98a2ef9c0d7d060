"""How models are compared: learning rate of each chosen on validation, fresh seeds on the test, and when a difference counts.

A learning rate that suits one memory starves another, so each model is trained once with every rate, with a seed that is then
thrown away, and judged on validation data. If the best rate lies at the edge of the list, the list is extended there by one. Then
the model is trained anew with other seeds, and only these are tested.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

SELECTION_SEED = 100
RATES = (1e-3, 2e-3, 4e-3)


class Run(NamedTuple):
    """One training run of a row of the table."""

    model: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """A name for its files."""
        return f"{self.model.replace(' ', '_')}-{self.rate:g}-{self.seed}"


class Chosen(NamedTuple):
    """The rate of a model, and the validation score of every rate that was tried."""

    rate: float
    tried: dict[float, float]


def choose_rates(models: Iterable[str], rates: tuple[float, ...], score: Callable[[list[Run]], dict[Run, float]],
                 lower_is_better: bool) -> dict[str, Chosen]:
    """The best rate of each model. score: trains runs and gives the validation score of each that it has.

    With a single rate nothing is trained: it is taken. A model of which a score is missing has no rate yet and is left out.
    """
    models, rates, tried = list(models), sorted(rates), {}
    if len(rates) == 1:
        return {name: Chosen(rates[0], {}) for name in models}
    best = lambda name: (min if lower_is_better else max)(tried[name], key=tried[name].get)

    def more(runs: list[Run]) -> None:
        for run, value in (score(runs) if runs else {}).items():
            tried.setdefault(run.model, {})[run.rate] = value

    more([Run(name, rate, SELECTION_SEED) for name in models for rate in rates])
    models = [name for name in models if tried.get(name, {}).keys() >= set(rates)]
    beyond = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
    extended = {name: beyond[best(name)] for name in models if best(name) in beyond}
    more([Run(name, rate, SELECTION_SEED) for name, rate in extended.items()])
    models = [name for name in models if extended.get(name, rates[0]) in tried[name]]
    return {name: Chosen(best(name), dict(sorted(tried[name].items()))) for name in models}


def final_runs(chosen: dict[str, Chosen], seeds: int) -> list[Run]:
    """Runs with fresh seeds: 0, 1, ..."""
    return [Run(name, one.rate, seed) for seed in range(seeds) for name, one in chosen.items()]


def spread(values: list[float], digits: int) -> str:
    """Mean, and smallest and largest value; one value alone as it is."""
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def differ(a: list[float], b: list[float], error: float) -> bool:
    """Whether two rows differ: the ranges of their seeds do not overlap, and their means are more than two standard errors apart.

    error: standard error of one mean from the finite test data.
    """
    apart = max(a) < min(b) or max(b) < min(a)
    return apart and abs(statistics.mean(a) - statistics.mean(b)) > 2 * error


def tried(chosen: dict[str, Chosen], digits: int) -> dict[str, str]:
    """For a table: the validation scores of all rates, the chosen one in bold."""
    mark = lambda one, rate: "**" if rate == one.rate else ""
    lines = {name: ", ".join(f"{mark(one, rate)}{rate:g}: {value:.{digits}f}{mark(one, rate)}" for rate, value in one.tried.items())
             for name, one in chosen.items()}
    return {name: line or f"{chosen[name].rate:g} (given)" for name, line in lines.items()}
