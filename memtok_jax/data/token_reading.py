"""The tokens of a text of any length, in runs of any length; no more than a window of the text is ever in memory.

Bytes are tokens as they come. A tokenizer sees a window of the text at a time, with some text before it that it has seen already,
and what stands near the end of a window waits for the next one. So the tokens are those of the whole text, unless one depends on
text further away than that.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np

from memtok_jax.data.reading import Pieces
from memtok_jax.data.tokenizers import Tokenizer

WINDOW, CONTEXT, HELD = 8192, 512, 512  # bytes


class ByteText:
    """A text whose tokens are its bytes. source: where it comes from. bytes: of the tokens given out."""

    def __init__(self, source: Pieces):
        self.source, self.bytes = source, 0

    def read(self, count: int) -> np.ndarray:
        """The next `count` tokens, fewer only at the end: uint8[n]."""
        piece = np.frombuffer(self.source.read(count), np.uint8)
        self.bytes += len(piece)
        return piece

    def state(self) -> dict[str, Any]:
        """Where the text stands, beside `source.taken` and `source.checksum`: JSON-able."""
        return {"bytes": self.bytes}

    def go_on(self, state: dict[str, Any]) -> None:
        """Continue from a state; the source is there already."""
        self.bytes = state["bytes"]


class TokenText:
    """A text in tokens.

    begins: the stream begins with this text; then the ids of `front` stand before it.
    bytes: UTF-8 bytes of the tokens given out. scored: of those among them that can be predicted: all but the first token of a
    stream, which has bytes if nothing stands in front.
    """

    def __init__(self, source: Pieces, tokenizer: Tokenizer, begins: bool, front: Sequence[int]):
        self.source, self.bytes, self._tokenizer = source, 0, tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text, self._done, self._ended = b"", 0, False  # `_done` bytes of the text have been given out
        self._ids, self._sizes = (list(front), [0] * len(front)) if begins else ([], [])
        self._unscored = -1 if begins else 0  # bytes of the first token of the stream; -1: it is still to be read

    @property
    def scored(self) -> int:
        return self.bytes - max(self._unscored, 0)

    def read(self, count: int) -> np.ndarray:
        """The next `count` tokens, fewer only at the end: int32[n]."""
        while len(self._ids) < count and not self._ended:
            self._encode_more()
        ids, self._ids = self._ids[:count], self._ids[count:]
        sizes, self._sizes = self._sizes[:count], self._sizes[count:]
        self.bytes += sum(sizes)
        if self._unscored < 0 and sizes:
            self._unscored = sizes[0]
        return np.array(ids, np.int32)

    def _encode_more(self) -> None:
        more = self.source.read(WINDOW)
        self._ended = len(more) < WINDOW
        self._text += self._decoder.decode(more, final=self._ended).encode()
        ids, sizes, begin = self._measured()
        ends = np.cumsum(sizes)
        limit = len(self._text) - (0 if self._ended else HELD)
        end = max(int(np.searchsorted(ends, limit, side="right")), begin)
        if end == begin:
            return
        self._ids += ids[begin:end].tolist()
        self._sizes += sizes[begin:end].tolist()
        done = int(ends[end - 1])
        # The context begins where a token does.
        before = int(np.searchsorted(ends, done - CONTEXT, side="right"))
        cut = int(ends[before - 1]) if before else 0
        self._text, self._done = self._text[cut:], done - cut

    def _measured(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokens of the text at hand, their bytes, and how many of them have been given out."""
        ids, sizes = self._tokenizer.measure(self._text.decode())
        # A token of no bytes, such as the space that SentencePiece puts in front of a text, belongs to what is behind it.
        begin = int(np.searchsorted(np.cumsum(sizes), self._done, side="right")) if self._done else 0
        if sizes[:begin].sum() == self._done:
            return ids, sizes, begin
        # With other text behind it, no token ends any more where the last one did: the rest is encoded alone.
        self._text, self._done = self._text[self._done:], 0
        ids, sizes = self._tokenizer.measure(self._text.decode())
        return ids, sizes, 0

    def state(self) -> dict[str, Any]:
        """As `ByteText.state`."""
        return {"bytes": self.bytes, "text": base64.b64encode(self._text).decode(), "done": self._done, "ended": self._ended,
                "half": base64.b64encode(self._decoder.getstate()[0]).decode(), "ids": list(self._ids), "sizes": list(self._sizes),
                "unscored": self._unscored}

    def go_on(self, state: dict[str, Any]) -> None:
        """As `ByteText.go_on`."""
        self.bytes, self._text, self._done = state["bytes"], base64.b64decode(state["text"]), state["done"]
        self._ended, self._ids, self._sizes = state["ended"], list(state["ids"]), list(state["sizes"])
        self._decoder.setstate((base64.b64decode(state["half"]), 0))
        self._unscored = state.get("unscored", 0)  # older states always had a token in front
