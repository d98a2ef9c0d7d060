"""A conversation: virtual context for one's own code.

    with Conversation("talk.db", policy=CallablePolicy(my_model)) as conversation:
        print(conversation.say("Do you remember the name of my cat?").text)

Five methods: `say` (an event, and the turn it starts), `remember` (archival storage), `search`, `budget`, `save`. A conversation
lives in its database; opened again, after a kill too, it goes on where it was: with the same next logits, bit for bit, and a turn
that was cut off is finished first.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memtok_jax import config
from memtok_jax.config import UserError, choose
from memtok_jax.virtual_context import codec, grammar, main_context, queue, search, snapshots
from memtok_jax.virtual_context.config import ContextConfig, Regions, fixed_regions
from memtok_jax.virtual_context.device import Device, NoDevice
from memtok_jax.virtual_context.embed import Embedder, HashingEmbedder, Vectors
from memtok_jax.virtual_context.executor import MARKS, Executor, Outcome, cut
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import Entry, Event, Policy, ScriptedPolicy, View
from memtok_jax.virtual_context.queue import Part
from memtok_jax.virtual_context.store import Store

WARNING = "memory pressure: {} of {} tokens are in use; keep what matters"
CHAIN = "the turn ends after {} decisions"


class Note(NamedTuple):
    """Something that happened in a turn. kind: "warning", "evicted", "searched", "kept", "edited" or "error"."""

    kind: str
    text: str


@dataclass(frozen=True)
class Reply:
    """What a turn said and did. text: all that was sent, one message a line. notes: what happened beside it, in order."""

    text: str
    notes: tuple[Note, ...]


def _nothing(point: str) -> None:
    """The default of `at`."""


class Conversation:
    """One conversation in a database. Use it as a context manager, or `close` it.

    database: a file, or a `Store` that several conversations share. title: which conversation in it.
    cfg: the main context; of a conversation that exists, leave it out or give the same. device: the model; none, if left out.
    policy: the controller; it yields, if left out. embedder: for searches by vector. seed: of draws, of a new conversation.
    save_every: events between two snapshots; 0: none but by `save`. rebuild: accept another model or other parameters than before,
    and read everything again. synchronous: see `Store`. at: for tests, is called with the name of each step a kill may come behind.
    resumed: the reply of a turn that was cut off and is finished now, or None.
    Raises UserError for a file in use, another config, another model.
    """

    def __init__(self, database: str | Path | Store, title: str = "main", *, cfg: ContextConfig | None = None,
                 device: Device | None = None, policy: Policy | None = None, embedder: Embedder | None = None, seed: int = 0,
                 save_every: int = 64, rebuild: bool = False, synchronous: str = "FULL", at: Callable[[str], None] = _nothing):
        self._own = not isinstance(database, Store)
        self.store = Store(database, synchronous) if self._own else database
        self.device, self.policy = device or NoDevice(), policy or ScriptedPolicy(())
        self._at, self._save_every, self._tokens, self._notes, self._sent = at, save_every, {}, [], []
        try:
            self.conv, self.cfg, self.seed = self._enter(title, cfg, seed, rebuild)
            self.fixed = fixed_regions(self.cfg, self.device.prefix_tokens, self.device.summary_tokens)
            self.vectors = Vectors(self.store, self.conv, embedder or HashingEmbedder())
            self._executor = Executor(self.store, self.vectors, self.conv, self.cfg)
            self._restore()
            self.resumed = self._finish() if self.state.turn else None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the database, if it was opened here."""
        if self._own:
            self.store.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------- the five methods

    def say(self, text: str, role: str = "user", t_us: int | None = None) -> Reply:
        """An event, and the turn that it starts.

        role: "user", or "system" for what the surroundings say (a login, a timer). t_us: UTC microseconds; now, if left out.
        Returns the reply. Raises UserError if nothing could be written: then nothing has changed, unless the message is in recall
        storage already; the turn is finished by the next call, or when the conversation is opened again.
        """
        choose("role", role, ("user", "system"))
        tokens = codec.encode(text)
        self._run()
        t_us = _now() if t_us is None else t_us

        def fill(draft: _Draft) -> None:
            row = draft.message(role, t_us, text, tokens)
            draft.op({"op": "begin", "row": row, "role": role, "t_us": t_us})

        self._commit("message", fill)
        return self._finish()

    def remember(self, text: str, meta: dict[str, Any] | None = None, t_us: int | None = None) -> int:
        """Put a text into archival storage, without a turn. meta: plain values beside it. Returns its number."""
        codec.encode(text)
        with self.store.transaction():
            return self.store.add_passage(self.conv, _now() if t_us is None else t_us, text, meta or {})

    def search(self, text: str, mode: str = "text", where: str = "messages", size: int = 10) -> Iterator[search.Page]:
        """Pages of what was said (where="messages") or kept ("passages"), as it is now; see `search` for the modes."""
        choose("where", where, ("messages", "passages"))
        query = search.Query(where, mode, text)
        cursor = search.begin(self.store, self.vectors, self.conv, query)
        return self._pages(query, cursor, size)

    def budget(self) -> Regions:
        """Tokens of each region of the main context now; their `total` never exceeds `cfg.budget`."""
        return queue.regions(self.state, self.fixed)

    def save(self) -> None:
        """Write a snapshot, so that opening the conversation again is quick. Nothing is lost without one."""
        if self._stale:
            self._restore()
        snapshots.save(self.store, self.conv, self.seq, self.state, self.main, self.device, self._at)
        self._saved = self.seq

    # ------------------------------------------------------------------------------------------------------- the turn

    def _pages(self, query: search.Query, cursor: search.Cursor, size: int) -> Iterator[search.Page]:
        number, more = 1, True
        while more:
            page = search.page(self.store, self.conv, query, cursor, number, size)
            number, more = number + 1, page.more
            yield page

    def _finish(self) -> Reply:
        """Go on with the turn until it ends; what it said and did, and what of an earlier one was not handed out yet."""
        self._run()
        if self._save_every and self.seq - self._saved >= self._save_every:
            try:
                self.save()
            except UserError as error:   # the turn is done and kept; only opening again takes longer
                self._notes.append(Note("error", str(error)))
        reply = Reply("\n".join(self._sent), tuple(self._notes))
        self._notes, self._sent = [], []
        return reply

    def _run(self) -> None:
        """Read the conversation again if the model could not follow its last event, and go on with an open turn until it ends."""
        if self._stale:
            self._restore()
        while turn := self.state.turn:
            if turn.calls is not None:
                self._execute(Call(**turn.calls[turn.done] | {"args": tuple(turn.calls[turn.done]["args"])}))
            elif turn.chain >= self.cfg.max_chain:
                self._end(CHAIN.format(turn.chain))
            else:
                self._decide()

    def _decide(self) -> None:
        """Ask the policy, and write down what it says."""
        try:
            calls = [grammar.check(call) for call in self.policy.decide(self.view())]
            if not calls:
                raise grammar.GrammarError("a decision needs at least one call")
        except grammar.GrammarError as error:
            reason = str(error)
            self._commit("error", lambda draft: self._refuse(draft, reason))
            return
        plain = [dataclasses.asdict(call) for call in calls]
        self._commit("decide", lambda draft: draft.op({"op": "decide", "calls": plain}), seed=[self.seed, self.seq])

    def _refuse(self, draft: _Draft, error: str) -> None:
        """Hand an error back to the policy, as the result of a decision that did nothing."""
        self._notes.append(Note("error", error))
        draft.op({"op": "decide", "calls": []})
        self._result(draft, None, Outcome(f"error: {error}", failed=True))
        draft.op({"op": "done", "again": True})

    def _execute(self, call: Call) -> None:
        """Carry out the next call of the decision, in one transaction."""
        turn, found = self.state.turn, None
        long = call.op != "send" and len(grammar.call_tokens(call)) > self.cfg.max_new
        if not long and call.op in grammar.OPS:
            found = self._executor.look_up(call, self.state)

        def fill(draft: _Draft) -> None:
            if call.op == "send":
                draft.message("assistant", turn.t_us, call.args[0], codec.encode(call.args[0]))
                self._sent.append(call.args[0])
            elif call.op != "yield":
                error = f"error: the call has {len(grammar.call_tokens(call))} tokens; context.max_new is {self.cfg.max_new}"
                outcome = Outcome(error, failed=True) if long else self._executor.run(call, self.state, turn.t_us, found)
                for op in outcome.ops:
                    draft.op(op)
                self._result(draft, None if long else call, outcome)
                self._note(call, outcome)
                draft.op({"op": "done", "again": call.heartbeat or outcome.failed})
                return
            draft.op({"op": "done", "again": call.heartbeat})

        self._commit(call.op, fill)

    def _result(self, draft: _Draft, call: Call | None, outcome: Outcome) -> None:
        """A call and its result enter the fifo as one entry, so that no flush parts them."""
        text = cut(outcome.text, "", self.cfg.page_tokens - MARKS)
        head = grammar.call_tokens(call) if call else b""
        tokens = head + bytes((codec.RESULT,)) + codec.encode(text) + bytes((codec.END,))
        shown = (grammar.write_text([call]) if call else "") + f"<result>{codec.escape(text)}</result>"
        draft.message("function", self.state.turn.t_us, shown, tokens)

    def _note(self, call: Call, outcome: Outcome) -> None:
        kind = ("error" if outcome.failed else "searched" if grammar.OPS[call.op].search else
                "kept" if call.op == "archival_insert" else "edited")
        rows = f" -> rows {', '.join(map(str, outcome.rows)) or 'none'}" if kind == "searched" else ""
        self._notes.append(Note(kind, outcome.text if outcome.failed else f"{call.op} {' | '.join(call.args)!r}{rows}"))

    def _end(self, why: str) -> None:
        """End the turn, and say why to whoever decides next."""
        turn = self.state.turn

        def fill(draft: _Draft) -> None:
            draft.message("system", turn.t_us, why, codec.encode(why))
            draft.op({"op": "end"})

        self._notes.append(Note("error", why))
        self._commit("end", fill)

    def view(self) -> View:
        """What the policy sees now. Raises UserError between two turns."""
        turn, state = self.state.turn, self.state
        if turn is None:
            raise UserError("nothing is to be decided between two turns; say something first")
        entries = tuple(Entry(part.role, part.row, self._text_of(part)) for part in state.fifo)
        event = Event(turn.role, turn.row, codec.decode(self.store.message(self.conv, turn.row).tokens), turn.t_us)
        return View(event, entries, self.cfg.system, dict(state.working), state.evicted, self.budget(), turn.chain, state.unseen,
                    np.random.default_rng([self.seed, self.seq]), self.device, self.main.context,
                    main_context.tokens(state, self.cfg, self._tokens_of), self.cfg)

    def _text_of(self, part: Part) -> str:
        if part.role == "function":
            return self.store.message(self.conv, part.row).text
        marks = bytes((*codec.MARKS.values(), codec.END))
        return codec.decode(self._tokens_of(part).strip(marks))

    # ------------------------------------------------------------------------------------------------- rows and events

    def _commit(self, kind: str, fill: Callable[[_Draft], None], **more: Any) -> None:
        """Write one event with its rows, then let the model follow. If the first fails nothing has changed; if the second, the
        conversation is read again before it is used."""
        self._at("event begins")
        notes, sent = list(self._notes), list(self._sent)
        try:
            with self.store.transaction():
                draft = _Draft(self)
                fill(draft)
                draft.warn()
                blocks = main_context.plan(self.device, self.state, draft.ops, draft.state, self.cfg)
                seq = self.store.add_event(self.conv, kind, {"ops": draft.ops, "blocks": blocks, **more})
                self._at("rows written")
        except BaseException:
            self._notes, self._sent = notes, sent
            raise
        self._stale = True
        self._notes += draft.notes
        self._at("committed")
        self._follow(draft.ops, seq, self._at)
        self._stale = False

    def _follow(self, ops: list[dict[str, Any]], seq: int, at: Callable[[str], None]) -> None:
        """Let state and model do the ops of an event."""
        self.main, self.state = main_context.follow(self.device, self.main, self.state, ops, self.cfg, self._tokens_of, at)
        self.seq = seq
        rows = {part.row for part in self.state.fifo}
        self._tokens = {row: tokens for row, tokens in self._tokens.items() if row in rows}

    def _tokens_of(self, part: Part) -> bytes:
        if part.row not in self._tokens:
            row = self.store.message(self.conv, part.row)
            self._tokens[part.row] = codec.wrap(row.role, row.tokens)
        return self._tokens[part.row][part.start:part.stop]

    def _enter(self, title: str, cfg: ContextConfig | None, seed: int, rebuild: bool) -> tuple[int, ContextConfig, int]:
        """Find the conversation or make it: (number, config, seed)."""
        device = json.dumps(self.device.fingerprint, sort_keys=True)
        found = self.store.conversation(title)
        if found is None:
            cfg = cfg or ContextConfig()
            fixed_regions(cfg, self.device.prefix_tokens, self.device.summary_tokens)
            with self.store.transaction():
                conv = self.store.add_conversation(title, _now(), config.to_json(cfg), device, seed)
                for block in cfg.blocks:
                    self.store.set_block(conv, block.name, block.text, block.limit)
            return conv, cfg, seed
        conv, text, made_for, seed = found
        saved = config.from_json(text)
        if cfg is not None and (other := config.differences(saved, cfg, "context")):
            name, old, new = other[0]
            raise UserError(f"conversation {title!r} of {self.store.path} has {name}={old}, not {new}; a conversation keeps its "
                            "context, give a new title for another")
        if made_for != device:
            if not rebuild:
                old, new = json.loads(made_for), self.device.fingerprint
                name = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
                raise UserError(f"conversation {title!r} of {self.store.path} was read by another model ({name} differs); with "
                                "rebuild this one reads it again from the beginning")
            with self.store.transaction():
                self.store.set_device(conv, device)
        return conv, saved, seed

    def _restore(self) -> None:
        """State and carries: the newest snapshot, and the events since."""
        found = snapshots.restore(self.store, self.conv, self.device)
        if found is None:
            state = queue.new_state(self.cfg)
            found = 0, state, main_context.begin(self.device, state, self.cfg)
        self.seq, self.state, self.main = found
        self._saved, self._stale = self.seq, True
        for seq, _, content in self.store.events(self.conv, self.seq):
            self._follow(content["ops"], seq, _nothing)
        self._stale = False


class _Draft:
    """The ops of an event that is being written, and the state behind them."""

    def __init__(self, conversation: Conversation):
        self._of, self.state, self.ops, self.notes = conversation, conversation.state, [], []

    def op(self, op: dict[str, Any]) -> None:
        """One more op."""
        if op["op"] == "flush":
            self.notes.append(Note("evicted", f"{op['parts']} entries, {op['tokens']} tokens, into the summary"))
        self.ops.append(op)
        self.state = queue.apply(self.state, op)

    def message(self, role: str, t_us: int, text: str, tokens: bytes) -> int:
        """A row of recall storage that enters the fifo; returns its number."""
        of, wrapped = self._of, codec.wrap(role, tokens)
        row = of.store.add_message(of.conv, role, t_us, text, tokens, len(wrapped))
        for op in queue.plan_entry(self.state, of.cfg, of.fixed, row, role, len(wrapped)):
            self.op(op)
        return row

    def warn(self) -> None:
        """Warn the policy if the context has become full enough."""
        of = self._of
        if not queue.under_pressure(self.state, of.cfg, of.fixed):
            return
        text = WARNING.format(queue.regions(self.state, of.fixed).total, of.cfg.budget)
        self.op({"op": "warn"})
        self.notes.append(Note("warning", text))
        self.message("system", (self.state.turn or of.state.turn).t_us, text, codec.encode(text))


def _now() -> int:
    return time.time_ns() // 1000
