"""Sizes of the main context, checked together before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memtok_jax.config import UserError, check_numbers
from memtok_jax.virtual_context import codec


@dataclass(frozen=True)
class Block:
    """A block of the working context.

    name: as calls name it. limit: most tokens of its text. text: at the beginning.
    """

    name: str
    limit: int
    text: str = ""

    def __post_init__(self):
        check_numbers("block", self, at_least=dict(limit=1))
        if not self.name or not self.name.isidentifier():
            raise UserError(f"block.name is {self.name!r}; it must be a word of letters, digits and _")
        if len(codec.encode(self.text)) > self.limit:
            raise UserError(f"the text of block {self.name!r} has {len(codec.encode(self.text))} tokens; its limit is {self.limit}")


@dataclass(frozen=True)
class ContextConfig:
    """The main context of a conversation; all sizes are tokens.

    budget: bound of the context at every call of the model.
    warn: fraction of the budget above which the policy is warned; 0.7 in the paper.
    flush: fraction of the budget at which messages are evicted.
    evict: fraction of the budget that a flush frees.
    rearm: a new warning needs a use that has fallen below warn - rearm.
    keep_last: entries that a flush leaves, if the budget allows it.
    max_new: most tokens of a reply, or of a decision of a model.
    page_tokens: most tokens of one result.
    page_size: rows of one page of results.
    max_chain: decisions for one event.
    system: text that every context holds.
    blocks: of the working context.
    pinned: text in front of every context, for models whose attention keeps its first tokens.
    """

    budget: int = 2048
    warn: float = 0.7
    flush: float = 1.0
    evict: float = 0.5
    rearm: float = 0.1
    keep_last: int = 3
    max_new: int = 128
    page_tokens: int = 256
    page_size: int = 5
    max_chain: int = 10
    system: str = ""
    blocks: tuple[Block, ...] = (Block("persona", 128), Block("human", 128))
    pinned: str = ""

    def __post_init__(self):
        check_numbers("context", self, at_least=dict(budget=1, keep_last=0, max_new=8, page_tokens=32, page_size=1, max_chain=1),
                      above=dict(warn=0, evict=0), between=dict(warn=(0, 1), flush=(0, 1), evict=(0, 1), rearm=(0, 1)))
        if not self.warn < self.flush or self.evict > self.flush:
            raise UserError(f"context.warn={self.warn} must be below context.flush={self.flush}, and context.evict={self.evict} at "
                            "most context.flush")
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise UserError(f"context.blocks are called {', '.join(names)}; each needs a name of its own")

    @property
    def reserve(self) -> int:
        """Tokens that stay free for a reply and one page of results."""
        return self.max_new + self.page_tokens


class Regions(NamedTuple):
    """Tokens of each region of the main context. working and reserve are what may be taken, the others what is taken."""

    pinned: int
    system: int
    working: int
    summary: int
    fifo: int
    reserve: int

    @property
    def total(self) -> int:
        """Tokens that the budget must hold."""
        return sum(self)


def fixed_regions(cfg: ContextConfig, prefix: int, summary: int) -> Regions:
    """The regions of an empty fifo. prefix, summary: tokens that the model puts there itself.

    Raises UserError if the rest is too small: the fifo must hold one reply with one page, and a warning must leave room.
    """
    found = Regions(prefix + len(codec.encode(cfg.pinned)), len(codec.wrap("system", codec.encode(cfg.system))),
                    sum(codec.working_tokens(block.name, block.limit) for block in cfg.blocks), summary, 0, cfg.reserve)
    share = int(cfg.flush * cfg.budget) - found.total
    if share < cfg.reserve or found.total > cfg.warn * cfg.budget:
        need = max(int((found.total + cfg.reserve) / cfg.flush), int(found.total / cfg.warn)) + 1
        raise UserError(f"context.budget={cfg.budget} is too small: pinned {found.pinned}, system {found.system}, working "
                        f"{found.working}, summary {found.summary} and reserve {found.reserve} tokens leave {max(share, 0)} for "
                        f"messages; set it to {need} or more")
    return found
