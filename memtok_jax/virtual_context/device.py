"""What a conversation asks of a model.

`Device` is the protocol. Everything but the model itself is behind it, so conversations can be tested, and led by a controller of
text, without a model: `NoDevice`. `session_device.SessionDevice` is a model of this library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memtok_jax.config import UserError

Memory = Any    # the summary: a carry of the model at a segment border
Context = Any   # a carry of the model behind the main context


class Device(Protocol):
    """A model with its parameters. A token is a byte.

    prefix_tokens: tokens that every context begins with inside the model. summary_tokens: tokens that the summary takes there.
    fingerprint: plain values that tell this model, its parameters and its block lengths from all others.
    The carry that `summarise` or `read` is given is dead afterwards.
    """

    prefix_tokens: int
    summary_tokens: int
    fingerprint: dict[str, Any]

    def begin(self) -> Memory:
        """The summary before anything was evicted."""

    def summarise(self, summary: Memory, tokens: bytes) -> Memory:
        """The summary that has read more tokens."""

    def context(self, summary: Memory, tokens: bytes) -> Context:
        """The context behind a summary, which stays usable, and tokens, at least one."""

    def read(self, context: Context, tokens: bytes) -> Context:
        """The context behind more tokens."""

    def fork(self, context: Context) -> Context:
        """A copy."""

    def logits(self, context: Context) -> np.ndarray:
        """f32[256] of the next token."""

    def plan(self, tokens: int) -> tuple[int, ...]:
        """Block lengths in which this many tokens are read."""

    def save(self, folder: Path, summary: Memory, context: Context) -> None:
        """Write both into an empty folder."""

    def load(self, folder: Path) -> tuple[Memory, Context]:
        """Read what `save` wrote, bit for bit. Raises UserError for a damaged file."""


class NoDevice:
    """No model: the summary is empty, and what a controller of text sees is the text of the main context."""

    prefix_tokens = summary_tokens = 0
    fingerprint: dict[str, Any] = {"model": "none"}

    def begin(self) -> None:
        """Nothing."""

    def summarise(self, summary: None, tokens: bytes) -> None:
        """Forget them."""

    def context(self, summary: None, tokens: bytes) -> None:
        """Nothing."""

    def read(self, context: None, tokens: bytes) -> None:
        """Nothing."""

    def fork(self, context: None) -> None:
        """Nothing."""

    def logits(self, context: None) -> np.ndarray:
        """Raises UserError."""
        raise UserError("this conversation has no model to write with; give a device, or a policy that writes itself")

    def plan(self, tokens: int) -> tuple[int, ...]:
        """No blocks."""
        return ()

    def save(self, folder: Path, summary: None, context: None) -> None:
        """Nothing."""

    def load(self, folder: Path) -> tuple[None, None]:
        """Nothing."""
        return None, None
