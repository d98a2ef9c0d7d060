"""How many programs the backend has compiled in this process: the honest counter behind "compiled once"."""

from __future__ import annotations

import functools

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@functools.cache
def _tally() -> list[float]:
    """Seconds of each compile since the first call of this function; the listener lives as long as the process."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_):
        if event == _EVENT:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def compile_count() -> int:
    """Number of backend compiles (or loads from the compilation cache) since the first call of this function.

    Differences of two calls are what counts. A jitted function's `_cache_size()` is no substitute: it counts call
    signatures, and one program may stand under several of them.
    """
    return len(_tally())


def compile_seconds() -> float:
    """Seconds the backend spent on them."""
    return sum(_tally())
