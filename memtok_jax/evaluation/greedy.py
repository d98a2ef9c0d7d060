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


PIECE, WRITTEN = 256, 32   # tokens of the buffers that programs read from and write into; a piece is rounded to whole blocks


@partial(jax.jit, static_argnames=("rows", "model"))
def fresh(params: P.Tree, *, rows: int, model: Model) -> P.Tree:
    """The carry of streams that begin."""
    return model.init_state(params, rows)


@partial(jax.jit, static_argnames=("block", "whole", "model"))
def _read(params: P.Tree, carry: P.Tree, ids_BT: jax.Array, tokens: jax.Array, *, block: int, whole: bool,
          model: Model) -> tuple[jax.Array, P.Tree]:
    """Read the first `tokens` of ids i32[B, T], T a multiple of `block`, in calls of `block` tokens; the last one may be padded.

    How many there are is a value, so that one program reads texts of all lengths. whole: as in `Call`, for full blocks.
    Returns (most likely token after each position i32[B, T], carry).
    """
    def step(n, before):
        carry, said = before
        ids = jax.lax.dynamic_slice_in_dim(ids_BT, n * block, block, axis=1)
        length = jnp.full(len(ids), jnp.minimum(tokens - n * block, block), jnp.int32)
        logits, carry, _ = model.run(params, carry, ids, Call(whole=True) if whole else Call(length=length))
        return carry, jax.lax.dynamic_update_slice_in_dim(said, logits.argmax(-1).astype(said.dtype), n * block, axis=1)

    carry, said = jax.lax.fori_loop(0, -(-tokens // block), step, (carry, ids_BT))
    return said, carry


def read_on(params: P.Tree, carry: P.Tree, ids_BT: np.ndarray, *, block: int, model: Model,
            aligned: int = 0) -> tuple[np.ndarray, P.Tree]:
    """Read i32[B, T] from a carry, in calls of `block` tokens, and the rest in one more call.

    Buffers of one size go to two programs at most, whatever T is. aligned: the first tokens, whole blocks from a carry that stands
    at a border of every unit of the model, which take its faster path.
    Returns (most likely token after each position i32[B, T], carry).
    """
    piece, total, said = max(PIECE // block, 1) * block, ids_BT.shape[1], [np.zeros((len(ids_BT), 0), np.int32)]
    for first, last, whole in ((0, aligned, True), (aligned, total, False)):
        for begin in range(first, last, piece):
            count = min(piece, last - begin)
            ids = np.zeros((len(ids_BT), piece), np.int32)
            ids[:, :count] = ids_BT[:, begin:begin + count]
            found, carry = _read(params, carry, ids, np.int32(count), block=block, whole=whole, model=model)
            said.append(np.asarray(found)[:, :count])
    return np.concatenate(said, axis=1), carry


def prompted(params: P.Tree, prompt_BT: np.ndarray, *, block: int, model: Model) -> tuple[np.ndarray, P.Tree]:
    """`read_on` from a fresh carry, by the faster path as far as it goes."""
    aligned = prompt_BT.shape[1] // block * block if block % model.call_tokens == 0 else 0
    return read_on(params, fresh(params, rows=len(prompt_BT), model=model), prompt_BT, block=block, model=model, aligned=aligned)


@partial(jax.jit, static_argnames=("model",))
def _write(params: P.Tree, carry: P.Tree, last_B: jax.Array, inputs_BT: jax.Array, back_T: jax.Array, tokens: jax.Array, *,
           model: Model) -> tuple[jax.Array, P.Tree, jax.Array]:
    """The first `tokens` of `written`: (said i32[B, T], carry, the last one said i32[B])."""
    def step(t, before):
        carry, last, said = before
        ids = jnp.where(back_T[t], last, inputs_BT[:, t])
        logits, carry, _ = model.run(params, carry, ids[:, None], Call())
        last = logits[:, 0].argmax(-1).astype(said.dtype)
        return carry, last, said.at[:, t].set(last)

    carry, last, said = jax.lax.fori_loop(0, tokens, step, (carry, last_B, inputs_BT))
    return said, carry, last


def written(params: P.Tree, carry: P.Tree, last_B: np.ndarray, inputs_BT: np.ndarray, back_T: np.ndarray, *,
            model: Model) -> np.ndarray:
    """Most likely token after each position, i32[B, T], one token at a time; one program for every T.

    last_B: i32[B], predicted before the first position. inputs_BT: i32[B, T]. back_T: bool[T], positions whose input is the
    prediction before them.
    """
    said = []
    for begin in range(0, len(back_T), WRITTEN):
        count = min(WRITTEN, len(back_T) - begin)
        ids, back = np.zeros((len(inputs_BT), WRITTEN), np.int32), np.zeros(WRITTEN, bool)
        ids[:, :count], back[:count] = inputs_BT[:, begin:begin + count], back_T[begin:begin + count]
        found, carry, last_B = _write(params, carry, last_B, ids, back, np.int32(count), model=model)
        said.append(np.asarray(found)[:, :count])
    return np.concatenate(said, axis=1)


def answer(params: P.Tree, inputs_BT: np.ndarray, back_T: np.ndarray, block: int, *, model: Model) -> np.ndarray:
    """Most likely token after each position, i32[B, T], from a fresh carry.

    The prompt, up to the first position of back_T bool[T], is read in calls of `block` tokens, the rest token by token.
    """
    prompt = int(np.argmax(back_T)) if back_T.any() else len(back_T)
    said, carry = prompted(params, inputs_BT[:, :prompt], block=block, model=model)
    if prompt < len(back_T):
        rest = written(params, carry, said[:, -1], inputs_BT[:, prompt:], back_T[prompt:], model=model)
        said = np.concatenate([said, rest], axis=1)
    return said


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
