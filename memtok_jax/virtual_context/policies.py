"""Controllers: who decides what a conversation does next.

The paper's controller is a large chat model. Here it is a policy with one method, `decide(view) -> calls`, asked when an event
has come and again as long as a call asks for it (heartbeat). A policy must not look at the clock or draw from a generator of its
own: the time stands in the event, and `view.rng` gives the same draws when a killed process asks again. What it said stands in
the events, so a replay never asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from memtok_jax.virtual_context import codec, decoding, grammar
from memtok_jax.virtual_context.config import ContextConfig, Regions
from memtok_jax.virtual_context.device import Context, Device
from memtok_jax.virtual_context.grammar import Call


class Entry(NamedTuple):
    """An entry of the fifo. role: "user", "assistant", "system" or "function". row: of recall storage. text: its text."""

    role: str
    row: int
    text: str


class Event(NamedTuple):
    """What began the turn. role: "user", or "system". t_us: when, in UTC microseconds."""

    role: str
    row: int
    text: str
    t_us: int


@dataclass(frozen=True)
class View:
    """What a policy sees: the main context, and nothing else.

    event: what began the turn. entries: of the fifo, oldest first. system, working: text of these regions. hidden: tokens the
    summary has read. regions: tokens of each region. chain: decisions of this turn so far. pressure: a warning came since the
    last decision. rng: for draws. device, context: the model behind the main context; `decoding` writes with them. tokens: the
    main context as tokens. cfg: of the conversation.
    """

    event: Event
    entries: tuple[Entry, ...]
    system: str
    working: dict[str, str]
    hidden: int
    regions: Regions
    chain: int
    pressure: bool
    rng: np.random.Generator
    device: Device
    context: Context
    tokens: bytes
    cfg: ContextConfig

    def prompt(self) -> str:
        """The main context as text. Tags that stand in stored text are escaped, so they are text."""
        lines = [f"<system>{codec.escape(self.system)}</system>"]
        lines += [f"<working>{name}<str>{codec.escape(text)}</str></working>" for name, text in self.working.items()]
        if self.hidden:
            lines.append(f"<system>{self.hidden} older tokens are out of sight; recall_search finds them</system>")
        return "\n".join([*lines, *(entry.text if entry.role == "function" else
                                    f"<{entry.role}>{codec.escape(entry.text)}</{entry.role}>" for entry in self.entries)])


class Policy(Protocol):
    """See above."""

    def decide(self, view: View) -> Sequence[Call]:
        """At least one call. Raises GrammarError for what is no decision; its text is handed back as a result."""


class ScriptedPolicy:
    """A fixed list of decisions, or a function from view to calls: the best that can be done, or a driver of tests.

    script: the function, or decisions that are taken one after the other; behind the last one it yields.
    """

    def __init__(self, script: Callable[[View], Sequence[Call]] | Iterable[Sequence[Call]]):
        self._script = script if callable(script) else self._next
        self._decisions = iter(()) if callable(script) else iter(script)

    def _next(self, view: View) -> Sequence[Call]:
        return next(self._decisions, (Call("yield"),))

    def decide(self, view: View) -> Sequence[Call]:
        """What the script says."""
        return self._script(view)


INSTRUCTIONS = """You have a small context and a large memory, and you act by calls only. Each call is one line:
<call>send<str>text</str></call> says something to the user. <call>yield</call> waits.
<call>recall_search MODE<str>query</str> PAGE</call> looks in older messages, archival_search in what was kept.
MODE is text, words, vector, hybrid or date. <call>archival_insert<str>text</str></call> keeps a text.
<call>working_append<str>block</str><str>text</str></call> and
<call>working_replace<str>block</str><str>old</str><str>new</str></call> change what you always see.
With <hb/> before </call> you are asked again when the call is done. In a string, < is written &lt; and & is written &amp;."""


class CallablePolicy:
    """Any function from text to text, such as a call of a large model: it is given `View.prompt` and answers with calls.

    The calls are those of `grammar`, as text; INSTRUCTIONS says so to a model, and belongs into `ContextConfig.system`.
    """

    def __init__(self, function: Callable[[str], str]):
        self._function = function

    def decide(self, view: View) -> Sequence[Call]:
        """The calls of the answer. Raises GrammarError if it holds anything else."""
        answer = self._function(view.prompt())
        if not isinstance(answer, str):
            raise grammar.GrammarError(f"the answer is {type(answer).__name__}; it must be text")
        return grammar.read_text(answer)


def write_reply(view: View, temperature: float = 0.8) -> str:
    """A reply that the model writes behind the main context."""
    return decoding.write(view.device, view.context, view.rng, view.cfg.max_new, temperature)


class HeuristicPolicy:
    """Retrieve by the message, keep what is about to go, then reply: no decision is learned.

    Every message is a search in recall storage (hybrid, one page) if something was evicted. A warning keeps the `keep` messages
    of the user that hold most words no other entry holds. reply: writes the answer; if left out, the model does.
    """

    def __init__(self, reply: Callable[[View], str] = write_reply, mode: str = "hybrid", keep: int = 3):
        self._reply, self._mode, self._keep = reply, mode, keep

    def decide(self, view: View) -> Sequence[Call]:
        """Search and keep first, reply in the second decision."""
        if view.chain == 0:
            kept = [Call("archival_insert", (text,), heartbeat=True) for text in self._salient(view)] if view.pressure else []
            if fitting := fit(view.event.text, view.cfg.max_new // 2) if view.hidden and view.event.text.strip() else "":
                kept.append(grammar.search("recall_search", self._mode, fitting))
            if kept:
                return kept
        return [grammar.send(self._reply(view) or "...")]

    def _salient(self, view: View) -> list[str]:
        mine = [entry for entry in view.entries if entry.role == "user"]
        words = {entry: set(entry.text.casefold().split()) for entry in mine}
        count: dict[str, int] = {}
        for word in (word for own in words.values() for word in own):
            count[word] = count.get(word, 0) + 1
        rare: dict[Any, int] = {entry: sum(count[word] == 1 for word in own) for entry, own in words.items()}
        best = sorted((entry for entry in mine if rare[entry]), key=lambda entry: (-rare[entry], entry.row))[:self._keep]
        return [fit(entry.text, view.cfg.max_new // 2) for entry in sorted(best, key=lambda entry: entry.row)]


def fit(text: str, most: int) -> str:
    """The first `most` tokens of a text, whole characters."""
    return codec.encode(text.replace("\0", " "))[:most].decode(errors="ignore")
