"""A matrix in a layer that memory tokens write and every token reads (ARMT, arXiv 2407.04841), around any layer.

    reads     x <- x + what x finds in the layer's matrix
    computes  x <- layer(x)
    writes    the memory tokens at the end of its output into the matrix, where the segment ends

The layer inside is any other; the paper's is attention inside the segment. Unlike RMT nothing re-enters as input: a layer's matrix
goes to the same layer of the next segment. The memory tokens come from `rmt.py` (form "suffix"). Not built: the option of a sliding
window beside the matrix, and the per-layer RMT of the paper's ablation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax.config import UserError
from memtok_jax.memory import armt
from memtok_jax.memory.armt import ArmtConfig as MatrixConfig
from memtok_jax.models import block
from memtok_jax.models.call import Call
from memtok_jax.models.mixers import LayerConfig, MixerConfig, need_segment, options
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import recompute


@dataclass(frozen=True)
class ArmtLayerConfig(LayerConfig):
    """A layer with an associative memory.

    memory: of the matrix; its width and dtype are filled in by the model.
    layer: the config of the layer inside, or a tuple of one config a branch.
    """

    memory: MatrixConfig = field(default_factory=MatrixConfig)
    layer: MixerConfig | tuple[MixerConfig, ...] = SegmentConfig()

    def check(self, b: Backbone) -> None:
        """Segments and memory tokens are needed."""
        need_segment(self, b)
        if b.tail < 1:
            raise UserError("armt layers are written by memory tokens at the end of a segment; put RmtConfig around the model, "
                            "with form='suffix' and at least one token")
        for mixer in block.branches(self.layer):
            mixer.check(b)

    def unit(self, b: Backbone) -> int:
        """That of the layer inside."""
        return max(mixer.unit(b) for mixer in block.branches(self.layer))

    def reach(self, b: Backbone) -> int:
        """That of the layer inside."""
        return sum(mixer.reach(b) for mixer in block.branches(self.layer))

    @property
    def needs_memory_tokens(self) -> bool:
        """They write the matrix."""
        return True

    @property
    def by_segment(self) -> bool:
        """The matrix is written at a border."""
        return True


class ArmtLayerState(NamedTuple):
    """The matrix, and the carry of the layer inside."""

    memory: armt.ArmtState
    layer: dict


def specs(cfg: ArmtLayerConfig, b: Backbone) -> dict:
    """The layer inside and the memory."""
    return block.specs(cfg.layer, b) | {"memory": armt.specs(options(cfg.memory, b))}


def state_specs(cfg: ArmtLayerConfig, b: Backbone, batch: int) -> ArmtLayerState:
    """The matrix, and the carry of the layer inside."""
    return ArmtLayerState(armt.state_specs(options(cfg.memory, b), batch), block.state_specs(cfg.layer, b, batch))


def begin(params, x_MD: jax.Array, cfg: ArmtLayerConfig, b: Backbone, batch: int, side: dict):
    """The prefix through the layer inside; an empty matrix says nothing to it."""
    x_MD, layer, side = block.begin(params, x_MD, cfg.layer, b, batch, side)
    return x_MD, ArmtLayerState(armt.init_state(params["memory"], options(cfg.memory, b), batch), layer), side


def run(params, state: ArmtLayerState, x: jax.Array, cfg: ArmtLayerConfig, b: Backbone, call: Call, side: dict):
    """One layer on tokens of one segment: (x[B, T, D], state, statistics, side)."""
    m = options(cfg.memory, b)
    x = recompute(partial(armt.read, cfg=m))(params["memory"], state.memory, x)
    x, layer, stats, side = block.run(params, state.layer, x, cfg.layer, b, call, side)
    written = state.memory
    if call.tail:
        write = recompute(partial(armt.write, cfg=m))
        written = write(params["memory"], written, x[:, x.shape[1] - call.tail:], closes=call.closes)
    rms = lambda leaf: jnp.sqrt(jnp.square(leaf).mean()).astype(jnp.float32)
    own = {"matrix_rms": rms(written.matrix), "normaliser_rms": rms(written.normaliser)}
    return x, ArmtLayerState(written, layer), stats | {f"armt.{name}": value for name, value in own.items()}, side
