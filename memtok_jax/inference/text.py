"""Text out of tokens that arrive in pieces: half characters and possible beginnings of a stop string are held back."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from memtok_jax.config import UserError

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()   # of a token that stands for no byte


def byte_of(token: int) -> bytes:
    """The byte that a token of a byte-level model stands for."""
    return bytes((token,)) if token < 256 else UNKNOWN


class TextRow:
    """The text of one row.

    A stop string is found in the bytes, wherever pieces and characters are cut. The shown text ends in front of the first one; what
    may be the beginning of one is shown when it is sure not to be.

    stops: stop strings, none of them empty. as_bytes: token -> the bytes it stands for.
    """

    def __init__(self, stops: Sequence[str] = (), as_bytes: Callable[[int], bytes] = byte_of):
        if isinstance(stops, str) or "" in stops:
            raise UserError(f"stop strings {stops!r} must be a list of texts that are not empty")
        self._stops, self._as_bytes = tuple(stop.encode() for stop in stops), as_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> tuple[str, int | None]:
        """Add tokens. Returns (the text that may be shown now, how many of the tokens were used up to the end of a stop string).

        The second is None where none was found. Behind a stop string nothing may be pushed.
        """
        shown = []
        for used, token in enumerate(tokens, 1):
            self._held += self._as_bytes(int(token))
            places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
            if places:
                self._held, self.stopped = self._held[:min(places)], True
                return "".join([*shown, self.finish()]), used
            keep = self._possible()
            shown.append(self._decoder.decode(self._held[:len(self._held) - keep]))
            self._held = self._held[len(self._held) - keep:]
        return "".join(shown), None

    def finish(self) -> str:
        """What was held back, now that no more will come."""
        held, self._held = self._held, b""
        return self._decoder.decode(held, final=True)

    def _possible(self) -> int:
        """How many of the last bytes may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        return next((n for n in range(min(longest, len(self._held)), 0, -1)
                     if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
