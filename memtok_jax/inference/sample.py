"""Text (or any token sequence) from a trained model: prompts in, tokens out, both on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.inference import host
from memtok_jax.inference.blocks import blocks_for, plan_blocks
from memtok_jax.inference.session import Session, new_stream, open_session
from memtok_jax.inference.stream import NO_TOKEN, Stream
from memtok_jax.models.protocol import Model
from memtok_jax.params import Tree

TOKENS_PER_CALL = 32   # sampled per dispatch: enough to hide what a call costs, few enough that a stop wastes little


def generate(model: Model, params: Tree, prompt_ids_BT: Any, n: int, key: jax.Array, temperature: Any, *,
             length: Sequence[int] | None = None, stop: Sequence[int] = ()) -> np.ndarray:
    """Continue prompts by n tokens each.

    model, params: a model and its parameters.
    prompt_ids_BT: int[B, T], at least one token in each row.
    n: tokens to sample.
    key: typed PRNG key.
    temperature: float or float[B], at least 0; 0 takes the most likely token; or a `Sampling` of options.
    length: int[B], the real tokens of each prompt, which stand first; all T if left out.
    stop: tokens that end a row.
    Returns i32[B, n]; where a row has ended, NO_TOKEN follows its stop token.
    Raises UserError for an empty prompt, n below 1, a wrong length or temperature, or a token outside the vocabulary.

    This compiles for the batch size at hand. To generate often, keep a `Session` and call `decode_many`.
    """
    if n < 1:
        raise UserError(f"n={n} tokens to generate must be at least 1")
    prompt, length = host.block(np.asarray(prompt_ids_BT), length, model.vocabulary)
    if length.min(initial=1) < 1:
        raise UserError(f"a prompt of {length.min()} tokens has no last token; each row needs at least 1")
    options = host.sampling(temperature, len(prompt))
    if len(prompt) == 0:
        return np.zeros((0, n), np.int32)
    stream = new_stream(model, params, len(prompt), key)
    possible = blocks_for(model.call_tokens)
    blocks = set(plan_blocks(int(length.max()) - 1, possible)) or possible[:1]
    session = open_session(model, params, stream, feed_blocks=tuple(blocks), k=min(TOKENS_PER_CALL, n), stop=stop)
    # The last token of each prompt is not fed: the first decode step consumes it and samples what follows.
    stream = session.feed(params, stream, prompt, length - 1)
    last = prompt[np.arange(len(prompt)), length - 1]
    return decode_many(session, params, stream, last, n, options)[0]


def decode_many(session: Session, params: Tree, stream: Stream, last_B: Any, n: int, temperature: Any,
                show: Callable[[np.ndarray], None] = lambda ids_BT: None) -> tuple[np.ndarray, Any, Stream]:
    """Sample n tokens of each row, `session.k` at a time, and fewer if every row stops earlier.

    last_B: int[B], each row's newest token, not yet consumed. temperature: float or float[B], or a `Sampling`. show: called
    with each piece of tokens (i32[B, up to k]) as it reaches the host.
    Returns (ids i32[B, n], padded with NO_TOKEN, last_B, stream), the stream after exactly these tokens.
    """
    ids_Bn = np.full((session.batch, n), NO_TOKEN, np.int32)
    running = None
    # Each call is dispatched before the tokens of the one before are waited for, so the device never idles. Rows that
    # have stopped are seen one call late; that call leaves them alone.
    for first in range(0, n, session.k):
        most = np.full(session.batch, min(session.k, n - first))
        ids, last_B, stream = session.decode(params, stream, last_B, temperature, most)
        if running is not None and _collect(ids_Bn, *running, show):
            return ids_Bn, last_B, stream
        running = (first, ids)
    if running is not None:
        _collect(ids_Bn, *running, show)
    return ids_Bn, last_B, stream


def _collect(ids_Bn: np.ndarray, first: int, ids: jax.Array, show: Callable[[np.ndarray], None]) -> bool:
    """Wait for a call's tokens and put them into place; True if no row is running any more."""
    piece = np.asarray(ids)[:, :ids_Bn.shape[1] - first]
    ids_Bn[:, first:first + piece.shape[1]] = piece
    show(piece)
    return bool((piece[:, -1] == NO_TOKEN).all())
