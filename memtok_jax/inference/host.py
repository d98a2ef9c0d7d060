"""Checks of what the host hands to a session. Each failure is a UserError that names the value, the rule and what to do.

Each function returns its argument in the one dtype that the compiled programs take. Values on the device are not looked at, since
that would wait for the device; their shapes and dtypes are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from memtok_jax.config import UserError
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.stream import NO_TOKEN


def integers(name: str, values: Any) -> np.ndarray | jax.Array:
    """An array of integers; an empty list counts as one. Raises UserError for any other dtype."""
    array = values if isinstance(values, jax.Array) else np.asarray(values)
    if np.issubdtype(array.dtype, np.integer):
        return array
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    raise UserError(f"{name} must be integers, got {array.dtype.name} {_brief(array)}; convert them first, as in x.astype(int)")


def tokens(ids: Any, vocabulary: int, real: np.ndarray | bool = True) -> np.ndarray | jax.Array:
    """Token ids of any shape as int32. Raises UserError for other dtypes, and on the host for ids outside the vocabulary.

    real: booleans like ids, False at padding, which may hold anything.
    """
    ids = integers("tokens", ids)
    if isinstance(ids, jax.Array):
        return ids if ids.dtype == np.int32 else ids.astype(np.int32)
    wrong = ids[((ids < 0) | (ids >= vocabulary)) & real]
    if wrong.size:
        hint = ("; it is NO_TOKEN, which marks a row that has stopped: feed back the second result of `decode`, not the first"
                if wrong[0] == NO_TOKEN else "")
        raise UserError(f"token {wrong[0]} is outside the vocabulary 0 to {vocabulary - 1}{hint}")
    return ids.astype(np.int32)


def block(ids_BT: Any, length: Any, vocabulary: int, batch: int | None = None) -> tuple[np.ndarray | jax.Array, np.ndarray]:
    """Token ids i32[B, T] and the real tokens of each row, i32[B]. batch: B, any if left out.

    Only real tokens are checked: padding may hold anything.
    """
    ids_BT = integers("tokens", ids_BT)
    rows = "B" if batch is None else batch
    if ids_BT.ndim != 2 or batch not in (None, ids_BT.shape[0]):
        raise UserError(f"tokens of shape {tuple(ids_BT.shape)} do not fit: [{rows}, T] is needed, one row for each stream")
    length = lengths(length, *ids_BT.shape)
    return tokens(ids_BT, vocabulary, np.arange(ids_BT.shape[1]) < length[:, None]), length


def one_each(ids_B: Any, batch: int, vocabulary: int) -> np.ndarray | jax.Array:
    """Token ids [B], one for each row, as int32."""
    ids_B = tokens(ids_B, vocabulary)
    if ids_B.shape != (batch,):
        raise UserError(f"tokens of shape {tuple(ids_B.shape)} are not one for each of the {batch} rows: [{batch}] is needed")
    return ids_B


def lengths(length: Any, batch: int, most: int) -> np.ndarray:
    """i32[B]: real tokens of each row, from 0 to `most`; None means all. A mask of real tokens is refused."""
    if length is None:
        return np.full(batch, most, np.int32)
    length = np.asarray(integers("length", length))
    if length.shape != (batch,) or length.size and not 0 <= length.min() <= length.max() <= most:
        raise UserError(f"length {_brief(length)} must hold {batch} numbers from 0 to {most}, the real tokens of each row")
    return length.astype(np.int32)


def slots(values: Any, batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """Slots from 0 to B-1 as int32 of the given shape."""
    values = np.asarray(integers("slots", values))
    if values.shape != shape:
        raise UserError(f"slots {_brief(values)} have shape {values.shape}; {shape or 'one number'} is needed")
    if values.size and not 0 <= values.min() <= values.max() < batch:
        raise UserError(f"slot {_brief(values)} is not one of the {batch} slots 0 to {batch - 1}")
    return values.astype(np.int32)


def mask(rows: Any, batch: int) -> np.ndarray:
    """bool[B]. Raises UserError for a list of slots, which looks much like a mask."""
    rows = np.asarray(rows)
    if rows.dtype != bool or rows.shape != (batch,):
        raise UserError(f"rows {_brief(rows)} must be a mask of {batch} booleans, True for each chosen row; "
                        f"a list of slots becomes one by np.isin(np.arange({batch}), slots)")
    return rows


def flag(name: str, value: Any) -> np.ndarray:
    """bool[]."""
    value = np.asarray(value)
    if value.dtype != bool or value.shape != ():
        raise UserError(f"{name}={_brief(value)} must be True or False")
    return value


def temperatures(temperature: Any, batch: int) -> np.ndarray:
    """f32[B] out of one number or B numbers, finite and at least 0."""
    return _option("temperature", temperature, batch, np.float32, lambda x: x >= 0,
                   "at least 0; 0 takes the most likely token")


def sampling(options: Any, batch: int) -> Sampling:
    """`Sampling` as arrays [B], or a temperature alone. Raises UserError for the first option that is out of its bounds."""
    given = options if isinstance(options, Sampling) else Sampling(temperature=options)
    return Sampling(
        temperatures(given.temperature, batch),
        _option("top_k", given.top_k, batch, np.int32, lambda x: x >= 0, "at least 0; 0 is off"),
        _option("top_p", given.top_p, batch, np.float32, lambda x: (x > 0) & (x <= 1), "above 0 and at most 1; 1 is off"),
        _option("min_p", given.min_p, batch, np.float32, lambda x: (x >= 0) & (x <= 1), "from 0 to 1; 0 is off"),
        _option("repetition_penalty", given.repetition_penalty, batch, np.float32, lambda x: x > 0, "above 0; 1 is off"),
        _option("repetition_window", given.repetition_window, batch, np.int32, lambda x: x >= 0, "at least 0; 0 takes all tokens"))


def _option(name: str, value: Any, batch: int, dtype: Any, fits: Callable[[np.ndarray], np.ndarray], rule: str) -> np.ndarray:
    """One option for each row, [B] of `dtype`, out of one number or B numbers."""
    values, whole = np.asarray(value), np.issubdtype(dtype, np.integer)
    if values.dtype.kind not in ("iu" if whole else "iuf") or values.shape not in ((), (batch,)):
        kind = "whole number" if whole else "number"
        raise UserError(f"{name} {_brief(values)} must be one {kind}, or one for each of the {batch} rows")
    if not (np.isfinite(values) & fits(values)).all() or (values > np.finfo(np.float32).max).any():
        raise UserError(f"{name} {_brief(values)} must be finite and {rule}")
    if whole and (values > np.iinfo(dtype).max).any():
        raise UserError(f"{name} {_brief(values)} must be at most {np.iinfo(dtype).max}")
    return np.broadcast_to(values.astype(dtype), (batch,))


def _brief(values: np.ndarray | jax.Array) -> str:
    """The values, or the first ones of many; on the device their shape."""
    if isinstance(values, jax.Array):
        return str(list(values.shape))
    return str(values.tolist()) if values.size <= 16 else f"{values.reshape(-1)[:16].tolist()} ..."
