"""The average of the parameters over the updates of a run, with weights that fall by a constant factor.

After n updates it is the sum of (1 - d) d^(n - i) p_i, divided by the sum of these weights: it does not lean to zero or to the
initial values, however short the run. Adam corrects its moments in the same way (arXiv 1412.6980, section 3); for weights it is
Polyak's average with an exponential window (`optax.incremental_update`).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
OFF = ()  # the average of a run without one: a tree without arrays


def begin(decay: float, params: Tree) -> Tree:
    """The average before the first update: a copy of the parameters; `OFF` if decay is 0."""
    return jax.tree.map(jnp.copy, params) if decay else OFF


def advance(average: Tree, params: Tree, decay: float, updates: jax.Array) -> Tree:
    """The average after an update.

    average: before it, `OFF` stays as it is. params: after it, of the same shapes and dtypes. decay: d, in [0, 1). updates: i32[],
    done so far, this one included; at 1 the result is `params`.
    """
    if not jax.tree.leaves(average):
        return average
    # 1 - d^n of a d near 1 loses its digits in float32, if it is written like that.
    share = (1 - decay) / -jnp.expm1(updates.astype(jnp.float32) * math.log(decay))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), optax.incremental_update(params, average, share), average)


def used(average: Tree, params: Tree) -> Tree:
    """What is evaluated: the average if there is one, else the parameters."""
    return average if jax.tree.leaves(average) else params
