"""The main context on the device: what the model has read, kept in step with the host's state by the ops of events.

Two carries. The summary has read what was evicted, each token once and in order. The context begins as a copy of it and has read
pinned, system, working and fifo. After a flush or an edit of the working context it is read again from its tokens ("rebuild"), so a
token that was evicted reaches the logits through the summary alone; other tokens are appended. With an eviction of half the budget
that costs about one more token for each token that enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from memtok_jax.virtual_context import codec, queue
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.device import Context, Device, Memory
from memtok_jax.virtual_context.queue import Part, State

TokensOf = Callable[[Part], bytes]


@dataclass(frozen=True)
class MainContext:
    """Both carries. fresh: nothing was evicted yet."""

    summary: Memory
    context: Context
    fresh: bool = True


def tokens(state: State, cfg: ContextConfig, tokens_of: TokensOf) -> bytes:
    """The whole main context behind the summary. tokens_of: gives the tokens of an entry of the fifo."""
    return b"".join((codec.encode(cfg.pinned), codec.wrap("system", codec.encode(cfg.system)), codec.working(state.working),
                     *map(tokens_of, state.fifo)))


def begin(device: Device, state: State, cfg: ContextConfig) -> MainContext:
    """Before the first message."""
    summary = device.begin()
    return MainContext(summary, device.context(summary, tokens(state, cfg, lambda part: b"")))


def plan(device: Device, state: State, ops: list[dict[str, Any]], after: State, cfg: ContextConfig) -> list[list[int]]:
    """Block lengths of every reading that `follow` will do for these ops.

    They go into the event, because only equal blocks give equal bits.
    """
    readings, entered, dirty, first = [], 0, False, state.evicted == 0
    for op in ops:
        if op["op"] == "flush":
            readings.append(op["tokens"] + first * len(codec.encode(cfg.pinned)))
            first, dirty = False, True
        entered += op["stop"] - op["start"] if op["op"] == "enter" else 0
        dirty |= op["op"] == "working"
    if dirty:
        readings.append(len(tokens(after, cfg, lambda part: b"")) + after.tokens)
    elif entered:
        readings.append(entered)
    return [list(device.plan(n)) for n in readings]


def follow(device: Device, main: MainContext, state: State, ops: list[dict[str, Any]], cfg: ContextConfig,
           tokens_of: TokensOf, at: Callable[[str], None]) -> tuple[MainContext, State]:
    """Both after the ops of one event. at: is called between the steps."""
    entered, dirty = b"", False
    for op in ops:
        if op["op"] == "flush":
            evicted = b"".join(map(tokens_of, state.fifo[:op["parts"]]))
            evicted = (codec.encode(cfg.pinned) if main.fresh else b"") + evicted
            main = replace(main, summary=device.summarise(main.summary, evicted), fresh=False)
            dirty = True
            at("summarised")
        state = queue.apply(state, op)
        if op["op"] == "enter":
            entered += tokens_of(state.fifo[-1])
        dirty |= op["op"] == "working"
    if dirty:
        main = replace(main, context=device.context(main.summary, tokens(state, cfg, tokens_of)))
    elif entered:
        main = replace(main, context=device.read(main.context, entered))
    at("read")
    return main, state
