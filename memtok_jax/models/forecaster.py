"""A forecaster on the stack of the language model: patches of a series are its tokens, and a linear head reads all of them.

    x f32[B, 1, look_back, C] -> normalise -> patches -> D -> stack -> norm -> head -> undo -> f32[B, 1, horizon * C]

    independent   each channel is a row of its own and all share the model (PatchTST, arXiv 2211.14730)
    mixed         a token holds a patch of all channels, so that they can speak to each other

Normalisation (NLinear, arXiv 2205.13504; RevIN, arXiv 2108.07048): "last" subtracts the last value, "instance" subtracts the mean
of the look-back and divides by its standard deviation, and the forecast gets back what was taken. A case is a sequence of one: the
memories of the stack begin afresh in each and see no row behind the look-back. The stack has no other carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.models import language_model, stack
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.layers import compute_dtype
from memtok_jax.numerics import dense

FORMS, NORMALISE, EPSILON = ("independent", "mixed"), ("none", "last", "instance"), 1e-5


@dataclass(frozen=True)
class ForecasterConfig:
    """Settings.

    inside: the stack; its vocabulary is not used.
    look_back, horizon: rows that are seen, rows to forecast.
    channels: C.
    patch: rows of a token.
    form: one of FORMS. normalise: one of NORMALISE.
    """

    inside: LanguageModelConfig
    look_back: int = 96
    horizon: int = 96
    channels: int = 7
    patch: int = 8
    form: str = "independent"
    normalise: str = "instance"

    def __post_init__(self):
        check_numbers("model", self, at_least=dict(look_back=1, horizon=1, channels=1, patch=1))
        choose("model.form", self.form, FORMS)
        choose("model.normalise", self.normalise, NORMALISE)
        if self.look_back % self.patch:
            raise UserError(f"model.look_back {self.look_back} does not divide into patches of {self.patch} rows; set model.patch")
        if self.inside.style.positions == "table":
            raise UserError("a forecaster has no table of positions; choose a style with positions inside attention")

    @property
    def tokens(self) -> int:
        """Patches of a look-back."""
        return self.look_back // self.patch

    @property
    def width(self) -> int:
        """Channels of a row of the stack."""
        return self.channels if self.form == "mixed" else 1

    @property
    def vocabulary(self) -> int:
        """Numbers of a forecast."""
        return self.horizon * self.channels

    @property
    def call_tokens(self) -> int:
        """A case is a sequence of one."""
        return 1

    @property
    def reach(self) -> int:
        """One case."""
        return 1

    @property
    def segment(self) -> int:
        """A case has no segments."""
        return 0


def specs(cfg: ForecasterConfig) -> dict:
    """The stack, the map of a patch into it, and the head, whose weights begin small: the first forecast is what was taken away."""
    inside, d = language_model.specs(cfg.inside), cfg.inside.width
    shapes = {"enter": (cfg.patch * cfg.width, d, P.fan_in(0)),
              "head": (cfg.tokens * d, cfg.horizon * cfg.width, P.fan_in(0, 0.1))}
    axes = {"enter": (None, "embed"), "head": ("embed", None)}
    maps = {name: {"w": P.ParamSpec((rows, columns), axes[name], start),
                   "b": P.ParamSpec((columns,), (None,), P.zeros, decayed=False)}
            for name, (rows, columns, start) in shapes.items()}
    return {"stack": {name: tree for name, tree in inside.items() if name != "words"}} | maps


def state_specs(cfg: ForecasterConfig, batch: int) -> dict:
    """Nothing is carried from case to case; a count of the cases of a row stands in for it."""
    return {"cases": P.StateSpec((batch,), ("batch",), jnp.int32)}


def init_state(params, cfg: ForecasterConfig, batch: int) -> dict:
    """No case yet."""
    return P.zero_state(state_specs(cfg, batch))


def run(params, state: dict, x: jax.Array, cfg: ForecasterConfig, call: Call = Call()):  # noqa: B008
    """Cases x f32[B, 1, look_back, C] -> (forecasts f32[B, 1, horizon * C], state, statistics of the stack).

    Raises UserError for cases of another shape.
    """
    if x.shape[1:] != (1, cfg.look_back, cfg.channels):
        raise UserError(f"cases have {x.shape[-2]} rows of {x.shape[-1]} channels, the model takes {cfg.look_back} of "
                        f"{cfg.channels}; set model.look_back and model.channels to those of the data")
    rows = jnp.moveaxis(x[:, 0], 2, 1).reshape(-1, cfg.width, cfg.look_back)
    series, shift, scale = normalised(rows, cfg.normalise)
    y, stats = _through(params, series, cfg)
    y = (y * scale + shift).reshape(len(x), cfg.channels, cfg.horizon)
    seen = 1 if call.length is None else call.length
    return jnp.moveaxis(y, 1, 2).reshape(len(x), 1, -1).astype(jnp.float32), {"cases": state["cases"] + seen}, stats


def normalised(rows_RWT: jax.Array, how: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(series, what was subtracted, what it was divided by) of channels f32[R, W, look_back]; the last two are [R, W, 1]."""
    one = jnp.ones((*rows_RWT.shape[:2], 1), rows_RWT.dtype)
    if how == "none":
        return rows_RWT, 0 * one, one
    if how == "last":
        return rows_RWT - rows_RWT[..., -1:], rows_RWT[..., -1:], one
    mean = rows_RWT.mean(-1, keepdims=True)
    std = jnp.sqrt(jnp.square(rows_RWT - mean).mean(-1, keepdims=True) + EPSILON)
    return (rows_RWT - mean) / std, mean, std


def _through(params, series_RWT: jax.Array, cfg: ForecasterConfig) -> tuple[jax.Array, dict]:
    """(forecasts [R, W, horizon] in normalised units, statistics) of R rows of W channels."""
    rows, inside = len(series_RWT), cfg.inside
    patches = series_RWT.reshape(rows, cfg.width, cfg.tokens, cfg.patch)
    patches = jnp.moveaxis(patches, 1, 2).reshape(rows, cfg.tokens, -1)
    x = compute_dtype(dense(patches, params["enter"], inside.dtype), inside.dtype)
    tree = params["stack"]
    begin = language_model.start(tree, inside, inside.stack(), rows)
    call = Call(whole=cfg.tokens % inside.call_tokens == 0)
    x, _, stats = stack.run(tree["layers"], begin, x, inside.stack(), call, language_model.side_of(tree))
    x = language_model.finish(tree, x, inside).reshape(rows, -1)
    return dense(x, params["head"], inside.dtype).reshape(rows, cfg.width, cfg.horizon), stats


def unstack(params, state: dict, cfg: ForecasterConfig) -> tuple[Any, dict, ForecasterConfig]:
    """As it is: nothing is decoded token by token."""
    return params, state, cfg


def restack(state: dict, cfg: ForecasterConfig) -> dict:
    """As it is."""
    return state
