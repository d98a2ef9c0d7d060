"""Numbers about a vision transformer's tokens: does it have artifacts, where, and what does each kind of token carry?

Everything is computed from `collect.Collected`. A cut-off is always reported with the rule that found it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.analysis import discovery, norms, probes
from memtok_jax.analysis.attention import sink_rates, uniform_share
from memtok_jax.analysis.collect import Collected, other_names
from memtok_jax.models.vision import classifier
from memtok_jax.models.vision.output import VitOutput

DRAWS = 3                  # random choices of a patch for the global probe
LEAST_PER_CLASS = 8        # images, for the global probe
PROBE_ROWS = 40_000        # patches at most for the local probes


class Outliers(NamedTuple):
    """Patches of the last layer whose norm is an outlier; if the rule finds none, the patch with the highest norm of each image."""

    cutoff: norms.Cutoff
    name: str             # "outlier" or "highest norm"
    special: np.ndarray   # bool[N, n]
    highest: np.ndarray   # i64[N] the patch with the highest norm

    @property
    def word(self) -> str:
        """The name without spaces, for names of measures."""
        return self.name.replace(" ", "_")


def outliers(c: Collected) -> Outliers:
    """The outliers by the automatic rule (`norms.valley`), on the residual stream before the final norm."""
    last = c.patch_norms[-1]
    cutoff, highest = norms.valley(last), last.argmax(1)
    if cutoff.found:
        return Outliers(cutoff, "outlier", last > cutoff.value, highest)
    return Outliers(cutoff, "highest norm", np.arange(last.shape[1])[None] == highest[:, None], highest)


def by_layer(c: Collected) -> list[dict[str, Any]]:
    """One dict for the embedding (layer 0) and for each layer after it; attention is that of the layer."""
    out = []
    for layer, patch_norms in enumerate(c.patch_norms):
        cutoff = norms.valley(patch_norms)
        record = {"layer": layer, "rule": cutoff.rule, "cutoff": cutoff.value if cutoff.found else None,
                  "outlier_share": norms.share_above(patch_norms, cutoff.value),
                  **{f"share_above_{name}": share for name, share in norms.fixed_shares(patch_norms).items()},
                  "median_norm": float(np.median(patch_norms)), "max_over_median": norms.max_over_median(patch_norms),
                  "kurtosis": kurtosis(c.moments[layer]), "largest_entry": float(c.largest[layer].max()),
                  **_other_norms(c, layer)}
        out.append(record | (_attention(c, layer - 1) if layer else {}))
    return out


def kurtosis(moments_N4: np.ndarray) -> float:
    """Fourth central moment over squared variance of all images together, from the means of x, x^2, x^3, x^4 of each image."""
    m1, m2, m3, m4 = np.asarray(moments_N4, np.float64).mean(0)
    return float((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / max((m2 - m1**2) ** 2, 1e-300))


def _other_norms(c: Collected, layer: int) -> dict[str, float]:
    begin, row = 0, c.norms[layer]
    out = {}
    for name, count in c.counts._asdict().items():
        if count and name != "patches":
            out[f"{name}_norm"] = float(row[:, begin:begin + count].mean())
        begin += count
    return out


def _attention(c: Collected, layer: int) -> dict[str, Any]:
    shares = dict(zip(other_names(c.counts), c.mass[layer].mean(0).tolist(), strict=True))
    registers = [share for name, share in shares.items() if name.startswith("register")]
    return {**sink_rates(c.top_patch[layer], c.tokens), "mass": shares, "mass_on_registers": sum(registers),
            "uniform_mass_on_registers": uniform_share(c.counts)}


def places(c: Collected, found: Outliers) -> dict[str, Any]:
    """How much special patches repeat their neighbours, and the share of images with one at each cell and at the most frequent."""
    cosine = norms.neighbour_cosine(c.embeddings, c.grid)
    cells = norms.position_map(found.special, c.grid)
    return {f"neighbour_cosine_{found.word}": float(cosine[found.special].mean()),
            "neighbour_cosine_normal": float(cosine[~found.special].mean()), "most_frequent_cell": float(cells.max()),
            "position_map": cells.tolist()}


def local_probes(c: Collected, found: Outliers, pixels_NnC: np.ndarray) -> dict[str, float]:
    """Probes for position and pixels from single patch tokens after the final norm, scored on normal and special patches apart.

    pixels: normalised, f32[N, n, P P C]. Each probe is fitted on patches of both kinds, and scored on other images.
    """
    images, n = c.patches.shape[:2]
    few = min(images, max(PROBE_ROWS // n, 5))
    features = c.patches[:few].reshape(few * n, -1)
    cells, numbers = np.tile(np.arange(n), few), np.repeat(np.arange(few), n)
    parts = probes.parts_of(numbers)
    place = probes.position(features, cells, c.grid, parts)
    error = probes.pixels(features, pixels_NnC[:few].reshape(few * n, -1), parts)
    special = found.special[:few].reshape(-1)
    out = {}
    for name, among in (("normal", ~special), (found.word, special)):
        rows = among & parts.score
        if rows.any():
            out |= {f"position_accuracy_{name}": float(place.right[rows].mean()),
                    f"position_distance_{name}": float(place.distance[rows].mean()),
                    f"pixel_error_{name}": float(error[rows].mean())}
    return out


def global_probes(c: Collected, found: Outliers, labels_N: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy of the image's class from one token of each kind; for patches the mean and deviation over random choices.

    labels: i32[N]. Empty for one class, and for fewer than LEAST_PER_CLASS images per class.
    """
    if classes < 2 or len(labels_N) < LEAST_PER_CLASS * classes:
        return {}
    out = {"class_from_chance": 1 / classes}
    if c.counts.cls:
        out["class_from_cls"] = probes.image_class(c.cls[:, 0], labels_N, classes)
    for m in range(c.counts.registers):
        out[f"class_from_register_{m}"] = probes.image_class(c.registers[:, m], labels_N, classes)
    for name, among in (("normal", ~found.special), (found.word, found.special)):
        tokens = (probes.one_of(c.patches, among, found.highest, seed) for seed in range(DRAWS))
        scores = [probes.image_class(one, labels_N, classes) for one in tokens]
        out |= {f"class_from_{name}": float(np.mean(scores)), f"class_from_{name}_deviation": float(np.std(scores))}
    return out


def head(c: Collected, params, cfg: classifier.ClassifierConfig | None, labels_N: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy of the model's own head; its output n stands for class n of the images.

    params: "vit" and "head" of `models/vision/classifier.py`. Empty if there is no head (cfg None), or if its number of outputs
    differs from the number of classes.
    """
    if cfg is None or cfg.classes != classes:
        return {}
    out = VitOutput(c.cls, c.registers, c.patches, c.patches[:, :0], c.grid, c.counts)
    return {"accuracy": float((np.asarray(classifier.logits(params, out, cfg)).argmax(1) == labels_N).mean())}


def boxes(c: Collected, truth: Sequence[np.ndarray], patch: int, size: tuple[int, int]) -> dict[str, Any]:
    """LOST's box of every image in pixels and, if true boxes exist, CorLoc of LOST, of attention and of two fixed boxes."""
    own = discovery.pixel_box(c.boxes, patch, size)
    out = {"lost_valid": float(c.valid.mean()), "lost_boxes": own.tolist()}
    if not any(len(true) for true in truth):
        return out
    rows, columns = size
    whole, middle = [0, 0, columns, rows], [columns / 8, rows / 8, columns * 7 / 8, rows * 7 / 8]
    guesses = {"lost": own, "attention": discovery.pixel_box(c.attention_boxes, patch, size),
               "whole_image": np.tile(whole, (len(own), 1)), "middle_three_quarters": np.tile(middle, (len(own), 1))}
    return out | {f"corloc_{name}": discovery.corloc(guess, truth) for name, guess in guesses.items()}
