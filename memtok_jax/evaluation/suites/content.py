"""Is it what a memory holds that helps, or only that it is there? Loss by position with the content of memories taken away.

    forgotten    the memories begin anew at every segment
    swapped      at every segment each stream goes on with the memories of another stream
    reset, frozen, against    those of the suite "positions"

Unlike `reset`, the first two leave the windows of attention as they are, so a model with a window and nothing else differs by
nothing. Every difference is the control's loss minus the model's. A memory whose content helps costs bits when it is forgotten and
more when it is another's; one that serves as more layers, or as a constant, costs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from memtok_jax import params as P
from memtok_jax.evaluation import positions as at
from memtok_jax.evaluation.controls import swapped
from memtok_jax.evaluation.suites import positions
from memtok_jax.evaluation.suites.text import HEADLINE as HEADLINE
from memtok_jax.models.mixers.window import WindowState
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

FILE = "content"


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Bits of each token by position, in bins, and differences to the controls with 95 % intervals over streams.

    Options: `evaluation.positions`. Writes content.md, content.json and content.png. Raises UserError as the suite "positions".
    """
    yield from positions.found(experiment, model, params, mesh, workdir, say, ways, FILE)


def ways(own: positions.Run, other: positions.Run | None, mesh: Mesh, streams: at.Streams,
         reset: int) -> Iterator[tuple[str, np.ndarray]]:
    """Those of `positions.ways`, and nats f32[S, n] without the content of the memories.

    Streams that are read side by side are drawn at random, so that most of them are of other places or texts.
    """
    yield from positions.ways(own, other, mesh, streams, reset)
    experiment, model, params = own
    if not has_memory(model):
        return
    order, rows = np.random.default_rng(0).permutation(len(streams.inputs)), min(experiment.evaluation.batch, len(streams.inputs))
    mixed, back = at.Streams(*(part[order] for part in streams)), np.argsort(order)
    for name, change in (("forgotten", fresh), ("swapped", of_next)):
        between = partial(with_own_windows, params, model=model, rows=rows, change=change)
        yield name, at.losses(params, mixed, mesh, model=model, call_tokens=math.gcd(experiment.call_tokens, reset),
                              batch_tokens=reset, rows=rows, between=between)[back]


def is_window(node: Any) -> bool:
    """Whether a part of a carry, or of its specs, is a window of attention."""
    return isinstance(node, WindowState)


def has_memory(model: Model) -> bool:
    """Whether a carry holds more than windows: something that lives as long as its stream and counts no open segment."""
    parts = jax.tree.leaves(model.state_specs(1), is_leaf=lambda node: P.is_spec(node) or is_window(node))
    return any(not is_window(part) and part.lives == "stream" and not part.phase for part in parts)


def fresh(params: P.Tree, carry: P.Tree, model: Model, rows: int) -> P.Tree:
    """The carry before the first token."""
    return model.init_state(params, rows)


def of_next(params: P.Tree, carry: P.Tree, model: Model, rows: int) -> P.Tree:
    """The carry of the next row in the place of each."""
    return swapped(carry, model, rows)


@partial(jax.jit, static_argnames=("model", "rows", "change"))
def with_own_windows(params: P.Tree, carry: P.Tree, *, model: Model, rows: int, change: Callable[..., P.Tree]) -> P.Tree:
    """The windows of the carry, and everything else of `change(params, carry, model, rows)`."""
    return jax.tree.map(lambda own, new: own if is_window(own) else new, carry, change(params, carry, model, rows),
                        is_leaf=is_window)
