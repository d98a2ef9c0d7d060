"""Answers that a model generates: each predicted token is its next input.

Teacher-forced accuracy asks for one token at a time and shows the right one afterwards, so a model that goes wrong once is
corrected at the next step. Here predictions are fed back, by one of two rules whose numbers must not share a table. A third rule
feeds nothing back:

    strict       every answer is fed back
    published    the first input of each segment is shown, as in the public code of RMT (arXiv 2207.06881)
    shown        as in training; tells how often an answer is right when the steps before it are right

The task says which inputs are answers; the other inputs, such as questions in between, are always shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import choose
from memtok_jax.data.tasks.scoring import accuracy, exact_match
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model

RULES = ("strict", "published", "shown")


def fed_back(answers_T: np.ndarray, segment: int, rule: str) -> np.ndarray:
    """bool[T]: inputs that are replaced by the model's own prediction.

    answers_T: bool[T], inputs that are answers, never the first one. segment: tokens of a segment, for "published". rule: one of
    RULES. Raises UserError for another rule.
    """
    choose("rule", rule, RULES)
    back = answers_T & (rule != "shown")
    if rule == "published":
        back[::segment] = False
    return back


@partial(jax.jit, static_argnames=("block", "model"))
def prompted(params: P.Tree, prompt_BT: jax.Array, *, block: int, model: Model) -> tuple[jax.Array, P.Tree]:
    """Read a prompt i32[B, T] from a fresh carry, in calls of `block` tokens, and the rest in one more call.

    Returns the most likely token after each position, i32[B, T], and the carry.
    """
    return _read(params, model.init_state(params, len(prompt_BT)), prompt_BT, block, model, block % model.call_tokens == 0)


@partial(jax.jit, static_argnames=("block", "model"))
def read_on(params: P.Tree, carry: P.Tree, prompt_BT: jax.Array, *, block: int, model: Model) -> tuple[jax.Array, P.Tree]:
    """As `prompted`, from a carry that may stand anywhere in a unit of the model."""
    return _read(params, carry, prompt_BT, block, model, False)


def _read(params: P.Tree, carry: P.Tree, prompt_BT: jax.Array, block: int, model: Model, whole: bool) -> tuple[jax.Array, P.Tree]:
    rows, tokens = prompt_BT.shape

    def read(carry, ids, call=Call(whole=whole)):  # noqa: B008
        logits, carry, _ = model.run(params, carry, ids, call)
        return carry, logits.argmax(-1).astype(ids.dtype)

    blocks = jnp.moveaxis(prompt_BT[:, :tokens // block * block].reshape(rows, -1, block), 1, 0)
    carry, said = jax.lax.scan(read, carry, blocks)
    said = jnp.moveaxis(said, 0, 1).reshape(rows, -1)
    if tokens % block:
        carry, rest = read(carry, prompt_BT[:, tokens // block * block:], Call())
        said = jnp.concatenate([said, rest], axis=1)
    return said, carry


@partial(jax.jit, static_argnames=("model",))
def written(params: P.Tree, carry: P.Tree, last_B: jax.Array, inputs_BT: jax.Array, back_T: jax.Array, *,
            model: Model) -> jax.Array:
    """Most likely token after each position, i32[B, T], one token at a time.

    last_B: i32[B], predicted before the first position. inputs_BT: i32[B, T]. back_T: bool[T], positions whose input is the
    prediction before them.
    """
    def step(carry, x):
        state, last = carry
        given, own = x
        logits, state, _ = model.run(params, state, jnp.where(own, last, given)[:, None], Call())
        said = logits[:, 0].argmax(-1).astype(inputs_BT.dtype)
        return (state, said), said

    _, said = jax.lax.scan(step, (carry, last_B), (inputs_BT.T, back_T))
    return said.T


def answer(params: P.Tree, inputs_BT: np.ndarray, back_T: np.ndarray, block: int, *, model: Model) -> np.ndarray:
    """Most likely token after each position, i32[B, T], from a fresh carry.

    The prompt, up to the first position of back_T bool[T], is read in calls of `block` tokens, the rest token by token.
    """
    prompt = int(np.argmax(back_T)) if back_T.any() else len(back_T)
    said, carry = prompted(params, inputs_BT[:, :prompt], block=block, model=model)
    if prompt < len(back_T):
        rest = written(params, carry, said[:, -1], inputs_BT[:, prompt:], back_T[prompt:], model=model)
        said = jnp.concatenate([said, rest], axis=1)
    return np.asarray(said)


def generated(params: P.Tree, batches: Iterable[dict[str, np.ndarray]], answers_T: np.ndarray, segment: int, rule: str, *,
              model: Model, answer_right: Callable | None = None) -> dict[str, float]:
    """Share of right symbols ("accuracy") and of samples without a wrong one ("exact_match"), over all rows of the batches.

    answers_T: bool[T], inputs that are answers. segment: tokens of a call, and the segment of `fed_back`. answer_right: scorer for
    tasks that grade only a part of the predicted tokens, (said, labels) -> bool[B]; adds "answers", the share of right ones.
    """
    said, labels, back = [], [], fed_back(answers_T, segment, rule)
    for batch in batches:
        real = batch["length"] > 0
        said.append(answer(params, batch["inputs"], back, segment, model=model)[real])
        labels.append(batch["targets"][real])
    said, labels = np.concatenate(said), np.concatenate(labels)
    found = {"accuracy": accuracy(said, labels), "exact_match": exact_match(said, labels)}
    return found | ({"answers": float(answer_right(said, labels).mean())} if answer_right else {})
