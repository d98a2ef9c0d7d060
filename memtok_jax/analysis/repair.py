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
    """The edit, and how it was found."""

    edits: edits.Edits
    neurons: tuple[tuple[int, int], ...]
    state: int         # hidden state whose norms are compared with the cut-off
    cutoff: float


def test_time_registers(params, batches: Iterable[jax.Array], cfg: VitConfig, layers: Sequence[dict[str, Any]], cutoff: float,
                        top_k: int) -> Found:
    """One added token that takes over the activations of the register neurons.

    layers: from `measures.by_layer`. cutoff: norm above which a patch of the last layer is an outlier; 0: of the layers where the
    automatic rule finds a cut-off, take the one with the largest norm over the median. Neurons are searched in the layers up to it.
    top_k: number of neurons at most. Raises UserError if there is neither a second mode nor a given cut-off, or no patch above it.
    """
    known = [row for row in layers[1:] if row["cutoff"] is not None]
    if not cutoff and not known:
        raise UserError("no layer has a second mode of patch norms, so there is nothing to repair; --cutoff=NORM repairs above a "
                        f"norm of your choice (largest over median in the last layer: {layers[-1]['max_over_median']:.2f})")
    row = layers[-1] | {"cutoff": cutoff} if cutoff else max(known, key=lambda row: row["max_over_median"])
    neurons = register_neurons.find(params, batches, cfg, layer=row["layer"], cutoff=row["cutoff"], top_k=top_k,
                                    highest_layer=row["layer"] - 1)
    return Found((edits.test_time_registers(neurons),), neurons, row["layer"], row["cutoff"])
