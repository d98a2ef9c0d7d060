"""The table of memories for a trained decoder: what its arms have in common, and when a gain counts."""

from __future__ import annotations

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


def test_a_table_without_plain_is_refused(capsys):
    with pytest.raises(SystemExit):
        retrofit.parse(["--arms", "mag"])
    assert "--arms must hold plain, with which the others are compared" in capsys.readouterr().err
