"""Virtual context: paging against a fixed context on nested key-value tables, documents, talks, and what the stores cost.

    python -m benchmarks.virtual_context --part=nested       140 pairs, 0 to 4 overwrites, text search, ten rows a page
        --workdir=runs/memgpt-nested                         also with the learned controller of this run
    python -m benchmarks.virtual_context --part=documents    accuracy by number of distractors
    python -m benchmarks.virtual_context --part=talks        facts of earlier conversations, asked for in a later one
    python -m benchmarks.virtual_context --part=systems      search and page-in over --rows messages
    python -m benchmarks.virtual_context --part=soak         --turns turns with a model behind the conversation

Nested tables (MemGPT, arXiv 2310.08560, section 3.2): `memtok_jax/data/tasks/nested.py`; texts: `benchmarks/virtual_texts.py`;
costs: `benchmarks/virtual_systems.py`. A "perfect reader" takes the answer from what stands in the context whenever it can be taken
from there: no reader of this context does better. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import virtual_systems, virtual_texts
from benchmarks.virtual_systems import START, opened
from memtok_jax.data.tasks import nested
from memtok_jax.virtual_context import codec, grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Conversation, Reply
from memtok_jax.virtual_context.device import Device
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import HeuristicPolicy, Policy, ScriptedPolicy, View

PAIR = re.compile(r"key = (\w+), value = (\w+)")
LEVELS = 5


# ------------------------------------------------------------------------------------------------------ nested key-value

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


def told(cfg: nested.NestedConfig, rows: list, key: str, policy: Policy, device: Device | None = None) -> Reply:
    """The table row by row as messages, most of which leave the context, and one question."""
    with tempfile.TemporaryDirectory() as folder, opened(folder, None, context(cfg), device) as talk:
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
        task, device = controller(workdir)
        cfg = replace(cfg, digits=task.digits, query=task.query)
        at_once = ScriptedPolicy(lambda view: [grammar.send(says(view, cfg.digits))])
        ways |= {"learned": lambda *table: paged(*table, LearnedPolicy(device)),
                 "latent_summary": lambda *table: told(*table, at_once, device)}
    return nested_tables(orderings, cfg, seed, ways)


def says(view: View, digits: int) -> str:
    """The word of hexadecimal digits that a model finds most likely if it must answer at once, without a search."""
    device, said = view.device, ""
    context = device.read(device.fork(view.context), bytes((codec.CALL, ord(grammar.OPS["send"].letter), codec.STR)))
    while len(said) < digits:
        logits = device.logits(context)
        said += max(nested.DIGITS, key=lambda digit: logits[ord(digit)])
        context = device.read(context, said[-1].encode())
    return said


def controller(workdir: str) -> tuple[nested.NestedConfig, Device]:
    """Task and model of a run; the model is compiled."""
    import jax

    from memtok_jax import sharding
    from memtok_jax.evaluation.report import restored
    from memtok_jax.virtual_context.session_device import SessionDevice
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        experiment, model, found = restored(Path(workdir), mesh)
    return experiment.data.task, SessionDevice(model, jax.device_put(found.params, jax.devices()[0]))


# ------------------------------------------------------------------------------------------------------------- documents

DOCUMENTS = ContextConfig(budget=2304, max_new=64, page_tokens=960, page_size=10, max_chain=99, blocks=())


def turning(questions: dict[str, virtual_texts.Question]) -> Policy:
    """A script that turns the pages of one search until a perfect reader finds the answer on one, or the last one is read."""

    def decide(view: View) -> list[Call]:
        question = questions[view.event.text]
        page = [entry.text for entry in view.entries if entry.role == "function"][-1] if view.chain else ""
        if found := virtual_texts.right_number(question, page):
            return [grammar.send(found)]
        if ", the last" in page or "nothing found" in page:
            return [grammar.send("unknown")]
        return [grammar.search("archival_search", "text", f"town of {question.key[0]}", view.chain + 1)]

    return ScriptedPolicy(decide)


def documents(questions: int, distractors: tuple[int, ...], seed: int) -> dict:
    """For each number of distractors: paging, and a perfect reader of as many documents of the same search as fit at once."""
    out: dict = {"budget_tokens": DOCUMENTS.budget, "questions": questions, "by_distractors": {}}
    for count in distractors:
        texts, asks = virtual_texts.documents(questions, count, seed)
        by_text, found, searches, shown = {one.text: one for one in asks}, Counter(), 0, 0
        with tempfile.TemporaryDirectory() as folder, opened(folder, turning(by_text), DOCUMENTS) as talk:
            with talk.store.transaction():
                for text in texts:
                    talk.store.add_passage(talk.conv, START, text, {})
            shown = (DOCUMENTS.budget - DOCUMENTS.max_new - len(asks[0].text)) // (len(texts[0]) + 1)
            for one in asks:
                first = next(talk.search(f"town of {one.key[0]}", "text", "passages", shown)).rows
                found["fixed_context"] += any(virtual_texts.right_number(one, row.text) == one.answer for row in first)
                reply = talk.say(one.text, t_us=START)
                found["paging"] += reply.text == one.answer
                searches += sum(note.kind == "searched" for note in reply.notes)
                assert talk.budget().total <= DOCUMENTS.budget
        out["by_distractors"][count] = {way: found[way] / questions for way in ("fixed_context", "paging")} | {
            "documents": len(texts), "fit_at_once": shown, "searches": searches / questions}
    return out


# ----------------------------------------------------------------------------------------------------------------- talks

TALKS = ContextConfig(budget=1024, max_new=96, page_tokens=384, blocks=())


def summary(lines: list[str], tokens: int) -> list[str]:
    """Whole lines of at most this many tokens, those with most words that no other line has, in their order."""
    count = Counter(word for line in lines for word in set(line.casefold().split()))
    rare = [sum(count[word] == 1 for word in set(line.casefold().split())) for line in lines]
    kept: list[int] = []
    for place in sorted(range(len(lines)), key=lambda place: (-rare[place], place)):
        if sum(len(lines[i]) + 1 for i in kept) + len(lines[place]) < tokens:
            kept.append(place)
    return [lines[i] for i in sorted(kept)]


def visible_lines(view: View) -> list[str]:
    """Lines of the main context, those of results in the order of their rows, oldest first."""
    shown = {int(row): text for entry in view.entries if entry.role == "function"
             for row, text in re.findall(r"^(\d+) \w+: (.*?)(?:</result>)?$", codec.unescape(entry.text), re.MULTILINE)}
    shown |= {entry.row: entry.text for entry in view.entries if entry.role == "user"}
    return [shown[row] for row in sorted(shown)]


def read_lines(known: dict[str, virtual_texts.Question], view: View) -> str:
    """What a perfect reader of the main context replies. known: questions by their text."""
    return virtual_texts.told(known[view.event.text], visible_lines(view)) or "unknown"


def answer_at_once(read: Callable[[View], str], view: View) -> list[Call]:
    """A reply without a search."""
    return [grammar.send(read(view))]


def talks(count: int, conversations: int, messages: int, seed: int) -> dict:
    """Exact match of facts of earlier conversations: all lines, a summary of them, the end of a context, and paging."""
    found: Counter = Counter()
    questions = tokens = 0
    for number in range(count):
        said, asks = virtual_texts.talks(conversations, messages, seed + number)
        lines = [line for one in said for line in one]
        tokens += sum(len(line) + 1 for line in lines)
        read = functools.partial(read_lines, {one.text: one for one in asks})
        with tempfile.TemporaryDirectory() as folder, opened(folder, None, TALKS) as talk:
            for place, one in enumerate(said):
                talk.say(f"conversation {place + 1} begins", role="system", t_us=START)
                for line in one:
                    talk.say(line, t_us=START)
            talk.say(f"conversation {conversations} begins", role="system", t_us=START)
            for one in asks:
                questions += 1
                found["all_lines"] += virtual_texts.told(one, lines) == one.answer
                for size in (256, 512, TALKS.budget):
                    found[f"summary_{size}"] += virtual_texts.told(one, summary(lines, size)) == one.answer
                for way, policy in (("fixed_context", ScriptedPolicy(functools.partial(answer_at_once, read))),
                                    ("heuristic", HeuristicPolicy(read))):
                    talk.policy = policy
                    found[way] += talk.say(one.text, t_us=START).text == one.answer
    return {"budget_tokens": TALKS.budget, "talks": count, "conversations": conversations, "questions": questions,
            "tokens_of_a_talk": tokens // count, "exact_match": {way: found[way] / questions for way in sorted(found)}}


def main() -> None:
    """See above."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--part", choices=("nested", "documents", "talks", "systems", "soak"), default="nested")
    flags.add_argument("--workdir", default="", help="run of a controller, for --part=nested")
    flags.add_argument("--orderings", type=int, default=30)
    flags.add_argument("--pairs", type=int, default=140)
    flags.add_argument("--digits", type=int, default=8)
    flags.add_argument("--query", default="word", choices=tuple(nested.QUERIES), help="what the script searches for")
    flags.add_argument("--questions", type=int, default=100)
    flags.add_argument("--distractors", type=int, nargs="+", default=[0, 5, 10, 20, 50, 100, 200, 500])
    flags.add_argument("--talks", type=int, default=50)
    flags.add_argument("--rows", type=int, default=100_000)
    flags.add_argument("--vectors", action=argparse.BooleanOptionalAction, default=True, help="with --part=systems, vectors too")
    flags.add_argument("--queries", type=int, default=500)
    flags.add_argument("--turns", type=int, default=100_000)
    flags.add_argument("--seed", type=int, default=0)
    asked_for = flags.parse_args()
    parts = {"nested": lambda o: nested_part(o.workdir, o.pairs, o.query, o.digits, o.orderings, o.seed),
             "documents": lambda o: documents(o.questions, tuple(o.distractors), o.seed),
             "talks": lambda o: talks(o.talks, 5, 40, o.seed),
             "systems": lambda o: virtual_systems.systems(o.rows, o.queries, o.vectors, o.seed),
             "soak": lambda o: virtual_systems.soak(o.turns)}
    print(json.dumps({"machine": f"{platform.machine()}, Python {platform.python_version()}"} | parts[asked_for.part](asked_for)))


if __name__ == "__main__":
    main()
