"""Which arrays of a file belong to the wanted model, under which names, and whether all are there: once for all converters.

Training scripts put a model into dicts (keys such as "model_ema") and into other modules (names such as "module.backbone.x"),
often beside a second copy of it and beside heads that only training needs. `PARTS` lists both kinds of wrapper, the preferred
first: an average of the weights (a teacher, an EMA) comes before the weights it was made from (a student).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import zip_longest
from typing import Any

import jax.numpy as jnp
import numpy as np

from memtok_jax.config import UserError

PARTS = ("teacher", "target_encoder", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema",
         "model", "model_state_dict", "state_dict", "module", "network", "net", "backbone", "encoder", "visual", "student")
NEUTRAL = PARTS.index("model")    # the rank of parts that are not listed, and of no part
# Parts that wrappers of torch (compilation, data parallelism, recomputation) put anywhere into a name.
TRANSPARENT = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# What only training needs: projection heads of DINO, iBOT, SimCLR and I-JEPA, centres of losses, the counter of an average.
LEFT_OUT = ("dino_head.", "ibot_head.", "head.mlp.", "head.last_layer.", "projection_head.", "projector.", "predictor.",
            "prototypes.", "dino_loss.", "ibot_patch_loss.", "n_averaged")


def pick(tensors: Mapping[str, Any], anchors: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of the wanted model under its own names: without prefixes, second copies and heads of training.

    anchors: names of which each model of the kind has exactly one; what comes before it in the file is the prefix. With several
    models in the file, the order of `PARTS` decides. Raises UserError if it does not, and if two arrays get the same name.
    """
    bare = renamed({name: ".".join(part for part in name.split(".") if part not in TRANSPARENT) for name in tensors})
    found = sorted({name.removesuffix(anchor) for name in bare for anchor in anchors if f".{name}".endswith(f".{anchor}")})
    front = _best(found) if found else ""
    others = [other for other in found if other != front]
    own = {name: full for name, full in bare.items() if not any(_belongs(name, other, front) for other in others)}
    names = renamed({full: _without(name, front) for name, full in own.items()})
    return {name: np.asarray(tensors[full]) for name, full in names.items() if not name.startswith(LEFT_OUT)}


def renamed(names: Mapping[str, str]) -> dict[str, str]:
    """New name -> old name, from old -> new. Raises UserError if two old names become the same."""
    out: dict[str, str] = {}
    for old, new in names.items():
        if new in out:
            raise UserError(f"the file holds several models: {out[new]!r} and {old!r} both stand for {new!r}")
        out[new] = old
    return out


def rank(part: str) -> int:
    """Place of a part in the order of preference; lower is better."""
    return PARTS.index(part) if part in PARTS else NEUTRAL


def _best(fronts: Iterable[str]) -> str:
    """The preferred prefix, by the first part in which two differ."""
    ranked = sorted(([rank(part) for part in front.split(".")[:-1]] + [NEUTRAL] * 9, front) for front in fronts)
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        raise UserError(f"the file holds several models, with names that begin with {ranked[0][1]!r} and {ranked[1][1]!r}; "
                        "give a file with one of them")
    return ranked[0][1]


def _belongs(name: str, other: str, front: str) -> bool:
    """Whether a name is part of another model than the one whose names begin with `front`."""
    if front.startswith(other):
        return not name.startswith(front)
    shared = 0
    for own, theirs in zip_longest(front.split(".")[:-1], other.split(".")[:-1]):
        if own != theirs:
            break
        shared += 1
    return name.startswith(".".join(other.split(".")[:shared + 1]) + ".")


def _without(name: str, front: str) -> str:
    """The name without the longest beginning that it shares with `front`, in whole parts, because heads lie beside a backbone."""
    parts = front.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        if name.startswith(outer := ".".join(parts[:count]) + "."):
            return name.removeprefix(outer)
    return name


def floats(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays in float32; float64 stays. Raises UserError for an array that holds no floating-point numbers."""
    for name, array in tensors.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{name} holds {array.dtype} numbers; only weights in floating point can be converted")
    return {name: array.astype(np.promote_types(array.dtype, np.float32), copy=False) for name, array in tensors.items()}


def check(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], model: str,
          name: Callable[[str], str] = str) -> None:
    """Raise UserError unless each expected name has an array of the expected shape and no array is left over.

    given, expected: name -> shape. model: the description of the model in messages. name: the name that the file has for it.
    """
    if missing := sorted(expected.keys() - given.keys()):
        raise UserError(f"the file lacks {name(missing[0])!r} of {model} ({len(missing)} missing)")
    if extra := sorted(given.keys() - expected.keys()):
        raise UserError(f"{name(extra[0])!r} has no place in {model} ({len(extra)} left over)")
    for key, shape in expected.items():
        if tuple(given[key]) != tuple(shape):
            raise UserError(f"{name(key)} has the shape {tuple(given[key])}, {model} has {tuple(shape)}")


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(np.shape(array)) for name, array in tensors.items()}
