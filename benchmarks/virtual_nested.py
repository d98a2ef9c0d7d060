"""Nested key-value tables (MemGPT, arXiv 2310.08560, section 3.2): paging beside a fixed context; a part of
`benchmarks.virtual_context`. Task: `memtok_jax/data/tasks/nested.py`. A "perfect reader" takes the answer from what stands in the
context whenever it can be taken from there.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.virtual_systems import START, opened
from memtok_jax.data.tasks import nested
from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Conversation, Reply
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import HeuristicPolicy, Policy, ScriptedPolicy, View

PAIR = re.compile(r"key = (\w+), value = (\w+)")
LEVELS = 5


def follow(view: View, query: str) -> list[Call]:
    """The script: search for the word at hand; if it is the key of a row, go on with that row's value, else it is the answer.

    All that it knows stands in the context: the question, and the results since. query: of `nested.NestedConfig`.
    """
    results = [entry.text for entry in view.entries if entry.role == "function" and entry.row > view.event.row]
    searched = re.findall(r"(\w+)</str>", "".join(results))
    found = dict(PAIR.findall(results[-1])) if searched else {}
    if searched and searched[-1] not in found:
        return [grammar.send(searched[-1])]
    word = found[searched[-1]] if searched else view.event.text.split()[-1]
    return [grammar.search("archival_search", "text", nested.QUERIES[query] + word)]


def reader(rows: list[tuple[str, str]], key: str) -> str:
    """The value that a perfect reader finds among rows that it sees; "" where the chain leaves them."""
    seen, asked = dict(rows), key
    while key in seen:
        key = seen.pop(key)
    return key if key != asked else ""


def read_visible(view: View) -> str:
    """What a perfect reader of the main context replies."""
    rows = [pair for entry in view.entries for pair in PAIR.findall(entry.text)]
    return reader(rows, view.event.text.split()[-1]) or "unknown"


def context(cfg: nested.NestedConfig) -> ContextConfig:
    """A quarter of the table. Nothing is to be kept, so a warning has no use before the context is full."""
    size = len(nested.row_text("0" * cfg.digits, "0" * cfg.digits)) + 1
    return ContextConfig(budget=cfg.pairs * size // 4, max_new=max(64, cfg.digits + 24), page_tokens=10 * (size + 14) + 20,
                         page_size=10, blocks=(), keep_last=1, warn=0.99)


def paged(cfg: nested.NestedConfig, rows: list, key: str, policy: Policy) -> Reply:
    """The table in archival storage, and one question."""
    with tempfile.TemporaryDirectory() as folder, opened(folder, policy, context(cfg)) as talk:
        with talk.store.transaction():
            for row in rows:
                talk.store.add_passage(talk.conv, START, nested.row_text(*row), {})
        return asked(talk, key)


def told(cfg: nested.NestedConfig, rows: list, key: str, policy: Policy) -> Reply:
    """The table row by row as messages, most of which leave the context, and one question."""
    with tempfile.TemporaryDirectory() as folder, opened(folder, None, context(cfg)) as talk:
        for row in rows:
            talk.say(nested.row_text(*row), t_us=START)
        talk.policy = policy
        return asked(talk, key)


def asked(talk: Conversation, key: str) -> Reply:
    """The reply to the question; the budget holds."""
    reply = talk.say(nested.QUESTION + key, t_us=START)
    assert talk.budget().total <= talk.cfg.budget
    return reply


def fixed(cfg: nested.NestedConfig, rows: list, key: str) -> Reply:
    """A perfect reader of the last rows that fit beside the question and a reply."""
    size, limits = len(nested.row_text(*rows[0])) + 1, context(cfg)
    return Reply(reader(rows[-((limits.budget - limits.max_new - len(nested.asked(key))) // size):], key), ())


def kind_of(reply: Reply, rows: list, key: str, answer: str) -> str:
    """"right", "stopped" (a key on the way), "none" (nothing said), or "wrong"."""
    if reply.text == answer:
        return "right"
    return "stopped" if reply.text in dict(rows) else "wrong" if reply.text else "none"


def nested_tables(orderings: int, cfg: nested.NestedConfig, seed: int, ways: dict[str, Callable[..., Reply]]) -> dict:
    """For each number of overwrites and each way of answering: shares of kinds of answers, and searches."""
    out: dict = {"budget_tokens": context(cfg).budget, "orderings": orderings, "task": str(cfg), "levels": {}}
    for overwrites in range(LEVELS):
        kinds, searches = {way: Counter() for way in ways}, Counter()
        for ordering in range(orderings):
            rng = np.random.default_rng([seed, overwrites, ordering])
            rows, key, answer = nested.table(rng, replace(cfg, lookups=(overwrites + 1,) * 2))
            for way, answers in ways.items():
                reply = answers(cfg, rows, key)
                kinds[way][kind_of(reply, rows, key, answer)] += 1
                searches[way] += sum(note.kind == "searched" for note in reply.notes)
        out["levels"][overwrites] = {way: {kind: count / orderings for kind, count in kinds[way].items()}
                                     | {"searches": searches[way] / orderings} for way in ways}
    return out


def nested_part(workdir: str, pairs: int, query: str, digits: int, orderings: int, seed: int) -> dict:
    """All ways of answering; with a run also those of its model, which sets query and digits."""
    cfg = nested.NestedConfig(digits=digits, pairs=pairs, query=query)
    ways: dict[str, Callable[..., Reply]] = {
        "fixed_context": fixed, "heuristic": lambda *table: told(*table, HeuristicPolicy(read_visible)),
        "script": lambda cfg, *table: paged(cfg, *table, ScriptedPolicy(lambda view: follow(view, cfg.query)))}
    if workdir:
        from memtok_jax.virtual_context.learned import LearnedPolicy
        from memtok_jax.virtual_context.session_device import SessionDevice
        task, model, params = loaded(workdir)
        cfg, device = replace(cfg, digits=task.digits, query=task.query), SessionDevice(model, params)
        ways["learned"] = lambda *table: paged(*table, LearnedPolicy(device))
    return nested_tables(orderings, cfg, seed, ways)


def loaded(workdir: str) -> tuple:
    """(task, model, parameters) of a run."""
    import jax

    from memtok_jax import sharding
    from memtok_jax.evaluation.report import restored
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        experiment, model, found = restored(Path(workdir), mesh)
    return experiment.data.task, model, jax.device_put(found.params, jax.devices()[0])
