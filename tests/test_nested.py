"""Transcripts of nested key-value tables are those of a real conversation, and its texts have the answers that they claim."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import virtual_toys as toys
from task_checks import samples_are_pure

from benchmarks import virtual_context as bench
from benchmarks import virtual_nested, virtual_systems, virtual_texts
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import nested
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.data.tasks.seeds import SPLITS
from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.conversation import Conversation
from memtok_jax.virtual_context.policies import ScriptedPolicy

SMALL = nested.NestedConfig(digits=6, pairs=30)
CASES = {query: replace(SMALL, query=query) for query in nested.QUERIES}


@pytest.mark.parametrize("cfg", CASES.values(), ids=CASES)
def test_samples_are_pure_functions_of_the_seed(cfg):
    samples_are_pure(nested, cfg, 300)
    with pytest.raises(DataError, match="at least"):
        nested.check(cfg, 40)
    with pytest.raises(UserError, match="nested.query"):
        replace(cfg, query="none")


@pytest.mark.parametrize("cfg", CASES.values(), ids=CASES)
def test_transcripts_are_those_of_a_conversation(cfg):
    """What the script sees at each decision, and what it decides, byte for byte."""
    rng = np.random.default_rng(0)
    path, rows = nested.chain(replace(cfg, lookups=(4, 4)), rng, True)
    others = iter(word for word in nested.words(rng, 3 * cfg.pairs, cfg.digits, True) if word not in path)
    table = {row: (path[step], path[step + 1]) for step, row in enumerate(rows)}
    seen, decided = [], []

    def watch(view):
        seen.append(view.tokens)
        decided.append(virtual_nested.follow(view, cfg.query))
        return decided[-1]

    limits = replace(virtual_nested.context(nested.NestedConfig()), blocks=())
    with Conversation(":memory:", cfg=limits, policy=ScriptedPolicy(watch), save_every=0) as talk:
        for row in range(1, cfg.pairs + 1):
            talk.remember(nested.row_text(*table.get(row, (next(others), next(others)))), t_us=toys.START)
        assert talk.say(nested.QUESTION + path[0], t_us=toys.START).text == path[-1]
    pieces = nested.transcript(cfg, path, rows)
    whole = b"".join(piece for piece, _, _ in pieces)
    assert len(seen) == len(rows) + 2
    for tokens, calls in zip(seen, decided, strict=True):
        assert whole.startswith(tokens)
        said = grammar.tokens(calls)
        assert whole[len(tokens):].startswith(said if calls[0].op == "send" else said[:-1])
    scored = np.concatenate([np.isin(np.arange(len(piece)), np.arange(begin, stop)) for piece, begin, stop in pieces])
    forced = {grammar.CALL, grammar.CALL_END, grammar.END}
    places = [len(tokens) + i for tokens, calls in zip(seen, decided, strict=True) for i in range(len(grammar.tokens(calls)))]
    unscored = [whole[place] for place in places if place < len(whole) and not scored[place]]
    assert set(unscored) <= forced | {nested.RESULT} and not set(np.flatnonzero(scored)) - set(places)


def test_only_decisions_are_scored_and_their_labels_are_the_next_tokens():
    ids, labels = nested.sample(CASES["word"], 500, 20, 3)
    b, t = np.nonzero(labels[:, :-1] != IGNORED)
    np.testing.assert_array_equal(labels[b, t], ids[b, t + 1])
    text = "".join(chr(label) if label != IGNORED else " " for label in labels[0])
    assert all(re.fullmatch(r"(qt|s)\xf8?[0-9a-f]*.*", one) for one in text.split())
    assert not (labels[:, 0] != IGNORED).any() or (ids[:, 0] == grammar.CALL).sum() == 0


def test_words_of_training_and_test_never_meet():
    for seed, held_out in ((5, False), (SPLITS["test"] + 5, True), (SPLITS["valid"] + 5, True)):
        ids, _ = nested.sample(SMALL, 600, 8, seed)
        text = bytes(ids.astype(np.uint8).ravel()).decode("latin1")
        found = set(re.findall(r"key = ([0-9a-f]{6}),", text))
        assert len(found) > 20 and all(nested.is_held_out(word) == held_out for word in found)


@pytest.mark.parametrize("lookups", [1, 3, 5])
def test_a_table_holds_one_chain(lookups):
    for seed in range(20):
        rows, key, answer = nested.table(np.random.default_rng(seed), replace(SMALL, lookups=(lookups, lookups)))
        following, steps = dict(rows), 0
        assert len(following) == len(rows) == SMALL.pairs
        while key in following:
            key, steps = following[key], steps + 1
        assert key == answer and steps == lookups and answer not in following
        assert sum(value in following for value in following.values()) == lookups - 1


@pytest.mark.parametrize("query", nested.QUERIES)
def test_the_script_needs_one_search_more_than_lookups(query, monkeypatch):
    monkeypatch.setattr(virtual_nested, "LEVELS", 1)
    (ways,) = virtual_nested.nested_part("", 140, query, 8, 1, 0)["levels"].values()
    assert ways["script"] == {"right": 1.0, "searches": 2.0} and ways["heuristic"] == {"right": 1.0, "searches": 1.0}
    assert sum(share for kind, share in ways["fixed_context"].items() if kind != "searches") == 1
    assert virtual_nested.reader([("a", "b"), ("b", "c")], "a") == "c" and virtual_nested.reader([("b", "c")], "a") == ""


# ------------------------------------------------------------------------------------------------------------------ texts

def test_one_document_answers_and_the_others_fit_as_well():
    texts, questions = virtual_texts.documents(5, 12, 0)
    assert len(texts) == 5 * 13
    for one in questions:
        fitting = [text for text in texts if f"town of {one.key[0]} " in text]
        found = [number for text in fitting if (number := virtual_texts.right_number(one, text))]
        assert len(fitting) == 13 and found == [one.answer]
        assert one.key[1] not in one.text and one.answer not in one.text
    assert [virtual_texts.in_words(n) for n in (7, 20, 1987, 1905)] == ["seven", "twenty", "nineteen eighty seven", "nineteen five"]


def test_paging_finds_what_a_fixed_context_cannot_hold():
    found = bench.documents(6, (3, 80), 0)["by_distractors"]
    assert found[3]["fixed_context"] == found[3]["paging"] == found[80]["paging"] == 1.0
    assert found[80]["fixed_context"] < 1 and found[80]["fit_at_once"] < 40 and found[80]["searches"] > 2


def test_talks_tell_every_fact_before_it_is_asked_for():
    for seed in range(20):
        said, questions = virtual_texts.talks(5, 10, seed)
        lines = [line for one in said for line in one]
        assert len(said) == 4 and len(questions) == len(virtual_texts.FACTS)
        for one in questions:
            assert virtual_texts.told(one, lines) == one.answer and one.answer.casefold() not in one.text.casefold()
            assert virtual_texts.told(one, []) == ""
        changed = [one for one in questions if sum(line.startswith(one.key[1].partition("{}")[0]) for line in lines) > 1]
        assert len(lines) == 4 * 10 + len(questions) + len(changed)


def test_a_summary_keeps_whole_lines_within_its_tokens():
    lines = [f"line {n} of many" + " more" * (n % 3) for n in range(30)] + ["a word unlike all others"]
    kept = bench.summary(lines, 60)
    assert kept == [line for line in lines if line in kept] and sum(len(line) + 1 for line in kept) <= 60 and lines[-1] in kept


@pytest.mark.slow
def test_a_soak_stays_within_its_budget_and_compiles_nothing():
    found = virtual_systems.soak(200)
    assert found["over_budget"] == found["compiled_behind_the_first_tenth"] == 0 and found["flushes"] > 3
    assert len(found["resident_MB_by_tenth"]) == 10 and min(found["resident_MB_by_tenth"]) > 50


def test_costs_are_measured_over_all_rows():
    found = virtual_systems.systems(300, 5, True, 0)
    assert found["rows"] == 300 and found["file_MB"] > 0
    for name in ("search_text", "search_words", "search_vector", "search_hybrid", "turn_with_page_in"):
        assert 0 < found[name]["p50_ms"] <= found[name]["p99_ms"], name
