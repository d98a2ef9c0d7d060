"""Associative Recurrent Memory Transformer (ARMT): in every layer a matrix that passes from segment to segment.

arXiv 2407.04841. One segment is [x ; m] with the same learned m each time, at the end only; a layer

    reads     h <- h + what h finds in the layer's matrix
    computes  h <- block(h), the decoder's ordinary causal mask
    writes    the M memory rows of its output into the matrix, where the segment ends

Unlike RMT (`recurrent.py`) nothing re-enters as input: a layer's matrix goes to the same layer of the next segment, so layer l of
segment n needs only (l - 1, n) and (l, n - 1). `layer` is a pure function of one layer's arrays for that reason. Not built: the
option of a sliding window beside the matrix, and the per-layer RMT of the paper's ablation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.memory import armt as memory
from memtok_jax.memory import tokens as learned_tokens
from memtok_jax.memory.armt import ArmtConfig, ArmtState
from memtok_jax.models import decoder, masks, segments, wavefront
from memtok_jax.models.decoder import View
from memtok_jax.models.segments import SegmentedConfig
from memtok_jax.numerics import affine_norm, recompute


@dataclass(frozen=True)
class AssociativeConfig(SegmentedConfig):
    """key_dim, nu, correction: of the memory, which is float32, see `memory/armt.py`. The other fields:
    `segments.SegmentedConfig`.
    """

    tokens: int = 4
    key_dim: int = 64
    nu: int = 3
    correction: bool = True

    def __post_init__(self):
        super().__post_init__()
        _ = self.memory

    @property
    def memory(self) -> ArmtConfig:
        """Options of a layer's memory."""
        return ArmtConfig(self.width, self.key_dim, self.nu, self.correction, dtype=self.dtype)

    @property
    def token_config(self) -> learned_tokens.TokensConfig:
        """The learned rows, as large as a word embedding."""
        return learned_tokens.TokensConfig(self.width, self.tokens, segments.scale(self) * self.width ** -0.5)

    @property
    def tail(self) -> int:
        """Memory rows behind the tokens; none where nothing is written."""
        return 0 if self.ends == "never" else self.tokens

    @property
    def rows(self) -> int:
        """E: rows of a full segment with its memory."""
        return self.segment + self.tail


class AssociativeModelState(NamedTuple):
    """The carry."""

    layers: ArmtState  # leaves [L, B, ...]
    open: Any                 # segments.Open, or () where each call is a segment


def specs(cfg: AssociativeConfig) -> dict:
    """The backbone, the memory of each layer, and the learned rows."""
    return {"decoder": decoder.specs(cfg.decoder), "associative": P.stack(memory.specs(cfg.memory), cfg.layers),
            "memory": learned_tokens.specs(cfg.token_config)}


def state_specs(cfg: AssociativeConfig, batch: int) -> AssociativeModelState:
    """The memory of each layer, and the open segment where a call may be a part of one."""
    return AssociativeModelState(P.stack(memory.state_specs(cfg.memory, batch), cfg.layers),
                                 segments.open_specs(cfg.decoder, batch, cfg.segment, cfg.ends))


def init_state(params, cfg: AssociativeConfig, batch: int) -> AssociativeModelState:
    """Empty memories; float64 where the parameters are."""
    zero = P.zero_state(state_specs(cfg, batch))
    layers = jax.vmap(lambda p: memory.init_state(p, cfg.memory, batch))(params["associative"])
    return zero._replace(layers=layers)


def refresh(params, state: AssociativeModelState, cfg: AssociativeConfig) -> AssociativeModelState:
    """Nothing in the carry is made from parameters alone."""
    return state


def for_training(cfg: AssociativeConfig, tokens: int) -> AssociativeConfig:
    """The same model for calls of `tokens` tokens without padding; see `segments.is_one`."""
    return replace(cfg, aligned=segments.is_one(cfg, tokens))


def layer(params, state: ArmtState, x: jax.Array, past: decoder.Past, view: View, closes: jax.Array,
          cfg: AssociativeConfig) -> tuple[jax.Array, ArmtState, decoder.Past]:
    """One layer on one segment: rows x[B, T+M, D] -> (x, the layer's memory, keys and values of the rows).

    params: {"block": of the decoder layer, "memory": of its memory}. closes: bool[B], the segment ends here.
    """
    x = memory.read(params["memory"], state, x, cfg.memory)
    x, new = decoder.layer(params["block"], x, past, view, cfg.decoder)
    if cfg.tail == 0:
        return x, state, new
    return x, memory.write(params["memory"], state, x[:, x.shape[1] - cfg.tail:], cfg.memory, closes), new


def view_of(call: segments.Call, cfg: AssociativeConfig) -> View:
    """What the tokens of a call and the memory rows behind them see."""
    t, slots = call.ids.shape[1], call.past.k.shape[2]
    return View(masks.visible("causal", 0, t, cfg.tail, call.length, call.phase, slots),
                *masks.positions(0, t, cfg.tail, call.length, call.phase, slots))


def placed(params, call: segments.Call, view: View, cfg: AssociativeConfig) -> jax.Array:
    """Tokens and memory rows of a call with their positions: [B, T+M, D]."""
    x = decoder.embed(params["decoder"], call.ids, cfg.decoder)
    rows = jnp.broadcast_to(params["memory"]["tokens"][:cfg.tail].astype(x.dtype)[None], (x.shape[0], cfg.tail, cfg.width))
    return decoder.place(params["decoder"], jnp.concatenate([x, rows], axis=1), view, cfg.decoder)


def step(params, state: ArmtState, call: segments.Call, cfg: AssociativeConfig):
    """Tokens and memory rows once through the layers: (logits, memories, keys and values of the tokens)."""
    view, t = view_of(call, cfg), call.ids.shape[1]

    def one(x, tree):
        block, memory_params, state, past = tree
        x, state, new = layer({"block": block, "memory": memory_params}, state, x, past, view, call.closes, cfg)
        return x, (state, new)

    x = placed(params, call, view, cfg)
    trees = (params["decoder"]["layers"], params["associative"], state, call.past)
    x, (state, new) = decoder.scan_layers(one, x, trees, cfg.decoder)
    h = affine_norm(x[:, :t], params["decoder"]["norm"])
    return decoder.output(params["decoder"], h, cfg.decoder), state, jax.tree.map(lambda kv: kv[:, :, :t], new)


def run(params, state: AssociativeModelState, ids: jax.Array, cfg: AssociativeConfig, length=None):
    """`apply` with statistics: root mean squares of A and z afterwards."""
    segments.check_call(cfg, ids.shape[1])
    length = P.full_length(ids) if length is None else length
    logits, layers, opened = segments.walk(lambda memory, call: step(params, memory, call, cfg), state.layers, state.open, ids,
                                           length, cfg)
    rms = lambda x: jnp.sqrt(jnp.square(x).mean()).astype(jnp.float32)
    seen = {"matrix_rms": rms(layers.matrix), "normaliser_rms": rms(layers.normaliser)}
    return logits, AssociativeModelState(layers, opened), seen


def apply(params, state: AssociativeModelState, ids: jax.Array, cfg: AssociativeConfig, length=None):
    """A block of tokens.

    ids: i32[B, T]. length: i32[B], real tokens of each row (a prefix of the row); left out, all T. Where a segment ends, its memory
    rows are written; a row without tokens keeps its memory.
    Returns (logits f32[B, T, V], state). Raises ValueError where T does not suit `ends` or `aligned`.
    """
    return run(params, state, ids, cfg, length)[:2]


def run_segments(params, state: AssociativeModelState, ids_NBT: jax.Array, cfg: AssociativeConfig):
    """N whole segments at once along the diagonals of layers and segments: what a scan of `apply` over them gives.

    ids_NBT: i32[N, B, T] with T = `segment`; no segment is open in `state`. Returns (logits f32[N, B, T, V], state).
    Raises ValueError for another T.
    """
    n, b, t = ids_NBT.shape
    if t != cfg.segment:
        raise ValueError(f"segments of {t} tokens are not model.segment={cfg.segment} tokens long")
    full, none, past = jnp.full((b,), t, jnp.int32), jnp.zeros((b,), jnp.int32), segments.no_past(cfg.decoder, b)
    call = segments.Call(ids_NBT[0], full, full > 0, past, none)
    view = view_of(call, cfg)
    x = jax.vmap(lambda ids: placed(params, call._replace(ids=ids), view, cfg))(ids_NBT)

    def one(tree, state, x):
        blocks, memory_params, past = tree
        x, state, _ = layer({"block": blocks, "memory": memory_params}, state, x, past, view, call.closes, cfg)
        return x, state, {}

    one = recompute(one, cfg.remat)
    x, layers, _ = wavefront.run(one, (params["decoder"]["layers"], params["associative"], past), state.layers, x)
    h = affine_norm(x[:, :, :t].reshape(n * b, t, cfg.width), params["decoder"]["norm"])
    logits = decoder.output(params["decoder"], h, cfg.decoder)
    return logits.reshape(n, b, t, cfg.vocabulary), state._replace(layers=layers)


def extend(state: AssociativeModelState, cfg: AssociativeConfig, room: int) -> tuple[AssociativeModelState, AssociativeConfig]:
    """Go on inside the open segment without a write, for up to `room` more tokens than a segment holds; see `segments.extend`."""
    opened, longer = segments.extend(state.open, cfg, room)
    return state._replace(open=opened), longer


def statistics(params, state: AssociativeModelState, ids: jax.Array, cfg: AssociativeConfig, length=None) -> dict[str, jax.Array]:
    """Root mean squares of A and z after a segment, f32[]."""
    return run(params, state, ids, cfg, length)[2]
