"""Answers that a model writes by itself: each predicted token is its next input.

Teacher-forced accuracy asks for one token at a time and shows the right one afterwards; a model that goes wrong once is put right
at the next step. Here predictions are fed back, by two rules never to be mixed in one table; the third feeds nothing back:

    strict       every predicted token is fed back
    published    the first input of each segment is shown, as in the public code of RMT (arXiv 2207.06881)
    shown        as in training; tells how often an answer is right when the steps before it are

A token is fed back where the next input is what was to be predicted; a question in between is read as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as pr
from memtok_jax.data.tasks.scoring import IGNORED, accuracy, exact_match

RULES = ("strict", "published", "shown")


def fed_back(inputs: np.ndarray, labels: np.ndarray, segment: int, rule: str) -> np.ndarray:
    """bool[B, T]: inputs that are replaced by the model's own prediction. inputs, labels: i32[B, T]; segment: for "published"."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {', '.join(map(repr, RULES))}")
    back = np.zeros(labels.shape, bool)
    if rule == "shown":
        return back
    back[:, 1:] = (labels[:, :-1] != IGNORED) & (inputs[:, 1:] == labels[:, :-1])
    if rule == "published":
        back[:, ::segment] = False
    return back


@partial(jax.jit, static_argnames=("functions", "model"))
def answer(params: pr.Tree, inputs: jax.Array, back: jax.Array, *, functions: ModuleType, model: Any) -> jax.Array:
    """Most likely token after each position, i32[B, T], one token at a time from a fresh carry."""
    carry = functions.init_state(params, model, inputs.shape[0])

    def one(carry, x):
        state, last = carry
        given, own = x
        logits, state = functions.apply(params, state, jnp.where(own, last, given)[:, None], model)
        said = logits[:, 0].argmax(-1).astype(inputs.dtype)
        return (state, said), said

    _, said = jax.lax.scan(one, (carry, jnp.zeros_like(inputs[:, 0])), (inputs.T, back.T))
    return said.T


def generated(params: pr.Tree, batches: Iterable[dict[str, np.ndarray]], segment: int, rule: str, *, functions: ModuleType,
              model: Any, answer_right: Callable | None = None) -> dict[str, float]:
    """Share of right symbols ("accuracy") and of samples without a wrong one ("exact_match"), over all rows of the batches.

    answer_right: of a task whose answer is a part of what it predicts, (said, labels) -> bool[B]; then also "answers", its share.
    """
    said, labels = [], []
    for batch in batches:
        real = batch["length"] > 0
        back = fed_back(batch["inputs"], batch["targets"], segment, rule)
        said.append(np.asarray(answer(params, batch["inputs"], back, functions=functions, model=model))[real])
        labels.append(batch["targets"][real])
    said, labels = np.concatenate(said), np.concatenate(labels)
    found = {"accuracy": accuracy(said, labels), "exact_match": exact_match(said, labels)}
    return found | ({"answers": float(answer_right(said, labels).mean())} if answer_right else {})
