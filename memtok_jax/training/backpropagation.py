"""How far the gradient flows back through the segments of a sequence, as data: truncated backpropagation through time.

    full        through all N segments
    every:k     cut before segments k, 2k, ...                     (k = 1: none passes)
    last:k      cut before segment N - k: the last loss sees k segments, its own included
    rolling:k   the loss of every segment sees k segments before its own

"full", "every" and "last" are a boolean for each segment: `where(cut[n], stop_gradient(memory), memory)` as it enters segment n.
With "rolling", memories of all segments come from a pass without gradient; then each segment and the k before it are run again from
the stopped memory k segments back (from the first memory with its gradient, where the sequence is not longer). That costs k + 1
times the computation, and is what the "BPTT-k" of RMT (arXiv 2207.06881) intends.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np

from memtok_jax.config import UserError

KINDS = ("full", "every", "last", "rolling")


class Plan(NamedTuple):
    """G groups of S segments; each group has a gradient of its own, and no gradient passes between groups."""

    index: np.ndarray   # int[G, S] which segment
    scored: np.ndarray  # bool[G, S] its loss counts here; each segment is scored once
    cut: np.ndarray     # bool[G, S] the gradient is cut before it
    chained: bool       # a group begins with the memory that the group before left; else each has its own beginning


def parse(text: str) -> tuple[str, int]:
    """("every", 2) from "every:2"; ("full", 0). Raises UserError for anything else."""
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"training.gradient is {text!r}; it must be full, every:k, last:k or rolling:k{hint}")
    if kind == "full" and not colon:
        return kind, 0
    if kind == "full" or not number.isdecimal() or int(number) < 1:
        raise UserError(f"training.gradient is {text!r}; full takes no number, every, last and rolling one of at least 1")
    return kind, int(number)


def cuts(text: str, segments: int) -> np.ndarray:
    """bool[N]: whether the gradient is cut before each segment, by the rule "full", "every:k" or "last:k"."""
    kind, k = parse(text)
    n = np.arange(segments)
    return {"full": lambda: n < 0, "every": lambda: (n > 0) & (n % k == 0), "last": lambda: (n > 0) & (n == segments - k)}[kind]()


def plan(text: str, segments: int) -> Plan:
    """The groups for N segments. Where cuts fall evenly, groups lie between them, and one group at a time is stored."""
    kind, k = parse(text)
    if kind == "rolling":
        n = np.arange(segments)[:, None]
        index = np.maximum(n - k, 0) + np.arange(min(k + 1, segments))[None]
        # A span at the beginning holds later segments too; they are not scored, so nothing comes of them.
        return Plan(index, index == n, np.zeros_like(index, bool), False)
    size = k if kind == "every" and segments % k == 0 else segments
    index = np.arange(segments).reshape(-1, size)
    cut = np.where(index % size == 0, False, cuts(text, segments)[index])
    return Plan(index, np.ones_like(index, bool), cut, True)
