"""Test-time registers for a model that was trained without enough of them (arXiv 2506.08010): found, not trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from memtok_jax.analysis import register_neurons
from memtok_jax.config import UserError
from memtok_jax.models.vision import edits
from memtok_jax.models.vision.config import VitConfig


class Found(NamedTuple):
    """The edit, and where it comes from."""

    edits: edits.Edits
    neurons: tuple[tuple[int, int], ...]
    state: int         # hidden state whose norms were looked at
    cutoff: float


def test_time_registers(params, batches: Iterable[jax.Array], cfg: VitConfig, layers: Sequence[dict[str, Any]], cutoff: float,
                        top_k: int) -> Found:
    """One added token that takes over the activations of the register neurons.

    layers: of `measures.by_layer`. cutoff: norm above which a patch of the last layer is an outlier; 0 takes the layer where the
    automatic rule finds one with the largest norm over the median. Neurons are looked for in the layers up to that.
    Raises UserError where the rule finds no second mode and no cut-off is given.
    """
    known = [row for row in layers[1:] if row["cutoff"] is not None]
    if not cutoff and not known:
        raise UserError("no layer has a second mode of patch norms, so there is nothing to repair; --cutoff=NORM repairs above a "
                        f"norm of your choice (largest over median in the last layer: {layers[-1]['max_over_median']:.2f})")
    row = layers[-1] | {"cutoff": cutoff} if cutoff else max(known, key=lambda row: row["max_over_median"])
    neurons = register_neurons.find(params, batches, cfg, layer=row["layer"], cutoff=row["cutoff"], top_k=top_k,
                                    highest_layer=row["layer"] - 1)
    return Found((edits.test_time_registers(neurons),), neurons, row["layer"], row["cutoff"])
