"""The automaton of the grammar: which tokens may come next, so that what a model decodes under it is always a decision.

It also counts the tokens that are left, and offers no token after which the rest would not suffice to end. Strings are UTF-8.
"""

from __future__ import annotations

import functools

import numpy as np

from memtok_jax.virtual_context.codec import CALL, CALL_END, END, HEARTBEAT, STR, STR_END
from memtok_jax.virtual_context.grammar import BY_LETTER, MODE_BY_LETTER, OPS

SHORTEST = 4   # CALL yield CALL_END END
# Bytes that may follow the first byte of a character of UTF-8: first byte -> (bytes to come, lowest, highest next byte).
_LEADS = {**dict.fromkeys(range(0x00, 0x80), (0, 0, 0)), **dict.fromkeys(range(0xC2, 0xE0), (1, 0x80, 0xBF)),
          **dict.fromkeys(range(0xE0, 0xF0), (2, 0x80, 0xBF)), **dict.fromkeys(range(0xF0, 0xF5), (3, 0x80, 0xBF)),
          0xE0: (2, 0xA0, 0xBF), 0xED: (2, 0x80, 0x9F), 0xF0: (3, 0x90, 0xBF), 0xF4: (3, 0x80, 0x8F)}


@functools.cache
def _mask(tokens: tuple[int, ...]) -> np.ndarray:
    """bool[256], True at the given tokens. Do not write to it."""
    out = np.zeros(256, bool)
    out[list(tokens)] = True
    out.flags.writeable = False
    return out


@functools.cache
def _leads(most: int) -> tuple[int, ...]:
    """First bytes of characters with at most this many bytes to come."""
    return tuple(byte for byte, (more, _, _) in _LEADS.items() if more <= most)


class Automaton:
    """One decision while it is decoded.

    left: most tokens of the decision. calls: most calls in it. Raises ValueError if not even a yield would fit.
    """

    def __init__(self, left: int, calls: int = 4):
        if left < SHORTEST:
            raise ValueError(f"a decision needs {SHORTEST} tokens, {left} are left")
        self._left, self._calls, self._begun = left, calls, 0
        self._at, self._op, self._argument = "begin", OPS["yield"], 0
        self._characters, self._next = 0, (0, 0, 0)
        self._digits = 0

    @property
    def done(self) -> bool:
        """The decision has ended."""
        return self._at == "done"

    def allowed(self) -> np.ndarray:
        """bool[256]: tokens that may come next; at least one, unless the decision is done."""
        spare = self._left - self._shortest()   # tokens beyond the shortest end
        return _mask(getattr(self, f"_after_{self._at}")(spare))

    def _shortest(self) -> int:
        """Tokens of the shortest end from here."""
        ends = {"begin": 1 if self._begun else SHORTEST, "call": SHORTEST - 1, "page": 2, "close": 2, "done": 0}
        if self._at in ends:
            return ends[self._at]
        strings = sum(2 + least for least in self._op.shortest[self._argument + (self._at == "string"):]) + 2
        if self._at == "string":
            return max(0, self._op.shortest[self._argument] - self._characters) + self._next[0] + 1 + strings
        return strings + (self._at == "mode")

    def _after_begin(self, spare: int) -> tuple[int, ...]:
        more = not self._begun or self._begun < self._calls and spare >= SHORTEST - 1
        return (CALL,) * more + (END,) * bool(self._begun)

    def _after_call(self, spare: int) -> tuple[int, ...]:
        return tuple(ord(op.letter) for op in OPS.values() if op.search + sum(2 + least for least in op.shortest) <= spare)

    def _after_mode(self, spare: int) -> tuple[int, ...]:
        return tuple(map(ord, MODE_BY_LETTER))

    def _after_open(self, spare: int) -> tuple[int, ...]:
        return (STR,)

    def _after_string(self, spare: int) -> tuple[int, ...]:
        more, low, high = self._next
        if more:
            return tuple(range(low, high + 1))
        missing = self._characters < self._op.shortest[self._argument]
        return _leads(min(3, spare - 1 + missing)) + (() if missing else (STR_END,))

    def _after_page(self, spare: int) -> tuple[int, ...]:
        more = self._op.search and self._digits < 2 and spare >= 1
        digits = tuple(range(ord("0") + (self._digits == 0), ord("9") + 1)) if more else ()
        return digits + (HEARTBEAT,) * (spare >= 1) + (CALL_END,)

    def _after_close(self, spare: int) -> tuple[int, ...]:
        return (CALL_END,)

    def _after_done(self, spare: int) -> tuple[int, ...]:
        return ()

    def push(self, token: int) -> None:
        """Take a token. Raises ValueError if it is not allowed."""
        if not self.allowed()[token]:
            raise ValueError(f"token {token} may not follow here")
        self._left -= 1
        if self._at == "string" and token != STR_END:
            self._push_byte(token)
        elif token in (CALL, STR, STR_END, CALL_END, END, HEARTBEAT):
            self._push_control(token)
        elif self._at == "call":
            self._op, self._argument, self._digits = OPS[BY_LETTER[chr(token)]], 0, 0
            self._at = "mode" if self._op.search else self._strings()
        elif self._at == "mode":
            self._at = self._strings()
        else:
            self._digits += 1

    def _push_byte(self, byte: int) -> None:
        more, _, _ = self._next
        self._characters += not more
        self._next = (more - 1, 0x80, 0xBF) if more else _LEADS[byte]

    def _push_control(self, token: int) -> None:
        if token == STR:
            self._at, self._characters, self._next = "string", 0, (0, 0, 0)
        elif token == STR_END:
            self._argument += 1
            self._at = self._strings()
        elif token == CALL:
            self._at, self._begun = "call", self._begun + 1
        else:
            self._at = {CALL_END: "begin", END: "done", HEARTBEAT: "close"}[token]

    def _strings(self) -> str:
        """What comes after a letter or a string: the next string, or the end of the call."""
        return "open" if self._argument < len(self._op.arguments) else "page"
