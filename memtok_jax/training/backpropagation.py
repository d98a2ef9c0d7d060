"""How far the gradient flows back through the calls of a sequence, as data: truncated backpropagation through time.

    full        through all N calls
    every:k     cut before calls k, 2k, ...                        (k = 1: none passes)
    last:k      cut before call N - k: the last loss sees k calls, its own included
    rolling:k   the loss of every call sees k calls before its own

"full", "every" and "last" are a boolean for each call: `where(cut[n], stop_gradient(carry), carry)` as it enters call n.
With "rolling", the carries of all calls come from a pass without gradient; then each call and the k before it are run again from
the stopped carry k calls back (from the first carry with its gradient, if the sequence is not longer). That costs k + 1
times the computation, and is what the "BPTT-k" of RMT (arXiv 2207.06881) intends.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memtok_jax.config import UserError, nearest

KINDS = ("full", "every", "last", "rolling")


class Plan(NamedTuple):
    """G groups of S calls; each group has a gradient of its own, and no gradient passes between groups."""

    index: np.ndarray   # int[G, S] which call
    scored: np.ndarray  # bool[G, S] its loss counts here; each call is scored once
    cut: np.ndarray     # bool[G, S] the gradient is cut before it
    chained: bool       # a group begins with the carry that the group before left; else each has its own beginning


def parse(text: str) -> tuple[str, int]:
    """("every", 2) from "every:2"; ("full", 0). Raises UserError for anything else."""
    kind, colon, number = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"training.gradient is {text!r}; it must be full, every:k, last:k or rolling:k{nearest(kind, KINDS)}")
    if kind == "full" and not colon:
        return kind, 0
    if kind == "full" or not number.isdecimal() or int(number) < 1:
        raise UserError(f"training.gradient is {text!r}; full takes no number, every, last and rolling one of at least 1")
    return kind, int(number)


def cuts(text: str, calls: int) -> np.ndarray:
    """bool[N]: whether the gradient is cut before each call, by the rule "full", "every:k" or "last:k"."""
    kind, k = parse(text)
    n = np.arange(calls)
    return {"full": lambda: n < 0, "every": lambda: (n > 0) & (n % k == 0), "last": lambda: (n > 0) & (n == calls - k)}[kind]()


def plan(text: str, calls: int) -> Plan:
    """The groups for N calls. Where cuts fall evenly, groups lie between them, and one group at a time is stored."""
    kind, k = parse(text)
    if kind == "rolling":
        n = np.arange(calls)[:, None]
        index = np.maximum(n - k, 0) + np.arange(min(k + 1, calls))[None]
        # A span at the beginning holds later calls too; they are not scored and contribute no loss.
        return Plan(index, index == n, np.zeros_like(index, bool), False)
    size = k if kind == "every" and calls % k == 0 else calls
    index = np.arange(calls).reshape(-1, size)
    cut = np.where(index % size == 0, False, cuts(text, calls)[index])
    return Plan(index, np.ones_like(index, bool), cut, True)
