"""Figures of a run as PNG files. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _new(xlabel: str, ylabel: str, title: str):
    # The object interface needs neither global state nor a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _levels(axes, levels: Mapping[str, float]) -> None:
    for n, (name, value) in enumerate(sorted(levels.items(), key=lambda item: item[1])):
        axes.axhline(value, color=f"C{n + 2}", linestyle="--", linewidth=1, label=f"{name}: {value:.3f}")


def curves(path: Path, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], levels: Mapping[str, float],
           xlabel: str, ylabel: str, title: str) -> None:
    """Draw lines over a common axis, and baselines as horizontal levels.

    lines: name -> (x, y). levels: name -> y. The first line is drawn thin (many noisy points), the others with dots.
    """
    figure, axes = _new(xlabel, ylabel, title)
    for n, (name, (x, y)) in enumerate(lines.items()):
        style = {"linewidth": 0.8, "alpha": 0.8} if n == 0 else {"marker": "o", "markersize": 4}
        axes.plot(x, y, label=name, color=f"C{n}", **style)
    _levels(axes, levels)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def by_distance(path: Path, points: Sequence[tuple[int, int, float, int]], levels: Mapping[str, float],
                ylabel: str, title: str) -> None:
    """Draw a mean against the distance from the start of the stream. points: (first, last, value, count) of bins."""
    figure, axes = _new("tokens of the stream read before", ylabel, title)
    axes.plot([(a + b) / 2 + 1 for a, b, _, _ in points], [y for _, _, y, _ in points], marker="o", markersize=4)
    axes.set_xscale("log", base=2)
    _levels(axes, levels)
    if levels:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def with_differences(path: Path, x: Sequence[float], lines: Mapping[str, Sequence[float]],
                     differences: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], marks: Sequence[float],
                     levels: Mapping[str, float], ylabel: str, title: str) -> None:
    """Draw lines over the position in a stream on the left, and differences to the first line with their intervals on the right.

    lines: name -> y. differences: name -> (mean, low, high). marks: positions that get a dotted line. levels: name -> y.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for n, (name, y) in enumerate(lines.items()):
        left.plot(x, y, marker="o", markersize=3, color=f"C{n}", label=name)
    for n, (name, value) in enumerate(levels.items()):
        left.axhline(value, color="grey", linestyle=("--", "-.", ":")[n % 3], linewidth=0.8, label=f"{name}: {value:.3f}")
    for n, (name, (mean, low, high)) in enumerate(differences.items(), 1):
        right.plot(x, mean, marker="o", markersize=3, color=f"C{n}", label=f"{name} - model")
        right.fill_between(x, low, high, color=f"C{n}", alpha=0.2, linewidth=0)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="above 0 the memory helps")
    for ax, label in ((left, ylabel), (right, f"difference in {ylabel}")):
        ax.set(xlabel="position in the stream (tokens)", ylabel=label)
        ax.set_xscale("log", base=2)
        for mark in marks:
            ax.axvline(mark, color="grey", linestyle=":", linewidth=0.8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def by_length(path: Path, lengths: Sequence[int], accuracy: Sequence[float], levels: Mapping[str, Sequence[float]],
              trained: int, title: str) -> None:
    """Draw accuracy against sequence length. levels: name -> accuracy at each length. trained: length of training."""
    figure, axes = _new("sequence length (tokens)", "accuracy (share of targets)", title)
    axes.plot(lengths, accuracy, marker="o", label="model")
    for n, (name, values) in enumerate(levels.items()):
        axes.plot(lengths, values, linestyle="--", color=f"C{n + 1}", label=name)
    axes.axvline(trained, color="grey", linewidth=0.8, linestyle=":", label=f"trained at {trained}")
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def panels(path: Path, parts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str, ylabel: str,
           title: str, accuracies: bool = True) -> None:
    """Draw several small figures side by side. parts: name of the panel -> name of the line -> (x, y).

    accuracies: y is from 0 to 1, and each x gets a dot and a tick.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 3 * len(parts), 3.8), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for ax, (name, lines) in zip(axes, parts.items(), strict=True):
        for line, (x, y) in lines.items():
            ax.plot(x, y, marker="o" if accuracies else None, markersize=4, label=line)
        ax.set(title=name, xlabel=xlabel)
        if accuracies:
            ax.set_ylim(-0.02, 1.02)
            ax.set_xticks(sorted({n for x, _ in lines.values() for n in x}))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    # Below all panels: inside one it would cover lines.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def grids(path: Path, parts: Mapping[str, Sequence[Sequence[float]]], columns: Sequence, rows: Sequence, xlabel: str, ylabel: str,
          title: str) -> None:
    """Draw shares from 0 to 1 as coloured cells with their numbers, side by side. parts: name -> [row][column]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 2.8 * len(parts), 3.2), layout="constrained")
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for ax, (name, cells) in zip(axes, parts.items(), strict=True):
        ax.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for y, line in enumerate(cells):
            for x, share in enumerate(line):
                ax.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize="small", color="black" if share > 0.6 else "white")
        ax.set(title=name, xlabel=xlabel)
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
    axes[0].set_ylabel(ylabel)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
