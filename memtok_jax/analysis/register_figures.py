"""Figures of a vision transformer's tokens. matplotlib is imported only when one is drawn (see `figures.available`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.analysis import discovery
from memtok_jax.analysis.collect import Collected, query_names
from memtok_jax.models.vision.output import split

MOST_LAYERS, MOST_IMAGES, BINS = 12, 6, 60
COLOURS = {"patches": "C0", "registers": "C1", "cls": "C2", "added": "C3"}
WORDS = {"patches": "patches", "registers": "registers", "cls": "class token", "added": "added tokens"}


def _figure(width: float, height: float):
    # The object interface needs neither global state nor a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def norm_histograms(path: Path, c: Collected, layers: Sequence[Mapping[str, Any]], title: str) -> None:
    """Norms of all tokens before the final norm, one panel per layer, on log axes; the cut-off is a dashed line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = sorted({int(i) for i in np.linspace(0, len(c.norms) - 1, min(MOST_LAYERS, len(c.norms)))})
    columns = min(len(shown), 3)
    figure = _figure(4 * columns, 2.2 * -(-len(shown) // columns) + 0.8)
    figure.suptitle(title)
    grid = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    for axes, layer in zip(grid.flat, shown, strict=False):
        parts = {name: np.asarray(x).ravel() for name, x in split(c.norms[layer], c.counts).items() if x.size}
        everything = np.concatenate(list(parts.values()))
        bins = np.geomspace(everything[everything > 0].min() * 0.95, everything.max() * 1.05, BINS)
        for name, x in parts.items():    # a token added by an edit begins as zeros, which a log axis cannot show
            style = {"alpha": 0.5} if name == "patches" else {"histtype": "step", "linewidth": 1.5}
            axes.hist(x, bins, weights=np.full(x.size, 1 / x.size), color=COLOURS[name], label=WORDS[name], **style)
        if layers[layer]["cutoff"] is not None:
            axes.axvline(layers[layer]["cutoff"], color="black", linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", title="embedding" if layer == 0 else f"after layer {layer}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in grid.flat[len(shown):]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("norm of a token before the final norm")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of the tokens of a kind")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    _save(figure, path)


def layer_curves(path: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    """Six measures by layer, one line for each arm. tables: name of the arm -> its dicts from `measures.by_layer`."""
    wanted = (("max_over_median", "largest patch norm / median norm", "ratio"),
              ("share_above_3_medians", "patches with a norm above 3 medians", "share of patches"),
              ("kurtosis", "kurtosis of the residual stream", "kurtosis (3: normal distribution)"),
              ("sink_rate_0.3", "sink rate (epsilon 0.3)", "share of heads and images"),
              ("most_attended_over_uniform", "attention on the most attended patch / uniform", "ratio"),
              ("mass_on_registers", "attention on registers", "share of attention"))
    from matplotlib.ticker import MaxNLocator

    figure = _figure(11, 5.8)
    figure.suptitle(title)
    for axes, (name, words, unit) in zip(figure.subplots(2, 3).flat, wanted, strict=True):
        for n, (label, table) in enumerate(tables.items()):
            points = [(row["layer"], row[name]) for row in table if name in row]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{n}", label=label)
        if name == "mass_on_registers":
            level = next(iter(tables.values()))[-1]["uniform_mass_on_registers"]
            axes.axhline(level, color="grey", linestyle="--", linewidth=1, label="registers, if attention were uniform")
        axes.set(title=words, xlabel="layer", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    _save(figure, path)


def token_maps(path: Path, c: Collected, pixels: np.ndarray, title: str, patch: tuple[int, int] | None = None) -> None:
    """Panels for each of the first images: the image, norms of its patches, attention of class token, registers and one patch.

    Attention is that of the last layer, mean over heads, as a share of the largest value of its map. patch: as given to `collect`.
    """
    rows, names = min(MOST_IMAGES, len(pixels)), ["image", "patch norm", *query_names(c.counts, patch)]
    figure = _figure(1.7 * len(names) + 0.6, 1.7 * rows + 0.7)
    figure.suptitle(title)
    grid = figure.subplots(rows, len(names), squeeze=False)
    norms = c.patch_norms[-1].reshape(-1, *c.grid)
    for n in range(rows):
        _picture(grid[n, 0], pixels[n])
        shown = grid[n, 1].imshow(norms[n], vmin=0, vmax=norms[:rows].max(), cmap="viridis")
        for axes, values in zip(grid[n, 2:], c.maps[n], strict=True):
            attended = axes.imshow(values / values.max(), vmin=0, vmax=1, cmap="magma")
    figure.colorbar(shown, ax=grid[:, :2], shrink=0.8, location="bottom", pad=0.02, label="norm of a patch")
    figure.colorbar(attended, ax=grid[:, 2:], shrink=0.8, location="bottom", pad=0.02, label="attention / largest of the map")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize="small")
    for axes in grid.flat:
        axes.set_axis_off()
    _save(figure, path)


def boxes(path: Path, c: Collected, pixels: np.ndarray, truth: Sequence[np.ndarray], patch: int, title: str) -> None:
    """LOST's box (red) and the true ones (white, where known) of the first images."""
    count = min(2 * MOST_IMAGES, len(pixels))
    columns = min(count, MOST_IMAGES)
    figure = _figure(1.9 * columns, 1.9 * -(-count // columns) + 0.6)
    figure.suptitle(title)
    grid = figure.subplots(-(-count // columns), columns, squeeze=False)
    own = discovery.pixel_box(c.boxes, patch, pixels.shape[1:3])
    for axes in grid.flat:
        axes.set_axis_off()
    for n, axes in enumerate(grid.flat[:count]):
        _picture(axes, pixels[n])
        for box in truth[n]:
            _rectangle(axes, box, "white", "--")
        if c.valid[n]:
            _rectangle(axes, own[n], "red", "-")
    _save(figure, path)


def positions(path: Path, place: Mapping[str, Any], name: str) -> None:
    """How often each cell of the grid holds a special patch. place: from `measures.places`. name: of the special patches."""
    figure = _figure(4.6, 4)
    axes = figure.add_subplot()
    shown = axes.imshow(place["position_map"], vmin=0, cmap="viridis")
    axes.set(title=f"where the {name} stands", xlabel="column of patches", ylabel="row of patches")
    figure.colorbar(shown, ax=axes, label="share of images")
    _save(figure, path)


def _picture(axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)


def _rectangle(axes, box, colour: str, line: str) -> None:
    x0, y0, x1, y1 = (float(v) - 0.5 for v in box)
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linestyle=line, linewidth=1.5, clip_on=False)
