"""The figure of the table of all memories: needles by length, and what a memory is worth by position in books."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks import memories, pages
from memtok_jax.analysis import figures

FAMILIES = ("attention", "cache", "memory tokens", "neural memory", "selective scan")
STYLES = ("-", "--", "-.", ":", (0, (1, 3)))


def style_of(model: str) -> dict[str, Any]:
    """Colour of the family, line of the row in it."""
    family = memories.MEMORIES[model].family
    mine = [name for name, entry in memories.MEMORIES.items() if entry.family == family]
    return {"color": f"C{FAMILIES.index(family)}", "linestyle": STYLES[mine.index(model) % len(STYLES)], "label": model}


def draw(path: Path, done: dict[str, dict], lengths: tuple[int, ...]) -> None:
    """Panels: a kind of needle each, then the twin's loss minus the model's by position. Bands: least to most of the seeds."""
    kinds = pages.KINDS if "needles" in done else ()
    panels = [(kind, lambda ax, kind=kind: needles(ax, done["needles"], kind, lengths)) for kind in kinds]
    panels += [("books", lambda ax: twins(ax, done["books"]))] if "books" in done else []
    if not panels or not figures.available():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(panels), 4.6), layout="constrained")
    for ax, (title, fill) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        fill(ax)
        ax.set(title=title)
        ax.grid(alpha=0.3)
    entries = {label: line for ax in figure.axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(path, dpi=130)


def line(ax: Any, x: list[float], seeds: list[list[float]], style: dict[str, Any]) -> None:
    """Mean of the seeds with a band from the least to the most. seeds: [seed][x]."""
    at = list(zip(*seeds, strict=True))
    ax.plot(x, [statistics.mean(values) for values in at], marker="o", markersize=3, **style)
    ax.fill_between(x, [min(values) for values in at], [max(values) for values in at], color=style["color"], alpha=0.12,
                    linewidth=0)


def needles(ax: Any, page: dict[str, Any], kind: str, lengths: tuple[int, ...]) -> None:
    """Whole values by multiples of the trained length."""
    for model, seeds in page["columns"].items():
        if seeds:
            line(ax, list(lengths), [[one[f"{kind} {n}x"] for n in lengths] for one in seeds], style_of(model))
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{n}" for n in lengths])
    ax.set(xlabel="times the trained length", ylabel="whole values written", ylim=(-0.02, 1.02))


def twins(ax: Any, page: dict[str, Any]) -> None:
    """The twin's bits minus the model's by position."""
    for model, seeds in page["results"].items():
        bins = [[line for line in one["by_position"]["lines"] if "first" in line] for one in seeds]
        if bins and "against" in bins[0][0]:
            middle = [(line["first"] + line["behind"] - 1) / 2 + 1 for line in bins[0]]
            line(ax, middle, [[line["against"][0] for line in one] for one in bins], style_of(model))
    ax.set_xscale("log", base=2)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="position in the stream (bytes)", ylabel="bits of the twin - bits of the model")
