"""Low-rank changes of named projections around any model: LoRA (Hu et al., arXiv 2106.09685).

    y = x W + (alpha / r) (x A) B          A [in, r] normal, B [r, out] zero, equation 3; W is the model's own

B starts at zero, so the first output is the model's own, to the bit. The model inside learns nothing of this: `numerics.dense` adds
the second term wherever its parameters hold the two factors. `merged` gives W + (alpha / r) A B, parameters of the model inside,
which compute the same; a loop over tokens and an export use these. Which parameters learn is said by `optimizer.rates`, as always:
("=0", "['lora']=10") trains the factors alone.

The tree is {"model": that of the model inside, "lora": the projections' places in it with {"low", "high"} for each}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from memtok_jax import params as P
from memtok_jax.config import UserError, check_numbers, nearest
from memtok_jax.models import protocol
from memtok_jax.models.call import Call
from memtok_jax.numerics import wide

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig(protocol.AroundConfig):
    """A model with low-rank changes.

    model: the config of the model inside.
    rank: r. alpha: the change is multiplied by alpha / r.
    targets: which projections change: "q", "k", "v", "o" of attention, "gate", "up", "down" of the feed-forward network. Parts
        of the path in front narrow it down: "window.q", or "0.q" for attention that has a memory beside it.
    """

    model: Any
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self):
        check_numbers("lora", self, at_least=dict(rank=1), above=dict(alpha=0))
        if not self.targets:
            raise UserError(f"lora.targets is empty; it must name some of {', '.join(PROJECTIONS)}")
        for target in self.targets:
            if target.rpartition(".")[2] not in PROJECTIONS:
                raise UserError(f"lora.targets has {target!r}; its last part must be one of {', '.join(PROJECTIONS)}"
                                f"{nearest(target, PROJECTIONS)}")
        found = [path for path, _ in _projections(protocol.bind(self.model).specs())]
        if missing := [target for target in self.targets if not any(_is(path, target) for path in found)]:
            raise UserError(f"lora.targets has {missing[0]!r}, which is no projection of the model, such as "
                            f"{'.'.join(found[0][1:]) if found else 'none'}")


def _projections(specs: P.Tree) -> list[tuple[tuple[str, ...], P.ParamSpec]]:
    """(path, spec of `w`) of every projection that has one of the names."""
    out = []
    for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=P.is_spec):
        parts = tuple(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)
        if parts[-1] == "w" and parts[-2] in PROJECTIONS and "layers" in parts:
            out.append((parts[:-1], spec))
    return out


def _is(path: tuple[str, ...], target: str) -> bool:
    """Whether a path ends with the parts of a target."""
    parts = tuple(target.split("."))
    return path[-len(parts):] == parts


def _factors(spec: P.ParamSpec, rank: int) -> dict:
    """`low` [in, r] and `high` [r, ...out] of a projection [in, ...out], with the axes of stacked layers in front."""
    lead = spec.axes.count("layers")
    front, axes = spec.shape[:lead], spec.axes[:lead]
    low = P.ParamSpec((*front, spec.shape[lead], rank), (*axes, spec.axes[lead], None), P.fan_in(-2))
    high = P.ParamSpec((*front, rank, *spec.shape[lead + 1:]), (*axes, None, *spec.axes[lead + 1:]), P.zeros)
    return {"low": low, "high": high}


def specs(cfg: LoraConfig) -> dict:
    """The model inside, and the factors."""
    inside = protocol.bind(cfg.model).specs()
    chosen = [(path, spec) for path, spec in _projections(inside) if any(_is(path, target) for target in cfg.targets)]
    return {"model": inside, "lora": {".".join(path): _factors(spec, cfg.rank) for path, spec in chosen}}


def state_specs(cfg: LoraConfig, batch: int) -> P.Tree:
    """That of the model inside."""
    return protocol.bind(cfg.model).state_specs(batch)


def init_state(params, cfg: LoraConfig, batch: int) -> P.Tree:
    """That of the model inside."""
    return protocol.bind(cfg.model).init_state(joined(params, cfg), batch)


def run(params, state: P.Tree, x: jax.Array, cfg: LoraConfig, call: Call = Call()):  # noqa: B008
    """One call of the model inside, with its projections changed."""
    return protocol.bind(cfg.model).functions.run(joined(params, cfg), state, x, cfg.model, call)


def joined(params, cfg: LoraConfig) -> P.Tree:
    """Parameters of the model inside, with the factors where `numerics.dense` finds them; `high` is multiplied by alpha / r."""
    scale = cfg.alpha / cfg.rank
    return _changed(params, lambda node, f: node | {"low": f["low"], "high": f["high"] * jnp.asarray(scale, f["high"].dtype)})


def merged(params, cfg: LoraConfig) -> P.Tree:
    """Parameters of the model inside that compute the same without the factors: W + (alpha / r) A B, the sum in float32."""

    def add(node: dict, f: dict) -> dict:
        w, dtype = node["w"], wide(node["w"])
        low, high = f["low"].astype(dtype), f["high"].astype(dtype)
        change = jnp.matmul(low, high.reshape(*high.shape[:low.ndim - 1], -1), precision="highest").reshape(w.shape)
        return node | {"w": (w.astype(dtype) + cfg.alpha / cfg.rank * change).astype(w.dtype)}

    return _changed(params, add)


def _changed(params, change: Callable[[dict, dict], dict]) -> P.Tree:
    """The parameters of the model inside with `change(node, factors)` in the place of each changed projection."""
    model = params["model"]
    for path, factors in params["lora"].items():
        model = _put(model, tuple(path.split(".")), lambda node, factors=factors: change(node, factors))
    return model


def _put(tree: Any, path: tuple[str, ...], change: Callable) -> Any:
    """The tree with `change` of what lies at a path; dicts and tuples on the way are copied."""
    if not path:
        return change(tree)
    if isinstance(tree, tuple):
        at = int(path[0])
        return (*tree[:at], _put(tree[at], path[1:], change), *tree[at + 1:])
    return tree | {path[0]: _put(tree[path[0]], path[1:], change)}


# ------------------------------------------------------------------------------------------------------------- token by token

def unstack(params, state: P.Tree, cfg: LoraConfig):
    """The merged model inside, with arrays of its own for each layer: (params, state, its config)."""
    inside = protocol.bind(cfg.model)
    return inside.functions.unstack(merged(params, cfg), state, cfg.model)


def restack(state: P.Tree, cfg: LoraConfig) -> P.Tree:
    """The carry of the model inside out of that of the model which `unstack` made of it."""
    return protocol.bind(cfg.model).restack(state)
