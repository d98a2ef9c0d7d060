"""The tables that compare memories: equal sizes, rates chosen on validation alone, fresh seeds, twins, and what is printed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy_run
from memory_toys import stand_in

from benchmarks import all_memories, memories, pages, protocol, sweep, wikitext
from benchmarks.protocol import Chosen, Run
from memtok_jax import config
from memtok_jax.models.protocol import bind
from memtok_jax.training import memories as small

ALL = pages.pages(pages.BUDGETS["small"], "gutenberg_books", "")


@pytest.mark.parametrize("page", ALL)
def test_all_rows_are_equally_large_and_can_be_trained(page):
    """Within 1 % on every page; the calls of training are whole, and a row survives JSON, as a sweep needs."""
    for name in memories.MEMORIES:
        model = memories.model_of(name, ALL[page].sizes)
        assert memories.parameters(model) == pytest.approx(memories.PARAMETERS, rel=memories.SPREAD), name
        run = ALL[page].experiment(model, 1e-3, 3)
        assert run.call_tokens % bind(model).call_tokens == 0 and (run.data.seed, run.training.seed) == (3, 3)
        assert config.from_json(config.to_json(run)) == run
        changes = tuple(o.format(longest=ALL[page].longest) for o in memories.MEMORIES[name].evaluation)
        config.override(run, (*ALL[page].valid, *changes)), config.override(run, (*ALL[page].test, *changes))


def test_rows_have_twins_without_memory():
    for name, entry in memories.MEMORIES.items():
        assert not entry.twin or (entry.twin in memories.MEMORIES and entry.family != "" and entry.twin != name)
    with pytest.raises(SystemExit, match="error: no model 'Titan'; there are full attention, segment"):
        memories.named(["Titan"])


def test_presets_and_rows_are_the_same_memories():
    """One list: a memory of the configs is a row, and the four other rows are what memories are compared with."""
    assert sorted(entry.memory for entry in memories.MEMORIES.values()) == sorted(small.LAYERS)
    assert set(small.LAYERS) - set(small.MEMORIES) == {"segment", "full", "persistent", "linear"}
    for name in ("mac", "mag", "mal", "lmm", "hymba", "mamba", "window"):   # published in the backbone of the tables
        one = small.small_model(name, 51, 16)
        assert replace(one, prefix=0) == replace(small.model_of(name, small.Shape(51, 16, 16), small.ALIKE._replace(expansion=4)),
                                                 prefix=0)
    with pytest.raises(config.UserError, match="memory is 'segment'; it must be one of mac"):
        small.small_model("segment", 51, 16)


def test_floats_of_carry_are_those_that_outlive_a_segment():
    """In two layers of width 128 and T = 16: nothing, 15 or 16 keys and values, a cache, the memory tokens."""
    carry = lambda name: memories.carry_floats(memories.model_of(name, memories.Sizes(51, 16, 256)))
    assert carry("segment attention") == 0
    assert carry("window") == 2 * 2 * 16 * 128 and carry("window + sinks") == 2 * 2 * 20 * 128
    assert carry("persistent tokens") == carry("window"), "what follows from parameters is no memory"
    assert carry("Transformer-XL") == 2 * 16 * 128
    assert carry("RMT") == 8 * 128


def test_a_size_that_cannot_be_reached_is_refused():
    with pytest.raises(ValueError, match="not within 1 % of 1,000"):
        memories.fitted(memories.MEMORIES["RMT"].build(memories.Sizes(51, 16, 256)), 1000)


# -------------------------------------------------------------------------------------------------------------------- protocol

def chosen_by(best: dict[str, float], rates=(1e-3, 2e-3, 4e-3), lower=True):
    """(choice, runs) where a model's score is best at the rate `best`."""
    ran: list[Run] = []

    def score(runs):
        ran.extend(runs)
        return {run: abs(run.rate - best[run.model]) * (1 if lower else -1) for run in runs}

    return protocol.choose_rates(best, rates, score, lower), ran


@pytest.mark.parametrize("lower", [True, False])
def test_each_model_gets_its_best_rate_and_an_edge_is_extended_once(lower):
    chosen, ran = chosen_by({"middle": 2e-3, "low": 1e-5, "high": 8e-3}, lower=lower)
    assert {name: round(one.rate, 6) for name, one in chosen.items()} == {"middle": 2e-3, "low": 5e-4, "high": 8e-3}
    assert len(chosen["middle"].tried) == 3 and len(chosen["low"].tried) == len(chosen["high"].tried) == 4
    assert {run.seed for run in ran} == {protocol.SELECTION_SEED} and len(ran) == 11


def test_a_single_rate_is_taken():
    chosen, ran = chosen_by({"a": 1.0}, rates=(3e-3,))
    assert chosen == {"a": Chosen(3e-3, {})} and not ran
    assert protocol.tried(chosen, 3) == {"a": "0.003 (given)"}


def test_final_runs_have_seeds_of_their_own():
    runs = protocol.final_runs({"a": Chosen(1e-3, {}), "b b": Chosen(2e-3, {})}, 3)
    assert len(set(runs)) == 6 and protocol.SELECTION_SEED not in {run.seed for run in runs}
    assert {run.folder for run in runs} >= {"a-0.001-0", "b_b-0.002-2"}


def test_when_rows_differ():
    assert protocol.differ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], 0.1)
    assert not protocol.differ([1.0, 1.1, 2.05], [2.0, 2.1, 2.2], 0.1), "the ranges overlap"
    assert not protocol.differ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], 0.2), "two standard errors are more than that"
    assert protocol.spread([1.0, 2.0, 4.5], 1) == "2.5 (1.0 to 4.5)" and protocol.spread([1.0], 1) == "1.0"


def test_a_folder_keeps_its_experiment(tmp_path):
    one = toy_run.experiment("stdlib")
    sweep.refuse_other(tmp_path / "a", one)
    sweep.refuse_other(tmp_path / "a", one)
    with pytest.raises(SystemExit, match="holds another experiment .config.optimizer.steps is 12 there, 13 now.; give another"):
        sweep.refuse_other(tmp_path / "a", replace(one, optimizer=replace(one.optimizer, steps=13)))


# ------------------------------------------------------------------------------------------------------------- from runs to tables

def test_all_pages_become_one_table(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(sweep, "run_all", stand_in(calls))
    all_memories.main(["--budget=tiny", "--models", "RMT", "window", "--seeds=2", f"--folder={tmp_path}",
                       f"--output={tmp_path / 'out'}", "--rates", "1e-3", "2e-3", "4e-3"])
    found = json.loads((tmp_path / "out.json").read_text())["pages"]
    assert list(found) == list(ALL) and "books" in found
    assert all(one["rate"] == 2e-3 for page in found.values() for one in page["rates"].values())
    assert set(found["books"]["columns"]) == {"RMT", "window", "segment attention"}, "the twin of RMT is trained too"
    if "needles" in found:
        assert set(found["needles"]["columns"]) == {"RMT", "window"} and found["needles"]["columns"]["RMT"][0]["number 2x"] == 0.5
    (books,) = [overrides for suite, overrides, _ in calls if suite == "positions"]
    (twin,) = [text for text in books["RMT-0.002-1"] if "against" in text]
    assert twin.endswith("/books/segment_attention-0.002-1/run"), "the twin of the same seed"
    assert not [text for text in books["window-0.002-0"] if "against" in text]
    text = (tmp_path / "out.md").read_text()
    assert "## books" in text and "| RMT " in text and "Without training: chance 0.1." in text and "**0.002: 2.001**" in text
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["books"]["RMT"][0]["reset, last bin"] == 0.2


def test_language_table_puts_dynamic_evaluation_among_its_rows(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(sweep, "run_all", stand_in(calls))
    wikitext.main(["--models", "segment attention", "Titans MAL", "--dynamic", "segment attention", f"--output={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["results"]) == ["segment attention", "Titans MAL", "segment attention + dynamic evaluation"]
    assert {len(runs) for runs in found["results"].values()} == {3}
    tests = [overrides for suite, overrides, _ in calls if suite in ("", "dynamic") and "data.eval_split=test" in overrides]
    assert len(tests) == 2 and "data.eval_split=valid" in calls[0][1], "rates are chosen on the validation split alone"
    lines = [line for line in (tmp_path / "out.md").read_text().splitlines() if line.startswith("| segment attention")]
    assert "dynamic" in lines[0] and "1.500" in lines[0], "best first"
