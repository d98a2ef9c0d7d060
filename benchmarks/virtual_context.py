"""Virtual context: paging against a fixed context on nested key-value tables, documents, talks, and what the stores cost.

    python -m benchmarks.virtual_context --part=nested       140 pairs, 0 to 4 overwrites, text search, ten rows a page
        --workdir=runs/memgpt-nested                         also with the learned controller of this run
    python -m benchmarks.virtual_context --part=summary --workdir=runs/memgpt-told     a trained memory alone, without a search
    python -m benchmarks.virtual_context --part=documents    accuracy by number of distractors
    python -m benchmarks.virtual_context --part=talks        facts of earlier conversations, asked for in a later one
    python -m benchmarks.virtual_context --part=systems      search and page-in over --rows messages
    python -m benchmarks.virtual_context --part=soak         --turns turns with a model behind the conversation

Nested tables: `benchmarks/virtual_nested.py` and `virtual_summary.py`; texts: `virtual_texts.py`; costs: `virtual_systems.py`. A
"perfect reader" takes the answer from what stands in the context whenever it can be taken from there: no reader of this context
does better. Prints one JSON object.
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

from benchmarks import virtual_nested, virtual_summary, virtual_systems, virtual_texts
from benchmarks.virtual_systems import START, opened
from memtok_jax.data.tasks import nested
from memtok_jax.virtual_context import codec, grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import HeuristicPolicy, Policy, ScriptedPolicy, View

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
    flags.add_argument("--part", choices=("nested", "documents", "talks", "systems", "soak", "summary"), default="nested")
    flags.add_argument("--workdir", default="", help="run of a controller, for --part=nested and summary")
    flags.add_argument("--orderings", type=int, default=30)
    flags.add_argument("--pairs", type=int, default=140)
    flags.add_argument("--smaller", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="pairs, for --part=summary")
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
    parts = {"nested": lambda o: virtual_nested.nested_part(o.workdir, o.pairs, o.query, o.digits, o.orderings, o.seed),
             "summary": lambda o: virtual_summary.summary_part(o.workdir, o.pairs, tuple(o.smaller), o.orderings, o.seed),
             "documents": lambda o: documents(o.questions, tuple(o.distractors), o.seed),
             "talks": lambda o: talks(o.talks, 5, 40, o.seed),
             "systems": lambda o: virtual_systems.systems(o.rows, o.queries, o.vectors, o.seed),
             "soak": lambda o: virtual_systems.soak(o.turns)}
    print(json.dumps({"machine": f"{platform.machine()}, Python {platform.python_version()}"} | parts[asked_for.part](asked_for)))


if __name__ == "__main__":
    main()
