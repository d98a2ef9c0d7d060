"""Modular arithmetic: values against Python's own arithmetic, forms of trees, shares of answers, and the suite by length."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.task import TaskConfig, baselines
from memtok_jax.data.tasks import modular_arithmetic as M
from memtok_jax.data.tasks.scoring import IGNORED, majority

CHAIN, LAST = M.ModularArithmeticConfig(), M.ModularArithmeticConfig(scored="last")
TREE = M.ModularArithmeticConfig(7, True, "last")


def text(cfg, ids) -> str:
    return "".join(M.symbols(cfg)[i] for i in ids)


@pytest.mark.parametrize("cfg, length", [(CHAIN, 15), (LAST, 20), (TREE, 33)])
def test_samples_are_pure_functions_of_the_seed(cfg, length):
    samples_are_pure(M, cfg, length)


def test_every_value_of_a_chain_is_that_of_python():
    ids, labels = M.sample(CHAIN, 24, 40, 3)
    for row, label in zip(ids, labels, strict=True):
        for t in range(24):
            assert label[t] == (IGNORED if t % 2 else eval(text(CHAIN, row[:t + 1])) % 5)
    assert {text(CHAIN, row[1::2]) for row in ids} and set(text(CHAIN, ids[:, 1::2].ravel())) == set("+-*")


def test_products_bind_first():
    ids = np.array([[1, 5, 2, 7, 3], [1, 6, 2, 7, 3], [4, 7, 4, 5, 1]])   # 1 + 2 * 3, 1 - 2 * 3, 4 * 4 + 1
    assert M.chain_values(ids, 5)[:, -1].tolist() == [2, 0, 2]


def test_the_last_value_stands_behind_the_equals_sign():
    ids, labels = M.sample(LAST, 16, 60, 4)
    whole, every = M.sample(dataclasses.replace(LAST, scored="every"), 15, 60, 4)
    np.testing.assert_array_equal(ids[:, :-1], whole)
    assert (text(LAST, ids[:, -1]) == "=" * 60) and (labels[:, -1] == every[:, -1]).all() and (labels[:, :-1] == IGNORED).all()


@pytest.mark.parametrize("tokens", [*range(1, 9), 40, 639])
def test_trees_have_their_length_and_the_value_of_python(tokens):
    rng = np.random.default_rng(tokens)
    for _ in range(20):
        row = M.tree(tokens, 7, rng)
        said = text(TREE, row)
        assert len(row) == tokens and "*" not in said and "=" not in said
        assert M.tree_value(row, 7) == eval(said) % 7, said
    forms = {1: "d", 2: "-d", 3: "(d)", 4: "(-d)", 5: "(dod)"}
    if tokens in forms:
        said = "".join("d" if c.isdigit() else c for c in said)
        assert said == forms[tokens] or (tokens == 5 and said in ("(d+d)", "(d-d)"))


def test_zero_is_frequent_in_short_chains_as_counted():
    """d op d: over all 75 of them, 0 is the value of 19; a table of one answer is right as often."""
    every = [(a, o, b) for a, b in itertools.product(range(5), repeat=2) for o in (5, 6, 7)]
    values = M.chain_values(np.array(every), 5)[:, -1]
    assert (values == 0).sum() == 19 and majority(values[:, None]) == 19 / 75
    found = baselines(TaskConfig(LAST, 4, eval_samples=4000), 1, 0)
    assert found["majority"] == pytest.approx(19 / 75, abs=0.02) and found["chance"] == 0.2


def test_golden_rows():
    """A change of these numbers changes every row that a run has been trained or judged on."""
    for cfg, sums in ((CHAIN, (8082, 1986)), (LAST, (8187, 92)), (TREE, (17339, 144))):
        ids, labels = M.sample(cfg, 40, 50, 0)
        assert (ids.sum(), labels[labels != IGNORED].sum()) == sums


def test_mistakes_are_one_line():
    for wrong, message in ((dict(modulus=1), "modulus is 1; it must be at least 2"),
                           (dict(scored="all"), "it must be one of every"),
                           (dict(brackets=True), "an open bracket has no value yet")):
        with pytest.raises(UserError, match=message):
            M.ModularArithmeticConfig(**wrong)
    for cfg, length in ((LAST, 15), (CHAIN, 1), (TREE, 1)):
        with pytest.raises(DataError, match="needs a sequence of at least 2 tokens"):
            M.sample(cfg, length, 1, 0)


@pytest.mark.parametrize("name", ["arithmetic", "brackets"])
def test_the_suite_judges_each_length(name, monkeypatch, tmp_path):
    """A reader that is right up to 40 tokens of an expression and says 0 beyond: by length, and where it is lost."""
    from memtok_jax.evaluation import greedy
    from memtok_jax.evaluation.suites import state_tracking as suite

    cfg = dataclasses.replace(config.load(f"state_tracking:{name}").data, eval_samples=30)

    def answer(params, inputs, back, block, *, model):
        if cfg.task.brackets:
            said = np.array([[M.tree_value(row[:-1].tolist(), 5)] for row in inputs])
            return np.where(inputs.shape[1] <= 40, np.repeat(said, inputs.shape[1], 1), 0)
        said = np.zeros_like(inputs)
        said[:, ::2] = M.chain_values(inputs, 5)
        return np.where(np.arange(inputs.shape[1]) < 40, said, 0)

    monkeypatch.setattr(greedy, "answer", answer)
    experiment = SimpleNamespace(data=cfg, call_tokens=8, evaluation=SimpleNamespace(lengths=(1, 4), batch=16))
    model, lines = SimpleNamespace(reach=8, segment=0), []
    found = dict(suite.run(experiment, model, {}, None, tmp_path, lines.append))
    assert found["eval/whole_rows_at_40"] == found["eval/accuracy"] == 1 and found["eval/whole_rows_at_160"] < 0.5
    assert found["eval/first_lost"] == (159 if cfg.task.brackets else 40)
    assert "arithmetic modulo 5" in lines[0] and (tmp_path / "state_tracking.png").exists()
