"""Tables in several sittings: what is taken from records, what is trained again, what is refused, and what is shown meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy_run
from memory_toys import stand_in

from benchmarks import all_memories, memory_figure, protocol, records, report, sweep

NEEDLES = ("--pages", "needles", "--models", "RMT", "window")
SELECTION, FRESH = 3, 2   # runs of a row: one for each rate, one for each seed


@pytest.fixture
def sitting(monkeypatch, tmp_path):
    """One command: (flags, runs that begin before time is up, output) -> (trained run names by suite, text, numbers)."""
    def sit(*flags: str, most: float = 10**9, output: str = "out"):
        calls = []
        monkeypatch.setattr(sweep, "run_all", stand_in(calls, most))
        monkeypatch.setattr(memory_figure, "draw", lambda *_: None)
        all_memories.main(["--budget=tiny", "--seeds=2", f"--folder={tmp_path}", f"--output={tmp_path / output}", *flags])
        trained = {suite: [name for one, _, names in calls if one == suite for name in names] for suite, *_ in calls}
        return trained, (tmp_path / f"{output}.md").read_text(), json.loads((tmp_path / f"{output}.json").read_text())
    return sit


def test_a_second_sitting_trains_nothing_and_says_the_same(sitting, tmp_path):
    trained, text, numbers = sitting(*NEEDLES)
    assert len(trained[""]) == 2 * SELECTION and len(trained["needles"]) == 2 * FRESH
    again, same, kept = sitting(*NEEDLES)
    assert not again and same == text and kept == numbers
    other, shown, _ = sitting("--pages", "parity", "--models", "window")
    assert set(other) == {"", "state_tracking"} and "## needles" in shown and "## parity" in shown, "pages not asked for stay"
    assert "x" not in {one["found"].get("workdir") for one in numbers["runs"]}, "no folder of a machine"
    assert str(tmp_path) not in json.dumps(numbers["runs"])


def test_a_new_row_or_seed_joins_by_one_command(sitting):
    sitting(*NEEDLES)
    trained, text, numbers = sitting("--pages", "needles", "--models", "Mamba")
    assert {name.partition("-")[0] for names in trained.values() for name in names} == {"Mamba"}
    assert set(numbers["pages"]["needles"]["columns"]) == {"RMT", "window", "Mamba"}
    trained, text, _ = sitting("--pages", "needles", "--models", "Mamba", "--seeds=3")
    assert trained == {"needles": ["Mamba-0.002-2"]}
    assert "RMT (2 of 3 seeds)" in text and "| 2 of 3 " in text and "Mamba (" not in text


def test_time_is_up_and_the_next_sitting_goes_on(sitting):
    _, text, numbers = sitting(*NEEDLES, most=5, output="slow")
    assert "Missing: window (0 of 2 seeds, no learning rate yet), RMT (0 of 2 seeds)." in text, "five of six validation runs"
    assert len(numbers["runs"]) == 5
    _, text, _ = sitting(*NEEDLES, most=4, output="slow")
    assert "Missing: window (1 of 2 seeds)." in text and "| 1 of 2 " in text
    trained, text, numbers = sitting(*NEEDLES, output="slow")
    assert trained == {"needles": ["window-0.002-1"]} and "Missing" not in text
    assert numbers == sitting(*NEEDLES, output="once")[2] | {"command": numbers["command"]}


def test_a_record_of_another_experiment_is_refused_or_run_anew(sitting, tmp_path):
    _, _, numbers = sitting(*NEEDLES)
    changed = [one | {"digest": "0"} if one["suite"] == "needles" and one["model"] == "RMT" else one for one in numbers["runs"]]
    (tmp_path / "out.json").write_text(json.dumps(numbers | {"runs": changed}))
    with pytest.raises(SystemExit, match="record of RMT, page needles, rate 0.002, seed 0 is of another experiment than now; give"):
        sitting(*NEEDLES)
    with pytest.raises(SystemExit, match="record of RMT"):
        sitting("--pages", "parity", "--models", "window")
    _, text, _ = sitting("--pages", "needles", "--models", "window", "--again")
    assert "RMT (0 of 2 seeds)" in text
    trained, text, found = sitting(*NEEDLES, "--again")
    assert trained == {"needles": ["RMT-0.002-0", "RMT-0.002-1"]} and found["runs"] == numbers["runs"]


def test_a_twin_that_is_only_a_record_is_trained_again_for_a_new_row(sitting):
    sitting("--pages", "books", "--models", "segment attention")
    trained, _, numbers = sitting("--pages", "books", "--models", "RMT")
    twins = ["segment_attention-0.002-0", "segment_attention-0.002-1"]
    assert trained["positions"] == ["RMT-0.002-0", "RMT-0.002-1"], "the twin's own results are known"
    assert [name for name in trained[""] if "RMT" not in name] == twins
    assert not sitting("--pages", "books", "--models", "RMT")[0]
    trained, *_ = sitting("--pages", "books", "--models", "RMT", "--seeds=3", most=0)
    assert "RMT-0.002-2" not in trained.get("positions", []), "no comparison with a twin that is not there"


def test_tables_of_several_machines_become_one(sitting, tmp_path):
    sitting("--pages", "needles", "--models", "RMT", output="here")
    sitting("--pages", "needles", "--models", "window", output="there")
    trained, _, numbers = sitting(*NEEDLES, "--records", *(str(tmp_path / f"{name}.json") for name in ("here", "there")),
                                 output="both")
    assert not trained and set(numbers["pages"]["needles"]["columns"]) == {"RMT", "window"}


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"pages": {}}')
    with pytest.raises(SystemExit, match="a.json holds no runs of this table"):
        records.read([tmp_path / "a.json"])
    with pytest.raises(SystemExit, match="cannot read .*b.json .No such file"):
        records.read([tmp_path / "b.json"])


def test_a_digest_covers_what_a_result_depends_on():
    one = toy_run.experiment("stdlib")
    other = replace(one, optimizer=replace(one.optimizer, steps=13))
    texts = [records.digest(*case) for case in (
        (one, (), ""), (other, (), ""), (one, ("a=1",), ""), (one, (), "x"), (one, (), "", [one]), (one, (), "", [other]))]
    assert len(set(texts)) == len(texts)
    moved = replace(one, data=replace(one.data, data_dir="elsewhere"))
    assert records.digest(moved, (), "", [moved]) == texts[4]
    assert report.command_line("m", ["--data_dir=/a", "--b=/a"]) == "python -m m --data_dir=DATA --b=/a"


def test_a_model_without_all_its_scores_has_no_rate():
    rates = (1e-3, 2e-3, 4e-3)
    none = protocol.choose_rates(["a", "b"], rates, lambda runs: {run: 1.0 for run in runs if run.rate < 4e-3}, True)
    assert not none
    best = {"a": 2e-3, "b": 4e-3}   # b would have to be tried at 8e-3 too
    scores = lambda runs: {run: abs(run.rate - best[run.model]) for run in runs if run.rate < 8e-3}
    assert {*protocol.choose_rates(["a", "b"], rates, scores, True)} == {"a"}


def test_a_sweep_begins_nothing_late_and_evaluates_anew_what_was_asked_otherwise(tmp_path):
    told, one = [], toy_run.experiment("stdlib")
    assert sweep.run_all({"a": one}, tmp_path, ("x=1",), until=0.0) == {}
    (tmp_path / "a" / "result.json").write_text(json.dumps({"n": 1, "overrides": ["x=1"]}))
    finished = lambda *what: told.append(what)
    assert sweep.run_all({"a": one}, tmp_path, ("x=1",), until=0.0, finished=finished) == {"a": {"n": 1}}
    assert told == [("a", {"n": 1})]
    assert sweep.run_all({"a": one}, tmp_path, ("x=2",), until=0.0) == {}
