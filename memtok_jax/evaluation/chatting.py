"""A conversation on the terminal with virtual context: everything that `chat.py` does after reading its flags."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memtok_jax.config import UserError, check_numbers, choose
from memtok_jax.virtual_context.config import ContextConfig, Regions
from memtok_jax.virtual_context.conversation import Conversation, Reply
from memtok_jax.virtual_context.device import Device, NoDevice
from memtok_jax.virtual_context.policies import INSTRUCTIONS, CallablePolicy, HeuristicPolicy, Policy, write_reply
from memtok_jax.virtual_context.store import Store

POLICIES = ("heuristic", "learned")
HELP = "/budget shows the context, /search TEXT looks in all messages, /keep TEXT puts a text into the archive, /quit ends"
SHOWN = 4   # messages of an older conversation that are shown at the start


@dataclass(frozen=True)
class ChatConfig:
    """What a command asks for; the fields are the flags of `chat.py`.

    workdir: run whose model talks. callable: or "module:function", from text to text.
    database: file of the conversation; "" keeps it only as long as the command runs. title: which conversation in it.
    policy: of a model: "heuristic" retrieves by your message and replies, "learned" lets the model make calls.
    budget, max_new, page_tokens: of `ContextConfig`; 0: as they are in the database, or the defaults. system: the task; "": too.
    temperature: of what a model writes. seed: of its draws. latent: whether the summary reads what is evicted.
    rebuild: let another model than before go on with the conversation.
    """

    workdir: str = ""
    callable: str = ""
    database: str = ""
    title: str = "main"
    policy: str = "heuristic"
    budget: int = 0
    max_new: int = 0
    page_tokens: int = 0
    system: str = ""
    temperature: float = 0.8
    seed: int = 0
    latent: bool = True
    rebuild: bool = False

    def __post_init__(self):
        check_numbers("", self, at_least=dict(budget=0, max_new=0, page_tokens=0, temperature=0, seed=0))
        choose("--policy", self.policy, POLICIES)
        if bool(self.workdir) == bool(self.callable):
            raise UserError("who talks? give either --workdir=FOLDER, as printed by train.py, or --callable=module:function")
        if not self.title:
            raise UserError("--title is empty; give the conversation a name")

    def context(self) -> ContextConfig | None:
        """The context that the flags ask for; None if they say nothing of it."""
        asked = {name: value for name in ("budget", "max_new", "page_tokens", "system") if (value := getattr(self, name))}
        return replace(self.default(), **asked) if asked else None

    def default(self) -> ContextConfig:
        """The context of a new conversation."""
        return ContextConfig(budget=8192, max_new=1024, page_tokens=1024, system=INSTRUCTIONS) if self.callable else ContextConfig()


def chat(cfg: ChatConfig, overrides: tuple[str, ...], lines: Iterable[str], write: Callable[[str], None],
         say: Callable[[str], None]) -> int:
    """Talk until the lines end; returns the exit status.

    overrides: changes of the run's config. lines: what the user says. write: takes text for standard output, and raises
    BrokenPipeError when nobody reads it any more. say: takes a line for standard error.
    Raises UserError for a mistake of the user, and for an error of the callable: the message is kept and answered the next time.
    """
    tell = lambda line: say(printable(line))
    device, policy = (NoDevice(), CallablePolicy(named(cfg.callable))) if cfg.callable else _model(cfg, overrides, tell)
    with ExitStack() as stack:
        path = Path(cfg.database or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "talk.db")
        store = stack.enter_context(Store(path))
        context = cfg.context() or (None if store.conversation(cfg.title) else cfg.default())
        try:
            conversation = Conversation(store, cfg.title, cfg=context, device=device, policy=policy, seed=cfg.seed,
                                        rebuild=cfg.rebuild)
            _begin(conversation, bool(cfg.database), write, tell)
            _talk(conversation, lines, write, tell)
        except KeyboardInterrupt:
            tell(f"stopped; {f'the same command goes on from {cfg.database}' if cfg.database else 'nothing is kept'}")
            return 130
        except BrokenPipeError:
            return 0
        if cfg.database:
            conversation.save()
            tell(f"saved to {cfg.database}; the same command goes on")
    return 0


def printable(line: str) -> str:
    """The line with signs in the place of control characters: stored text must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _model(cfg: ChatConfig, overrides: tuple[str, ...], say: Callable[[str], None]) -> tuple[Device, Policy]:
    """The model of a run, and its policy."""
    from memtok_jax.evaluation.streaming import load_text_model
    from memtok_jax.virtual_context.learned import LearnedPolicy
    from memtok_jax.virtual_context.session_device import SessionDevice

    model, found, units = load_text_model(Path(cfg.workdir), overrides, "chat.py", say)
    if units.fingerprint:
        raise UserError(f"{cfg.workdir} holds a model of tokens; chat.py is for models of bytes")
    say("compiling")
    device = SessionDevice(model, found.params, cfg.latent)
    if cfg.policy == "learned":
        return device, LearnedPolicy(temperature=cfg.temperature)
    reply = lambda view: write_reply(view, cfg.temperature)
    return device, HeuristicPolicy(reply)


def named(name: str) -> Callable[[str], str]:
    """The function "module:function", found in the working folder or an installed package. What it raises becomes a UserError."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"--callable={name} must be module:function, as in --callable=my_model:answer")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--callable={name}: cannot import {module} ({error})") from error
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise UserError(f"--callable={name}: {module} has no function {attribute}")

    def guarded(prompt: str) -> str:
        try:
            return function(prompt)
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(f"{name} raised {type(error).__name__}: {text}; what you said is kept, and answered when the command "
                            "goes on") from error

    return guarded


def _begin(conversation: Conversation, kept: bool, write: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Say what there is: the end of an older conversation, and what was left to answer."""
    old = [row for row in conversation.store.messages(conversation.conv) if row.role in ("user", "assistant")]
    if old:
        say(f"going on with {conversation.store.path}, after {len(old)} messages")
        for row in old[-SHOWN:]:
            say(f"{'you' if row.role == 'user' else 'it'}: {row.text}")
    elif not kept:
        say("nothing is kept; give --database=FILE to go on later")
    say(HELP)
    if conversation.resumed:
        _show(conversation, conversation.resumed, write, say)


def _talk(conversation: Conversation, lines: Iterable[str], write: Callable[[str], None], say: Callable[[str], None]) -> None:
    for line in lines:
        text = line.rstrip("\n")
        word, _, rest = text.partition(" ")
        if word == "/quit":
            return
        if word == "/budget":
            say(told(conversation.budget(), conversation))
        elif word == "/search":
            for row in next(conversation.search(rest)).rows:
                say(f"{row.id} {row.role}: {row.text}")
        elif word == "/keep" and rest:
            say(f"kept as {conversation.remember(rest)}")
        elif word.startswith("/"):
            say(HELP)
        elif text.strip():
            _show(conversation, conversation.say(text), write, say)


def _show(conversation: Conversation, reply: Reply, write: Callable[[str], None], say: Callable[[str], None]) -> None:
    """What happened in a turn, then what was said."""
    for note in reply.notes:
        say(f"[{note.kind}] {note.text}")
    say(f"[context] {told(conversation.budget(), conversation)}")
    if reply.text:
        write(reply.text + "\n")


def told(found: Regions, conversation: Conversation) -> str:
    """The budget in one line."""
    state = conversation.state
    parts = ", ".join(f"{name} {tokens}" for name, tokens in found._asdict().items())
    return f"{found.total} of {conversation.cfg.budget} tokens: {parts}; {state.evicted:,} evicted in {state.flushes} flushes"
