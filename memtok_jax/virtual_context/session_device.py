"""A model of this library behind a conversation, through compiled programs of `memtok_jax.inference`.

The summary is the carry of a stream that has read what was evicted, with the open segment closed: for RMT and Memory Transformers
M vectors, for Titans fast weights, for Compressive its queues, for a selective scan its state; a window's ring is a part of the
carry too, so the last window of evicted tokens can be seen exactly. The context is a copy of it that has read on. A model sees as
much of the context exactly as its own attention reaches (`Model.reach`): take a segment or a window of at least the budget to see
all of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax.compiler import options
from memtok_jax.config import UserError, to_json
from memtok_jax.inference import snapshot
from memtok_jax.inference.blocks import plan_blocks
from memtok_jax.inference.session import new_stream, open_session
from memtok_jax.inference.stream import Stream
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.params import Tree

SUMMARY, CONTEXT, LOGITS = "summary", "context", "logits.npy"
_ROW = np.zeros(1, np.int32)


class Read(NamedTuple):
    """A context. stream: it has consumed every token. logits: f32[1, V] of the next one."""

    stream: Stream
    logits: jax.Array


class SessionDevice:
    """See `device.Device`.

    model: of bytes, causal. params: its parameters. latent: False for a summary that reads nothing: an evicted token is gone.
    blocks: block lengths, `inference.blocks.blocks_for` chooses them if left out. Compiles everything.
    Raises UserError for a model with another vocabulary, and for an encoder.
    """

    def __init__(self, model: Model, params: Tree, latent: bool = True, blocks: tuple[int, ...] | None = None):
        cfg = model.cfg
        if model.vocabulary != 256:
            raise UserError(f"the model has {model.vocabulary} tokens; a conversation needs a model of 256, the bytes")
        if getattr(cfg, "form", "") == "encoder":
            raise UserError("an encoder reads a segment in one call; a conversation needs a causal model")
        self.model, self.params, self._latent = model, params, latent
        self._fresh = new_stream(model, params, 1, jax.random.key(0))
        self._session = open_session(model, params, self._fresh, feed_blocks=blocks, k=1)
        self._close = _closing(model, params, self._fresh) if model.segment else None
        self.summary_tokens = getattr(cfg, "head", 0) + getattr(cfg, "tail", 0) if latent else 0
        self.prefix_tokens = getattr(getattr(cfg, "model", cfg), "prefix", 0)
        self.fingerprint: dict[str, Any] = {"model": hashlib.sha256(to_json(cfg).encode()).hexdigest(),
                                            "parameters": parameters_digest(params), "latent": latent,
                                            "blocks": list(self._session.feed_blocks)}

    def begin(self) -> Stream:
        """A stream before its first token."""
        return self._session.gather(self._fresh, _ROW)

    def summarise(self, summary: Stream, tokens: bytes) -> Stream:
        """Read tokens and close the open segment."""
        if not self._latent:
            return summary
        summary = self._read(summary, tokens).stream
        return self._close(self.params, summary) if self._close else summary

    def context(self, summary: Stream, tokens: bytes) -> Read:
        """A copy of the summary that has read tokens."""
        return self._read(self._session.gather(summary, _ROW), tokens)

    def read(self, context: Read, tokens: bytes) -> Read:
        """The context behind more tokens."""
        return self._read(context.stream, tokens)

    def _read(self, stream: Stream, tokens: bytes) -> Read:
        ids = np.frombuffer(tokens, np.uint8).astype(np.int32)[None]
        if len(tokens) > 1:
            stream = self._session.feed(self.params, stream, ids[:, :-1])
        logits, stream = self._session.step(self.params, stream, ids[:, -1])
        return Read(stream, logits)

    def fork(self, context: Read) -> Read:
        """A copy."""
        return Read(self._session.gather(context.stream, _ROW), context.logits)

    def logits(self, context: Read) -> np.ndarray:
        """f32[256]."""
        return np.asarray(context.logits)[0]

    def plan(self, tokens: int) -> tuple[int, ...]:
        """Blocks of all tokens but the last, and that one alone."""
        return (*plan_blocks(tokens - 1, self._session.feed_blocks), 1)

    def save(self, folder: Path, summary: Stream, context: Read) -> None:
        """Two snapshots of `inference.snapshot`, and the logits."""
        snapshot.save(folder / SUMMARY, summary, self.model)
        snapshot.save(folder / CONTEXT, context.stream, self.model)
        np.save(folder / LOGITS, np.asarray(context.logits))

    def load(self, folder: Path) -> tuple[Stream, Read]:
        """What `save` wrote."""
        stream = snapshot.restore(folder / CONTEXT, self.model)
        return snapshot.restore(folder / SUMMARY, self.model), Read(stream, jnp.asarray(np.load(folder / LOGITS)))


def _closing(model: Model, params: Tree, stream: Stream) -> Any:
    """The compiled program (params, stream) -> stream with the open segment closed; an empty one stays."""

    def close(params, stream):
        call = Call(length=jnp.zeros(1, jnp.int32), closes=jnp.ones(1, bool))
        return stream._replace(state=model.run(params, stream.state, jnp.zeros((1, 1), jnp.int32), call)[1])

    wanted = options(jax.default_backend())
    return jax.jit(close, donate_argnums=1, compiler_options=wanted).lower(params, stream).compile()


def parameters_digest(params: Tree) -> str:
    """SHA-256 over names, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
