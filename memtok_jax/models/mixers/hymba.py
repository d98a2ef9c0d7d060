"""Attention heads and a selective scan side by side in one layer, on the same input (Hymba, arXiv 2411.13676, section 2).

    A = window attention(u)                 values twice as wide as the model, no output projection, no gate
    S = scan(conv(u W_x), gate u W_z)       memory/ssm/, with inner norms
    y = (rms(A; w_A) + rms(S; w_S)) / 2  W_O

| symbol       | name here | where in the paper |
|--------------|-----------|--------------------|
| beta_1, norm | `norm_attention` [E], scale of the norm, as in the released model | equation 3 |
| beta_2, norm | `norm_scan` [E]                                                    | equation 3 |
| W_out        | `o` [E, D]                                                         | equation 3 |
| M_attn, M_ssm | A, S                                                              | equations 1, 2 |

E = H V: all heads of attention together are as wide as the scan, so V = 2 D / H with the usual 2 D channels. The half is that of
the released model. Its single input projection is kept as separate matrices here, which can be sharded by heads.

Meta tokens are the prefix (`model.prefix`): every window sees them, and they go through the scan before the first token, so they
set its initial state, as in `ssm.py`. Here they have no positions; the released model counts positions from the first of them.

A layer with keys="before" makes no keys and values: it attends to those of the nearest layer before it that has the same window
and sinks (section 2.3), through `side`, and carries none. Both must stand in one repeat of the pattern. A layer with full attention
is one whose window is as long as the text: the state of a stream stays constant, and known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, choose
from memtok_jax.memory import ring
from memtok_jax.memory.ssm import MODULES, Mamba2Config, MambaConfig
from memtok_jax.models import attention as A
from memtok_jax.models import layers
from memtok_jax.models.call import Call
from memtok_jax.models.layers import enter
from memtok_jax.models.mixers import MixerConfig, options, window
from memtok_jax.models.mixers.window import EVALUATION
from memtok_jax.models.style import Backbone
from memtok_jax.numerics import dense, rms_norm, wide

KEYS = ("own", "before")


@dataclass(frozen=True)
class HymbaConfig(MixerConfig):
    """Window attention and a scan side by side.

    window: W, keys that a query may see, itself included, beside prefix and pinned tokens.
    sinks, positions: as in `WindowConfig`.
    keys: "own", or "before": the keys and values of the nearest layer before with the same window, sinks and positions.
    memory: of the scan, a `MambaConfig` or `Mamba2Config`; its width and dtype are filled in by the model.
    """

    window: int = field(default=1024, metadata=EVALUATION)
    sinks: int = field(default=0, metadata=EVALUATION)
    positions: str = field(default="cache", metadata=EVALUATION)
    keys: str = "own"
    memory: MambaConfig | Mamba2Config = field(default_factory=lambda: MambaConfig(norms=True))

    def __post_init__(self):
        window.check_ring("hymba", self)
        choose("hymba.keys", self.keys, KEYS)
        if type(self.memory) not in MODULES:
            raise UserError(f"hymba.memory is {self.memory!r}; it must be one of {', '.join(kind.__name__ for kind in MODULES)}")

    def check(self, b: Backbone) -> None:
        """Attention as wide as the scan."""
        channels = options(self.memory, b).channels
        if b.heads * b.value_dim != channels:
            raise UserError(f"hymba adds {b.heads} heads with values of {b.value_dim} to a scan of {channels} channels; set "
                            f"model.value_dim={channels // b.heads}, or memory.inner={b.heads * b.value_dim}")

    def check_after(self, before: tuple[MixerConfig, ...]) -> None:
        """A layer whose keys are shared."""
        if self.keys == "before" and _place(self) not in {_place(m) for m in before if isinstance(m, HymbaConfig)}:
            raise UserError(f"hymba.keys='before' needs a hymba layer with window={self.window}, sinks={self.sinks} and positions="
                            f"{self.positions!r} before it, in the same repeat of model.pattern")

    def reach(self, b: Backbone) -> int:
        """W - 1 tokens before itself."""
        return self.window - 1


class HymbaState(NamedTuple):
    """attention: a `WindowState`, or () where the keys are those of the layer before. scan: the state of the scan."""

    attention: Any
    scan: Any


def _scan(cfg: HymbaConfig, b: Backbone):
    """The scan's module and its options."""
    return MODULES[type(cfg.memory)], options(cfg.memory, b)


def specs(cfg: HymbaConfig, b: Backbone) -> dict:
    """q, k, v, x, z from the input, the scan, two norms, o."""
    module, m = _scan(cfg, b)
    own = A.specs(b)
    if cfg.keys == "before":
        own = {name: spec for name, spec in own.items() if name not in ("k", "v", "norm_k")}
    project = lambda size: layers.dense_specs(b, (b.width, size), ("embed", "mlp" if type(m) is MambaConfig else None), False)
    norm = lambda: P.ParamSpec((m.channels,), (None,), P.ones, decayed=False)
    return own | {"x": project(m.stream), "z": project(m.channels), "scan": module.branch_specs(m), "norm_attention": norm(),
                  "norm_scan": norm()}


def state_specs(cfg: HymbaConfig, b: Backbone, batch: int) -> HymbaState:
    """Prefix and ring, where the layer has keys of its own, and the state of the scan."""
    module, m = _scan(cfg, b)
    return HymbaState(window.state_specs(cfg, b, batch) if cfg.keys == "own" else (), module.state_specs(m, batch))


def _place(cfg: HymbaConfig) -> str:
    """Where in `side` the keys of layers with these options are. Keys that were made for another window are not found."""
    return f"hymba.keys of window={cfg.window}, sinks={cfg.sinks}, positions={cfg.positions}"


def _join(params, y: jax.Array, s: jax.Array, b: Backbone) -> jax.Array:
    """The mean of both branches after their norms, projected: [..., E] twice -> [..., D]."""
    mean = (rms_norm(y, params["norm_attention"], b.style.eps) + rms_norm(s, params["norm_scan"], b.style.eps)) / 2
    return A.output(params, mean, b)


def _scanned(params, state: Any, u: jax.Array, cfg: HymbaConfig, b: Backbone, length: jax.Array | None = None):
    """The scan on normed tokens u[B, T, D]: (S [B, T, E], state, statistics)."""
    module, m = _scan(cfg, b)
    return module.scan_branch(params["scan"], state, dense(u, params["x"], b.dtype), dense(u, params["z"], b.dtype), m, length)


def begin(params, x_MD: jax.Array, cfg: HymbaConfig, b: Backbone, batch: int, side: dict):
    """The prefix through both branches; the scan keeps the state that it leaves."""
    module, m = _scan(cfg, b)
    u, start = enter(params, x_MD, b), module.init_state(params["scan"], m, 1)
    start = jax.tree.map(lambda leaf: leaf.astype(wide(u)), start)
    y, prefix = A.prefix_pass(params, u, b, side, side[_place(cfg)] if cfg.keys == "before" else None)
    s, scan, _ = _scanned(params, start, u[None], cfg, b)
    scan = P.map_rows(lambda leaf, axis: jnp.repeat(leaf, batch, axis), module.state_specs(m, 1), scan)
    own = () if cfg.keys == "before" else window.WindowState(A.for_batch(prefix, b, batch),
                                                             ring.init_state({}, window.ring_of(cfg, b), batch))
    return _join(params, y, s[0], b), HymbaState(own, scan), side | {_place(cfg): prefix}


def run(params, state: HymbaState, x: jax.Array, cfg: HymbaConfig, b: Backbone, call: Call, side: dict):
    """x[B, T, D] -> (branch [B, T, D], state, statistics of the scan, side)."""
    u, r = enter(params, x, b), window.ring_of(cfg, b)
    if cfg.keys == "before":
        keys, own = side[_place(cfg)], ()
    else:
        keys = window.keys_of(params, *state.attention, u, b, call.length, r)
        own = state.attention._replace(past=keys.after)
    y = window.attend_to(params, keys, u, b, side, r)
    s, scan, stats = _scanned(params, state.scan, u, cfg, b, None if call.whole else call.length)
    return _join(params, y, s, b), HymbaState(own, scan), stats, side | {_place(cfg): keys}
