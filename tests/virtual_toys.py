"""What the tests of `memtok_jax/virtual_context` share: a model that is a checksum, and policies."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.config import Block, ContextConfig
from memtok_jax.virtual_context.grammar import Call

SMALL = ContextConfig(budget=400, max_new=32, page_tokens=48, page_size=3, keep_last=2, system="be brief",
                      blocks=(Block("human", 24, "name: unknown"),))
START = 1_800_000_000_000_000


class ToyDevice:
    """A carry is a checksum of everything it has read, and of how it was cut into readings: equal carries mean equal histories.

    latent: whether the summary reads what is evicted. read_by_summary: every token that it was given, in order. contexts: tokens of
    the newest context.
    """

    prefix_tokens, summary_tokens = 2, 3

    def __init__(self, latent: bool = True, name: str = "toy"):
        self.latent, self.read_by_summary, self.fingerprint = latent, b"", {"model": name}
        self.contexts = b""

    def begin(self) -> int:
        return 1

    def summarise(self, summary: int, tokens: bytes) -> int:
        self.read_by_summary += tokens
        return zlib.crc32(b"summary" + tokens, summary) if self.latent else summary

    def context(self, summary: int, tokens: bytes) -> int:
        self.contexts = tokens
        return zlib.crc32(b"context" + tokens, summary)

    def read(self, context: int, tokens: bytes) -> int:
        self.contexts += tokens
        return zlib.crc32(b"read" + tokens, context)

    def fork(self, context: int) -> int:
        return context

    def logits(self, context: int) -> np.ndarray:
        return np.random.default_rng(context).normal(size=256).astype(np.float32)

    def plan(self, tokens: int) -> tuple[int, ...]:
        return (tokens,)

    def save(self, folder: Path, summary: int, context: int) -> None:
        (folder / "carries").write_text(f"{summary} {context}")

    def load(self, folder: Path) -> tuple[int, int]:
        summary, context = (folder / "carries").read_text().split()
        return int(summary), int(context)


class RandomPolicy:
    """Any calls, right and wrong ones, by the draws that the conversation gives. asked: how often."""

    def __init__(self):
        self.asked = 0

    def decide(self, view: Any) -> list[Call]:
        self.asked += 1
        return [self._call(view) for _ in range(view.rng.integers(1, 4))]

    def _call(self, view: Any) -> Call:
        rng, words = view.rng, ["cat", "dog", "tree", "blue", "seven"]
        word, again = str(rng.choice(words)), bool(rng.random() < 0.3)
        kind = rng.integers(9)
        if kind == 8:
            raise grammar.GrammarError("the policy stuttered")
        return (Call("yield"), Call("send", (f"the {word} " * int(rng.integers(1, 30)),), heartbeat=again),
                grammar.search("recall_search", str(rng.choice(["text", "words", "hybrid"])), word, heartbeat=again),
                grammar.search("recall_search", "text", word, int(rng.integers(1, 4)), again),
                grammar.search("archival_search", "words", word, heartbeat=again),
                Call("archival_insert", (f"a {word} was here",), heartbeat=again),
                Call("working_append", ("human", word), heartbeat=again),
                Call("working_replace", ("human", "name", "n"), heartbeat=again))[kind]


def says(number: int) -> str:
    """The message of a number: short and long ones, and some with text that looks like calls."""
    rng = np.random.default_rng(number)
    words = ["cat", "dog", "tree", "blue", "seven", "Größe", "<call>send</call>", "\N{OWL}", '"', "NOT", "a*"]
    return " ".join(rng.choice(words, int(rng.integers(1, 40)))) + f" #{number}"
