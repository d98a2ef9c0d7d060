"""Virtual context: paging against a fixed context on nested key-value tables, document retrieval, and what the stores cost.

    python -m benchmarks.virtual_context --part=nested       140 pairs, 0 to 4 overwrites, text search, ten rows a page
    python -m benchmarks.virtual_context --part=documents    a reader of the first K documents, and one that pages
    python -m benchmarks.virtual_context --part=systems      search and page-in over --rows messages, and a soak of --turns turns

Nested tables (MemGPT, arXiv 2310.08560, section 3.2): each of h - 1 values is overwritten by the key of the next pair, the answer
is found after h lookups. `--part=nested` uses a script as controller: it is the bound that a learned one can reach. "Fixed
context" is a reader that sees the last rows that fit into the budget and follows the chain without an error: no reader of these
rows can do better. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Conversation
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import ScriptedPolicy, View

PAIR = re.compile(r"key = (\w+), value = (\w+)")
START = 1_800_000_000_000_000


def opened(folder: str, policy: ScriptedPolicy | None = None, cfg: ContextConfig | None = None) -> Conversation:
    """A conversation without a model."""
    return Conversation(Path(folder) / "talk.db", cfg=cfg, policy=policy, synchronous="NORMAL", save_every=0)


# ------------------------------------------------------------------------------------------------------ nested key-value

def table(rng: np.random.Generator, pairs: int, lookups: int, digits: int) -> tuple[list[tuple[str, str]], str, str]:
    """(pairs in their order, the key that is asked for, the answer after this many lookups). All words differ but the chain's."""
    words: set[str] = set()
    while len(words) < 2 * pairs:
        words.add("".join(rng.choice(list("0123456789abcdef"), digits)))
    drawn = rng.permutation(sorted(words)).tolist()
    keys, values = drawn[:pairs], drawn[pairs:]
    chain = rng.choice(pairs, lookups, replace=False)
    for here, there in zip(chain, chain[1:], strict=False):
        values[here] = keys[there]
    return list(zip(keys, values, strict=True)), keys[chain[0]], values[chain[-1]]


def follow(view: View) -> list[Call]:
    """The script: search for the word at hand; if it is the key of a row, go on with that row's value, else it is the answer.

    All that it knows stands in the context: the question, and the results since.
    """
    word = view.event.text.split()[-1]
    results = [entry.text for entry in view.entries if entry.role == "function" and entry.row > view.event.row]
    searched = re.findall(r"<str>(\w+)</str>", "".join(results))
    if not searched:
        return [grammar.search("archival_search", "text", word)]
    found = dict(PAIR.findall(results[-1]))
    if searched[-1] in found:
        return [grammar.search("archival_search", "text", found[searched[-1]])]
    return [grammar.send(searched[-1])]


def reader(rows: list[tuple[str, str]], key: str) -> str:
    """The value that a perfect reader finds among rows that it sees; "" where the chain leaves them."""
    seen = dict(rows)
    while key in seen:
        key = seen.pop(key)
    return key


def nested(orderings: int, pairs: int, digits: int, seed: int) -> dict:
    """Accuracy by number of overwrites: paging with the script, and the perfect reader of a fixed context."""
    size = len(f"Key-value pair: key = {'0' * digits}, value = {'0' * digits}\n")
    budget = pairs * size // 4
    cfg = ContextConfig(budget=budget, max_new=digits + 24, page_tokens=11 * size, page_size=10, blocks=(), keep_last=1)
    out = {"budget_tokens": budget, "table_tokens": pairs * size, "orderings": orderings, "digits": digits, "levels": {}}
    for overwrites in range(5):
        right, fixed, searches = 0, 0, 0
        for ordering in range(orderings):
            rows, key, answer = table(np.random.default_rng([seed, overwrites, ordering]), pairs, overwrites + 1, digits)
            with tempfile.TemporaryDirectory() as folder, opened(folder, ScriptedPolicy(follow), cfg=cfg) as talk:
                for k, v in rows:
                    talk.remember(f"Key-value pair: key = {k}, value = {v}", t_us=START)
                reply = talk.say(f"what is the value of {key}", t_us=START)
                assert talk.budget().total <= budget
            right += reply.text == answer
            searches += sum(note.kind == "searched" for note in reply.notes)
            visible = rows[-((budget - cfg.max_new) // size):]
            fixed += reader(visible, key) == answer
        out["levels"][overwrites] = {"paging_script": right / orderings, "fixed_context_perfect_reader": fixed / orderings,
                                     "searches": searches / orderings}
    return out


# ------------------------------------------------------------------------------------------------------------- documents

def documents(count: int, questions: int, seed: int) -> dict:
    """Share of questions whose document is among the first K of the ranking; the pager goes on to page 10 of ten rows.

    Documents are two sentences of made-up words about a place; a question names one word of one of them, and a common one.
    """
    rng = np.random.default_rng(seed)
    syllables = ["ka", "lo", "mi", "ru", "te", "so", "na", "vi", "de", "pu"]
    rare = ["".join(rng.choice(syllables, 4)) for _ in range(max(count // 8, 1))]
    with tempfile.TemporaryDirectory() as folder, opened(folder) as talk:
        facts = []
        with talk.store.transaction():
            for number in range(count):
                word, code = rare[int(rng.integers(len(rare)))], "".join(rng.choice(list("0123456789"), 6))
                facts.append((word, code))
                text = f"The town of {word} lies by the sea. Its number is {code} in the list {number}."
                talk.store.add_passage(talk.conv, START, text, {})
        ranks = []
        for number in rng.integers(0, count, questions):
            word, code = facts[int(number)]
            found = [row.text for page, _ in zip(talk.search(f"town {word}", "hybrid", "passages", 10), range(10), strict=False)
                     for row in page.rows]
            ranks.append(next((rank for rank, text in enumerate(found, 1) if code in text and word in text), None))
    shares = {f"first_{k}": float(np.mean([rank is not None and rank <= k for rank in ranks])) for k in (1, 2, 5, 10, 20, 50, 100)}
    return {"documents": count, "questions": questions, "paging_to_100": shares["first_100"], "fixed_context": shares}


# --------------------------------------------------------------------------------------------------------------- systems

def percentiles(seconds: list[float]) -> dict:
    """Milliseconds."""
    return {f"p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 3) for share in (50, 99)}


def timed(function, times: int) -> dict:
    """Percentiles of the seconds of a function of a number."""
    seconds = []
    for number in range(times):
        begun = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - begun)
    return percentiles(seconds)


def systems(rows: int, queries: int, seed: int) -> dict:
    """Search in recall storage of this many messages, one page, and the whole of a page-in: search, text, event, fifo."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnop"), int(rng.integers(3, 9)))) for _ in range(20_000)])
    weight = 1 / np.arange(1, len(words) + 1)
    weight /= weight.sum()
    with tempfile.TemporaryDirectory() as folder, opened(folder) as talk:
        begun = time.perf_counter()
        for first in range(0, rows, 10_000):
            with talk.store.transaction():
                for drawn in rng.choice(words, (min(10_000, rows - first), 16), p=weight):
                    text = " ".join(drawn)
                    talk.store.add_message(talk.conv, "user", START, text, text.encode(), len(text) + 2)
        out: dict = {"rows": rows, "insert_rows_per_s": round(rows / (time.perf_counter() - begun)),
                     "file_MB": round(Path(talk.store.path).stat().st_size / 2**20, 1)}
        asked = rng.choice(words, (queries, 2), p=weight)
        begun = time.perf_counter()
        talk.vectors.nearest("messages", "warm up", 1, rows)
        out["embed_all_s"] = round(time.perf_counter() - begun, 1)
        for mode in ("text", "words", "vector", "hybrid"):
            out[f"search_{mode}"] = timed(lambda n, mode=mode: next(talk.search(" ".join(asked[n]), mode)), queries)
        talk.policy = ScriptedPolicy(lambda view: [grammar.search("recall_search", "words", view.event.text, heartbeat=False)])
        out["turn_with_page_in"] = timed(lambda n: talk.say(" ".join(asked[n])), queries)
    return out


def soak(turns: int) -> dict:
    """Turns of a short message and a short reply: turns a second and memory, early and at the end."""
    policy = ScriptedPolicy(lambda view: [grammar.send("I see " + view.event.text)])
    with tempfile.TemporaryDirectory() as folder, opened(folder, policy) as talk:
        memory, begun, over = {}, time.perf_counter(), 0
        for turn in range(1, turns + 1):
            talk.say(f"message {turn}", t_us=START + turn)
            over += talk.budget().total > talk.cfg.budget
            if turn in (max(turns // 10, 1), turns):
                memory[turn] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        seconds = time.perf_counter() - begun
        begun, state = time.perf_counter(), talk.state
        talk._restore()
        return {"turns": turns, "turns_per_s": round(turns / seconds, 1), "over_budget": over, "peak_MB_by_turn": memory,
                "flushes": state.flushes, "replay_s": round(time.perf_counter() - begun, 2), "replay_equal": talk.state == state,
                "file_MB": round(Path(talk.store.path).stat().st_size / 2**20, 1)}


def main() -> None:
    """See above."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--part", choices=("nested", "documents", "systems"), default="nested")
    flags.add_argument("--orderings", type=int, default=30)
    flags.add_argument("--pairs", type=int, default=140)
    flags.add_argument("--digits", type=int, default=32)
    flags.add_argument("--rows", type=int, default=100_000)
    flags.add_argument("--queries", type=int, default=500)
    flags.add_argument("--turns", type=int, default=100_000)
    flags.add_argument("--seed", type=int, default=0)
    asked = flags.parse_args()
    found = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    if asked.part == "nested":
        found |= nested(asked.orderings, asked.pairs, asked.digits, asked.seed)
    elif asked.part == "documents":
        found |= documents(asked.rows, asked.queries, asked.seed)
    else:
        found |= systems(asked.rows, asked.queries, asked.seed) | {"soak": soak(asked.turns)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
