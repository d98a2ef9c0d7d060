"""The table of memories for a trained decoder: what its arms have in common, and when a gain counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import retrofit
from benchmarks.protocol import Run
from memtok_jax import config
from memtok_jax import params as P
from memtok_jax.models.protocol import bind
from memtok_jax.training.run_folder import CONFIG_FILE


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """(base, arms by name) of seed 1."""
    folder, args = tmp_path_factory.mktemp("base"), retrofit.parse(["--tiny", "--output="])
    args.width = 48   # which does not divide the width of the presets
    base = retrofit.base(args)
    (folder / CONFIG_FILE).write_text(config.to_json(base))
    return base, {name: retrofit.arm(Run(name, 1e-3, 1), args, folder) for name in retrofit.ARMS}


def test_arms_read_the_same_tokens_with_the_same_updates(arms):
    """All of a seed read the same text in the same order, which is not the base's; only the model and what learns differ."""
    base, arms = arms
    assert len({arm.data for arm in arms.values()}) == 1 and arms["plain"].data.seed != base.data.seed
    same = lambda arm: (arm.optimizer.steps, arm.optimizer.learning_rate, arm.optimizer.warmup_steps, arm.training.batch,
                        arm.training.call_tokens, arm.training.gradient)
    assert len({same(arm) for arm in arms.values()}) == 1
    assert all(arm.training.start_from and arm.data.sequence % arm.call_tokens == 0 for arm in arms.values())
    assert all(config.from_json(config.to_json(arm)) == arm for arm in arms.values())


def test_controls_have_the_parameters_of_the_base(arms):
    """Plain is the base itself; the other control differs from it in the window alone."""
    base, arms = arms
    assert arms["plain"].model == base.model
    wide = arms["window2"]
    assert not P.first_difference(*(P.abstract(bind(one.model).specs()) for one in (base, wide)))
    assert [layer.window for layer in wide.model.pattern] == [2 * layer.window for layer in base.model.pattern]
    assert bind(wide.model).reach > bind(base.model).reach


def arm(gain: list, forgotten: float = 0.01, swapped: float = 0.02) -> dict:
    """The record of two seeds. gain: (mean, low, high) of each bin; the last is that of all tokens too."""
    around = lambda x: [(x, x - 0.005, x + 0.005)] * 2
    return {"against": [gain[-1]] * 2, "by_position": {"against": [gain, gain]}, "forgotten": around(forgotten),
            "swapped": around(swapped)}


def test_a_gain_counts_if_it_is_real_grows_and_comes_from_the_content():
    some, more, unsure = (0.01, 0.005, 0.015), (0.03, 0.02, 0.04), (0.03, -0.001, 0.06)
    assert retrofit.counts(arm([some, more])) == "yes"
    assert retrofit.counts(arm([some, unsure])) == "no: not better than plain"
    assert retrofit.counts(arm([more, some])) == "no: does not grow"
    assert retrofit.counts(arm([some, more], forgotten=0.004)) == "no: not by its content"
    assert retrofit.counts(arm([some, more], swapped=-0.01)) == "no: not by its content"
    assert retrofit.counts({name: value for name, value in arm([some, more]).items() if name != "swapped"}) == "no memory"
    one_bad_seed = arm([some, more]) | {"against": [more, unsure]}
    assert retrofit.counts(one_bad_seed) == "no: not better than plain" and retrofit.counts({"arm": "plain"}) == ""


def test_intervals_are_the_widest_of_the_seeds():
    assert retrofit.shown([(0.01, 0.0, 0.02), (0.03, -0.01, 0.05)]) == "+0.0200 [-0.0100, +0.0500]"


def made_up(experiments: dict, folder: Path, overrides, suite: str = "") -> dict[str, dict]:
    """In the place of `sweep.run_all`: plain is best at a rate of 2e-3, XL at 1e-3, and XL is better by .1 late in a stream."""
    out = {}
    for name, experiment in experiments.items():
        (folder / name / "run").mkdir(parents=True, exist_ok=True)
        (folder / name / "run" / CONFIG_FILE).write_text(config.to_json(experiment))
        own, rate = 2.0 - 0.1 * ("xl" in name), experiment.optimizer.learning_rate
        how = overrides[name] if isinstance(overrides, dict) else overrides
        ways = {"reset": (0.3, 0.2, 0.4)} | ({"forgotten": (0.1, 0.05, 0.2), "swapped": (0.2, 0.1, 0.3)} if "xl" in name else {})
        bins = [{"tokens": "0 to 31", "first": 0}, {"tokens": "32 to 63", "first": 32}, {"tokens": "all"}]
        if against := [o.partition("=")[2] for o in how if "against" in o]:
            assert Path(against[0]) == folder / "plain-0.002-100" / "run" and name != "base"
            ways["against"] = (0.1, 0.05, 0.15)
        for line in bins:
            line |= {"own": own} | ways | ({"against": (0.0, -0.1, 0.1)} if line.get("first") == 0 and "against" in ways else {})
        best = 1e-3 if "xl" in name else 2e-3
        out[name] = {"tokens_per_second": 10.0, "jax": "0", "device": "cpu", "eval/bits_per_byte": own + abs(rate - best),
                     "by_position": {"lines": bins, "baselines": {"bz2-9": 2.5}}}
        assert ("data.eval_split=test" in how) == (suite == "content")
    return out


def test_the_run_from_rates_to_the_table(tmp_path, monkeypatch):
    """Each arm is tested at the rate that validation chose, beside the plain run of its seed; the rest is arithmetic."""
    monkeypatch.setattr(retrofit.sweep, "run_all", made_up)
    args = retrofit.parse(["--tiny", "--arms", "plain", "xl", "--test_split=test", f"--folder={tmp_path}"])
    args.rates, args.seeds = [1e-3, 2e-3], 0
    records = {r["arm"]: r for r in retrofit.run_all(args)}
    assert list(records) == ["base", "plain", "xl"] and (records["plain"]["rate"], records["xl"]["rate"]) == (2e-3, 1e-3)
    assert list(records["plain"]["tried"]) == [1e-3, 2e-3, 4e-3] and list(records["xl"]["tried"]) == [5e-4, 1e-3, 2e-3]
    assert records["xl"]["short"] == [1.9 + 0.3] and records["xl"]["by_position"]["against"][0][0] == (0.0, -0.1, 0.1)
    assert [retrofit.counts(r) for r in records.values()] == ["", "", "yes"]
    text = retrofit.summary([*records.values()], args, "python", 0.0)
    assert "| xl    |" in text and "+0.1000 [+0.0500, +0.1500]" in text and "the one seed by which rates are chosen" in text


def test_a_table_without_plain_is_refused(capsys):
    with pytest.raises(SystemExit):
        retrofit.parse(["--arms", "mag"])
    assert "--arms must hold plain, with which the others are compared" in capsys.readouterr().err
