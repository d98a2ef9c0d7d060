"""State tracking: the axioms of groups, the order of products, closed forms of what readers miss, and the suite."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax import params as P
from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.task import TaskConfig, sights
from memtok_jax.data.tasks import state_tracking as S
from memtok_jax.data.tasks.scoring import IGNORED, table_accuracy
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import bind
from memtok_jax.training.experiment import EvaluationConfig

ORDERS = {"Z2": 2, "Z60": 60, "S3": 6, "S4": 24, "S5": 120, "A4": 12, "A5": 60, "A4xZ5": 60}


@pytest.mark.parametrize("group, order", ORDERS.items())
def test_groups_are_groups(group, order):
    table, rng = S.table(group), np.random.default_rng(0)
    assert table.shape == (order, order)
    assert (np.sort(table, 1) == np.arange(order)).all() and (np.sort(table, 0).T == np.arange(order)).all()
    assert (table[0] == np.arange(order)).all() and (table[:, 0] == np.arange(order)).all(), "element 0 is the identity"
    assert ((table == 0).sum(1) == 1).all(), "each element has one inverse"
    a, b, c = rng.integers(order, size=(3, 10_000))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (table == table.T).all() == (group[0] == "Z")


def test_the_first_element_is_applied_first():
    """Exchange 0 and 1, then 1 and 2: what was at 0 is at 2. The other way round it is at 1."""
    number = {tuple(p): n for n, p in enumerate(S.elements("S3").tolist())}
    first, second = number[1, 0, 2], number[0, 2, 1]
    assert S.elements("S3")[S.table("S3")[first, second]].tolist() == [2, 0, 1]
    assert S.elements("S3")[S.table("S3")[second, first]].tolist() == [1, 2, 0]


def test_subsets_and_subgroups():
    odd = [sum(p[i] > p[j] for i in range(5) for j in range(i + 1, 5)) % 2 for p in S.elements("A5")]
    assert not any(odd) and len(S.moves("S5", "swaps")) == 11 and len(S.moves("S5", "cycles")) == 31
    reached = {0}
    while len(more := reached | {int(S.table("S5")[a, b]) for a in reached for b in S.moves("S5", "swaps")}) > len(reached):
        reached = more
    assert len(reached) == 120, "exchanges reach all of S5"


@pytest.mark.parametrize("cfg, length", [(S.StateTrackingConfig(), 12), (S.StateTrackingConfig("A5"), 9),
                                         (S.StateTrackingConfig("S5", "swaps", spread=4, scored="last"), 24)])
def test_samples_are_pure_functions_of_the_seed(cfg, length):
    one = samples_are_pure(S, cfg, length)
    state = np.zeros(5, int)
    for t in range(0, length, cfg.spread):     # the automaton is the oracle
        state = S.table(cfg.group)[state, one.ids[:, t]]
        label = one.labels[:, t + cfg.spread - 1]
        if cfg.scored == "every" or t + cfg.spread == length:
            np.testing.assert_array_equal(label, state)
    count = length // cfg.spread if cfg.scored == "every" else 1
    assert ((one.labels != IGNORED).sum(1) == count).all()
    with pytest.raises(DataError, match="at least"):
        S.sample(cfg, 1, 1, 0)


def test_golden_rows():
    for group, sums in (("Z2", (1043, 1025)), ("S3", (5158, 4984)), ("A5", (60_466, 60_046))):
        ids, labels = S.sample(S.StateTrackingConfig(group), 40, 50, 0)
        assert (ids.sum(), labels.sum()) == sums


def test_parity_is_the_smallest_group_and_products_are_even_from_the_first_on():
    ids, labels = S.sample(S.StateTrackingConfig("Z2"), 20, 50, 1)
    np.testing.assert_array_equal(labels, np.cumsum(ids, 1) % 2)
    _, labels = S.sample(S.StateTrackingConfig("S3"), 5, 6000, 1)
    for t in range(5):
        assert (((np.bincount(labels[:, t], minlength=6) - 1000) ** 2) / 1000).sum() < 20.5   # 5 degrees of freedom


@pytest.mark.parametrize("cfg", [S.StateTrackingConfig("Z3"), S.StateTrackingConfig("S3", "swaps"),
                                 S.StateTrackingConfig("Z2", spread=2, scored="last")])
def test_no_reader_of_the_last_tokens_beats_the_stated_one_which_is_reached(cfg):
    train, test = S.sample(cfg, 6, 20_000, 1), S.sample(cfg, 6, 6000, 2)
    for window in range(1, 7):
        stated = S.reader(cfg, 6, sights(6, window, 0)["no_memory"])
        assert abs(table_accuracy(train, test, window) - stated) < 0.02, window
    assert S.reader(cfg, 6, np.zeros(6, int)) == 1


def test_mistakes_are_one_line():
    for wrong, message in ((dict(group="S6"), "state_tracking.group is 'S6'"), (dict(group="Z1"), "is 'Z1'"),
                           (dict(moves="swap"), "swaps"), (dict(group="A5", moves="swaps"), "which A5 does not have")):
        with pytest.raises(UserError, match=message):
            S.StateTrackingConfig(**wrong)


# ------------------------------------------------------------------------------------------------------------- the suite

@dataclass(frozen=True)
class AutomatonConfig:
    """Parity, which is forgotten behind `holds` tokens."""

    holds: int
    vocabulary: int = 2
    call_tokens: int = 1
    reach: int = 1
    segment: int = 0


def specs(cfg):
    return {}


def state_specs(cfg, batch):
    number = P.StateSpec((batch,), ("batch",), jnp.int32)
    return {"parity": number, "count": number}


def init_state(params, cfg, batch):
    return P.zero_state(state_specs(cfg, batch))


def run(params, state, ids, cfg, call: Call = Call()):  # noqa: B008
    real = jnp.arange(ids.shape[1])[None] < (P.full_length(ids) if call.length is None else call.length)[:, None]
    sums = (state["parity"][:, None] + jnp.cumsum(ids * real, 1)) % 2
    count = state["count"][:, None] + jnp.cumsum(real, 1, dtype=jnp.int32)
    said = jnp.where(count <= cfg.holds, sums, 1 - sums)
    return jax.nn.one_hot(said, 2), {"parity": sums[:, -1], "count": count[:, -1]}, {}


@pytest.mark.parametrize("holds", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_suite_finds_where_an_automaton_stops(tmp_path, holds):
    experiment = SimpleNamespace(data=TaskConfig(S.StateTrackingConfig(), 8, eval_samples=10), call_tokens=4,
                                 evaluation=EvaluationConfig(4, lengths=(1, 2, 4)))
    lines = []
    mesh, model = sharding.make_mesh(1, 1, 1), bind(AutomatonConfig(holds))
    found = dict(suite_named("state_tracking").run(experiment, model, {}, mesh, tmp_path, lines.append))
    assert [found[f"eval/whole_rows_at_{n}"] for n in (8, 16, 32)] == [1, 1, float(holds > 32)]
    assert found["eval/first_lost"] == min(holds, 32) and found["eval/accuracy"] == 1
    assert found["baseline/chance"] == 0.5 and (tmp_path / "state_tracking.png").exists()
