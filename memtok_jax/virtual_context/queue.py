"""The queue manager: what the host knows of a conversation, and what is evicted when a message enters.

Pure functions over a `State`. A change is a list of ops, plain values that go into an event; `apply` is the only function that
makes a new state of them, while a conversation runs and when it is read again from its events.

    {"op": "begin", "row": r, "role": "user", "t_us": t}      a turn begins with message r
    {"op": "flush", "parts": k, "tokens": n}                  the k oldest entries leave the fifo for the summary
    {"op": "enter", "row": r, "role": ..., "start": a, "stop": b}   tokens a .. b-1 of message r enter the fifo
    {"op": "warn"}, {"op": "rearm"}                           a pressure episode begins, ends
    {"op": "decide", "calls": [...]}                          what the policy said; it waits for nothing else
    {"op": "working", "name": ..., "text": ...}               a block of the working context changes
    {"op": "cursor", "key": [...], "bound": b, "ids": [...]}  a search shows its first page
    {"op": "done", "again": bool}                             a call of the decision is done; again: the policy is to be asked again
    {"op": "end"}                                             the turn ends
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from memtok_jax.config import UserError
from memtok_jax.virtual_context.config import ContextConfig, Regions
from memtok_jax.virtual_context.search import Cursor, Query

CURSORS = 8   # searches that can be continued


class NothingToEvict(UserError):
    """A message does not fit although the fifo is empty."""


class Part(NamedTuple):
    """An entry of the fifo: tokens start .. stop-1 of message `row`; most entries are whole messages."""

    row: int
    role: str
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Tokens in the fifo."""
        return self.stop - self.start


class Turn(NamedTuple):
    """A turn that has not ended. row, role, t_us: of the message that began it. chain: decisions so far."""

    row: int
    role: str
    t_us: int
    chain: int = 0
    calls: tuple[dict[str, Any], ...] | None = None   # of the decision that is carried out
    done: int = 0
    again: bool = False


@dataclass(frozen=True)
class State:
    """Everything that the host knows.

    fifo: oldest first. working: block -> text. evicted: tokens that the summary has read. flushes: how often. warned: the policy
    was warned in this pressure episode. unseen: it was not asked since. turn: None between two turns. cursors: of the last
    searches.
    """

    fifo: tuple[Part, ...] = ()
    working: dict[str, str] = field(default_factory=dict)
    evicted: int = 0
    flushes: int = 0
    warned: bool = False
    unseen: bool = False
    turn: Turn | None = None
    cursors: tuple[tuple[Query, Cursor], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in the fifo."""
        return sum(part.tokens for part in self.fifo)


def new_state(cfg: ContextConfig) -> State:
    """Before the first message."""
    return State(working={block.name: block.text for block in cfg.blocks})


def regions(state: State, fixed: Regions) -> Regions:
    """What each region takes now."""
    return fixed._replace(fifo=state.tokens)


# ------------------------------------------------------------------------------------------------------------- ops

def apply(state: State, op: dict[str, Any]) -> State:
    """The state after one op."""
    return _APPLY[op["op"]](state, op)


def _begin(state: State, op: dict[str, Any]) -> State:
    return replace(state, turn=Turn(op["row"], op["role"], op["t_us"]))


def _flush(state: State, op: dict[str, Any]) -> State:
    return replace(state, fifo=state.fifo[op["parts"]:], evicted=state.evicted + op["tokens"], flushes=state.flushes + 1)


def _enter(state: State, op: dict[str, Any]) -> State:
    return replace(state, fifo=(*state.fifo, Part(op["row"], op["role"], op["start"], op["stop"])))


def _decide(state: State, op: dict[str, Any]) -> State:
    turn = state.turn._replace(chain=state.turn.chain + 1, calls=tuple(op["calls"]), done=0, again=False)
    return replace(state, turn=turn, unseen=False)


def _done(state: State, op: dict[str, Any]) -> State:
    turn = state.turn._replace(done=state.turn.done + 1, again=state.turn.again or op["again"])
    if turn.done < len(turn.calls):
        return replace(state, turn=turn)
    return replace(state, turn=turn._replace(calls=None) if turn.again else None)


def _cursor(state: State, op: dict[str, Any]) -> State:
    key, cursor = Query(*op["key"]), Cursor(op["bound"], tuple(op["ids"]))
    others = tuple(pair for pair in state.cursors if pair[0] != key)
    return replace(state, cursors=(*others, (key, cursor))[-CURSORS:])


_APPLY = {"begin": _begin, "flush": _flush, "enter": _enter, "decide": _decide, "done": _done, "cursor": _cursor,
          "warn": lambda state, op: replace(state, warned=True, unseen=True),
          "rearm": lambda state, op: replace(state, warned=False),
          "working": lambda state, op: replace(state, working=state.working | {op["name"]: op["text"]}),
          "end": lambda state, op: replace(state, turn=None)}


# ----------------------------------------------------------------------------------------------------------- plans

def plan_entry(state: State, cfg: ContextConfig, fixed: Regions, row: int, role: str, tokens: int) -> list[dict[str, Any]]:
    """Ops by which a message of this many tokens enters the fifo. After each of them all regions fit into the budget.

    A message that is longer than the whole share of the fifo enters in parts of a quarter of the share, one after the other.
    """
    share, ops, start = int(cfg.flush * cfg.budget) - fixed.total, [], 0
    size = tokens if tokens <= share else max(1, share // 4)
    while start < tokens:
        stop = min(start + size, tokens)
        if state.tokens + stop - start > share:
            parts = evicted_parts(state.fifo, cfg, fixed, stop - start)
            ops.append({"op": "flush", "parts": parts, "tokens": sum(part.tokens for part in state.fifo[:parts])})
            state = apply(state, ops[-1])
            if state.warned and fixed.total + state.tokens <= (cfg.warn - cfg.rearm) * cfg.budget:
                ops.append({"op": "rearm"})
                state = apply(state, ops[-1])
        ops.append({"op": "enter", "row": row, "role": role, "start": start, "stop": stop})
        state, start = apply(state, ops[-1]), stop
    return ops


def evicted_parts(fifo: tuple[Part, ...], cfg: ContextConfig, fixed: Regions, tokens: int) -> int:
    """How many of the oldest entries a flush evicts, so that `tokens` more fit.

    It goes on until the use is at most (flush - evict) of the budget, but leaves the last `keep_last` entries; of these it takes
    only what the new tokens need. Raises NothingToEvict if they do not fit into an empty fifo.
    """
    share = int(cfg.flush * cfg.budget) - fixed.total
    target = max(0, int((cfg.flush - cfg.evict) * cfg.budget) - fixed.total)
    left = sum(part.tokens for part in fifo)
    for count, part in enumerate(fifo):
        fits = left + tokens <= share
        if fits and (left <= target or len(fifo) - count <= cfg.keep_last):
            return count
        left -= part.tokens
    if tokens > share:
        raise NothingToEvict(f"{tokens} tokens do not fit into the {share} that context.budget={cfg.budget} leaves for messages")
    return len(fifo)


def under_pressure(state: State, cfg: ContextConfig, fixed: Regions) -> bool:
    """Whether the policy must be warned now."""
    return not state.warned and fixed.total + state.tokens > cfg.warn * cfg.budget
