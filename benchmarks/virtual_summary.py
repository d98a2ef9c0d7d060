"""What a trained memory alone knows of a table that was told and evicted, without a search; a part of `benchmarks.virtual_context`.
The model: `train.py --config=memgpt:told`; rows and questions: `memtok_jax/data/tasks/nested_told.py`.

A model without segments reads a conversation as one stream: what was evicted, then the main context, which begins with the empty
system text. Where that stands depends on sizes alone (`evicted_rows`), so the streams of many conversations are read side by side
here (`streams`, `replies`); `in_conversation` asks the same of a real one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.virtual_nested import LEVELS, context, kind_of, loaded
from benchmarks.virtual_systems import START, opened
from memtok_jax.data.marks import END, SYSTEM
from memtok_jax.data.tasks import nested, nested_told
from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Reply
from memtok_jax.virtual_context.device import Device
from memtok_jax.virtual_context.policies import ScriptedPolicy, View

Rows = list[tuple[str, str]]
Answering = Callable[[np.ndarray], list[str]]   # streams int[B, T] to a word for each
CONTEXT = ContextConfig(budget=140, max_new=32, page_tokens=32, blocks=(), keep_last=0, warn=0.99)   # a question, and no row beside
BATCH = 30


def evicted_rows(limits: ContextConfig, cfg: nested.NestedConfig) -> int:
    """How many rows of a table have left the main context when the question is there. Raises AssertionError if it holds anything
    but the empty system text, the other rows and the question.
    """
    rows, seen = [("0" * cfg.digits,) * 2] * cfg.pairs, []

    def watch(view: View) -> list:
        seen.append(view.tokens)
        return [grammar.send("seen")]

    with tempfile.TemporaryDirectory() as folder, opened(folder, None, limits) as talk:
        tell(talk, rows)
        talk.policy = ScriptedPolicy(watch)
        talk.say(nested.QUESTION + rows[0][0], t_us=START)
        evicted = cfg.pairs - sum(part.row <= cfg.pairs for part in talk.state.fifo)
    assert seen[-1] == stream(rows, rows[0][0], evicted)[evicted * len(nested_told.told(*rows[0])):-3], "the context holds more"
    return evicted


def tell(talk, rows: Rows) -> None:
    """The table, row by row."""
    for row in rows:
        talk.say(nested.row_text(*row), t_us=START)


def stream(rows: Rows, key: str, evicted: int) -> bytes:
    """What a model has read before the first digit of its reply."""
    table = [nested_told.told(*row) for row in rows]
    return b"".join((*table[:evicted], bytes((SYSTEM, END)), *table[evicted:], nested_told.question(key)))


def tables(cfg: nested.NestedConfig, count: int, seed: int, overwrites: int) -> list[tuple[Rows, str, str]]:
    """Those of `virtual_nested.nested_tables`."""
    of_level = replace(cfg, lookups=(overwrites + 1,) * 2)
    return [nested.table(np.random.default_rng([seed, overwrites, number]), of_level) for number in range(count)]


def summary_part(workdir: str, pairs: int, smaller: tuple[int, ...], orderings: int, seed: int) -> dict:
    """Kinds of replies of a run's model at each number of overwrites, in a quarter of the table; and by number of pairs without
    overwrites, in a context that holds the question alone.
    """
    task, model, params = loaded(workdir)
    answering, digits = replies(model, params, task.digits), task.digits
    cfg = nested.NestedConfig(digits=digits, pairs=pairs, lookups=(1, 1))
    evicted = evicted_rows(context(cfg), cfg)
    out: dict = {"pairs": pairs, "digits": digits, "budget_tokens": context(cfg).budget, "evicted": evicted, "orderings": orderings,
                 "levels": {n: scores(answering, tables(cfg, orderings, seed, n), evicted) for n in range(LEVELS)}, "by_pairs": {}}
    for number in smaller:
        cfg = replace(cfg, pairs=number)
        evicted = evicted_rows(CONTEXT, cfg)
        out["by_pairs"][number] = scores(answering, tables(cfg, orderings, seed, 0), evicted) | {"evicted": evicted}
    return out


def scores(answering: Answering, asked: list[tuple[Rows, str, str]], evicted: int) -> dict:
    """Shares of kinds of replies (`kind_of`), of those that are another value of the table, and of right digits."""
    kinds, digits = Counter(), 0
    for first in range(0, len(asked), BATCH):
        some = asked[first:first + BATCH]
        read = np.array([np.frombuffer(stream(rows, key, evicted), np.uint8) for rows, key, _ in some])
        for (rows, key, answer), said in zip(some, answering(read), strict=True):
            kind = kind_of(Reply(said, ()), rows, key, answer)
            kinds["other value" if kind == "wrong" and said in dict(rows).values() else kind] += 1
            digits += sum(a == b for a, b in zip(said, answer, strict=True)) / len(answer)
    return {kind: count / len(asked) for kind, count in kinds.items()} | {"digits": round(digits / len(asked), 4)}


def replies(model, params, digits: int, batch: int = BATCH) -> Answering:
    """Greedy words of a model, for up to `batch` streams of one length at once."""
    import jax

    from memtok_jax.inference.session import new_stream, open_session
    session = open_session(model, params, new_stream(model, params, batch, jax.random.key(0)), k=1)

    def answering(read: np.ndarray) -> list[str]:
        ids = np.resize(read, (batch, read.shape[1])).astype(np.int32)   # rows are repeated
        now = session.feed(params, new_stream(model, params, batch, jax.random.key(0)), ids[:, :-1])
        last, said = ids[:, -1], []
        for _ in range(digits):
            logits, now = session.step(params, now, last)
            last = DIGITS[np.asarray(logits)[:, DIGITS].argmax(1)]
            said.append(last)
        return [bytes(word).decode() for word in np.stack(said, 1).astype(np.uint8)[:len(read)]]

    return answering


DIGITS = np.frombuffer(nested.DIGITS.encode(), np.uint8).astype(np.int32)


def in_conversation(device: Device, rows: Rows, key: str, limits: ContextConfig) -> str:
    """The same word, of a conversation with the model behind it."""
    with tempfile.TemporaryDirectory() as folder, opened(folder, None, limits, device) as talk:
        tell(talk, rows)
        talk.policy = ScriptedPolicy(lambda view: [grammar.send(says(view, len(key)))])
        return talk.say(nested.QUESTION + key, t_us=START).text


def says(view: View, digits: int) -> str:
    """The word of hexadecimal digits that a model finds most likely if it must answer at once, without a search."""
    device, said = view.device, b""
    now = device.read(device.fork(view.context), nested.said("")[:3])
    while len(said) < digits:
        said += bytes((DIGITS[device.logits(now)[DIGITS].argmax()],))
        now = device.read(now, said[-1:])
    return said.decode()
