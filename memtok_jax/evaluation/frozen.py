"""A model whose neural memories do not learn while they read: the control for what their writes are worth.

Same parameters, same computation, but every read is at the learned initial weights. The model was not trained that way, so the
difference overstates what a memory is worth; a twin that was trained without one is the other control.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from memtok_jax.memory.neural.config import NeuralMemoryConfig

# Not 0, which is the name of the default. A deviation of this size is lost when it is added to the initial weights.
NO_STEP = 1e-30


def frozen(cfg: Any) -> Any:
    """The config of a model, or a part of it, with the writes of all its neural memories switched off.

    Forgetting leads to the initial weights, or a memory that forgets to zero would lose them. A config without a neural memory is
    returned unchanged.
    """
    if isinstance(cfg, NeuralMemoryConfig):
        return dataclasses.replace(cfg, step_max=NO_STEP, forget_to="init")
    if type(cfg) is tuple:
        return tuple(map(frozen, cfg))
    if not dataclasses.is_dataclass(cfg):
        return cfg
    fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    return dataclasses.replace(cfg, **{name: new for name, old in fields.items() if (new := frozen(old)) != old})


def can_freeze(cfg: Any) -> bool:
    """Whether the model has a neural memory."""
    return frozen(cfg) != cfg
