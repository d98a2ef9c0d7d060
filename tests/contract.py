"""What every memory and every model must keep; the tables stand in `test_contract_*.py`, one worker's work each.

1 any split of a stream gives the same  2 causal  3 the state keeps its structure  4 rows are independent
5 gradients reach every parameter  6 switched off = the plain model, exactly  7 sharded = unsharded
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from neural_cases import assert_close, assert_equal, jit, random_params

from memtok_jax import params as P
from memtok_jax import sharding

B, T = 4, 12


@dataclass(frozen=True)
class Case:
    """One mechanism.

    head, tail: tokens in front of and behind each output. dead: parameters that no gradient reaches, by
    the mathematics.
    """

    apply: Callable            # (params, state, x, length) -> (y, state)
    specs: Callable            # () -> tree
    state_specs: Callable      # (batch) -> tree
    init_state: Callable       # (params, batch) -> state
    inputs: Callable           # (seed, tokens) -> x
    train: Callable            # (params, state, x) -> (y, state): a training call
    head: int = 0
    tail: int = 0
    dead: tuple[str, ...] = ()


def memory_case(module: ModuleType, cfg: Any, **options) -> Case:
    """A memory: its module's functions with their config."""
    tokens = lambda seed, n: jnp.asarray(np.random.default_rng(seed).standard_normal((B, n, 8)), jnp.float32)
    return Case(lambda p, s, x, n: module.apply(p, s, x, cfg, n), lambda: module.specs(cfg), lambda b: module.state_specs(cfg, b),
                lambda p, b: module.init_state(p, cfg, b), tokens, lambda p, s, x: module.apply(p, s, x, cfg), **options)


def model_case(model: Any, **options) -> Case:
    """A bound model that reads tokens."""
    ids = lambda seed, n: jnp.asarray(np.random.default_rng(seed).integers(model.vocabulary, size=(B, n)), jnp.int32)
    return Case(lambda p, s, x, n: model.apply(p, s, x, n), model.specs, model.state_specs, model.init_state, ids,
                lambda p, s, x: model.apply(p, s, x, whole=True), **options)


def whole(length: int = T) -> jax.Array:
    """A length that says all tokens are real."""
    return jnp.full((B,), length, jnp.int32)


class Checks:
    """The items for one case; programs and the material are made once and shared."""

    def __init__(self, case: Case):
        self.case = case
        self.apply = jit(case.apply)
        self.params = random_params(case.specs(), 0, np.float32)
        self.initial = case.init_state(self.params, B)
        self.x = case.inputs(1, T)
        # A state that has seen a few tokens, other numbers of them in each row.
        self.state = self.apply(self.params, self.initial, case.inputs(2, T), jnp.array([7, 5, 6, 12], jnp.int32))[1]

    def run(self, state, x, length=None):
        """Outputs of the tokens themselves, and the state."""
        y, state = self.apply(self.params, state, x, whole(x.shape[1]) if length is None else length)
        return y[:, self.case.head:y.shape[1] - self.case.tail], state

    def any_split(self) -> None:
        """In one call; in single tokens; in ragged calls whose padding differs from row to row and holds other tokens."""
        y, end = self.run(self.state, self.x)
        single, ys = self.state, []
        for t in range(T):
            part, single = self.run(single, self.x[:, t:t + 1])
            ys.append(part)
        assert_close((jnp.concatenate(ys, 1), single), (y, end), 3e-5)
        cuts, place = np.array([[3, 12], [7, 12], [0, 12], [12, 12]]), np.zeros(B, int)
        ragged, got = self.state, np.zeros(y.shape, y.dtype)
        for stop in cuts.T:
            index = np.minimum(place[:, None] + np.arange(T), T - 1)
            part, ragged = self.run(ragged, P.take_rows(self.x, jnp.asarray(index)), jnp.asarray(stop - place, jnp.int32))
            for b in range(B):
                got[b, place[b]:stop[b]] = part[b, :stop[b] - place[b]]
            place = stop
        assert_close((got, ragged), (np.asarray(y), end), 3e-5)

    def causal(self) -> None:
        """A changed last third leaves the outputs before it as they were, bit for bit."""
        other = jnp.concatenate([self.x[:, :8], self.x[:, 8:][:, ::-1]], axis=1)
        y, changed = self.run(self.state, self.x)[0], self.run(self.state, other)[0]
        assert_equal(y[:, :8], changed[:, :8])
        assert np.any(np.asarray(y[:, 8:]) != np.asarray(changed[:, 8:]))

    def structure(self) -> None:
        """Shapes and dtypes of `state_specs`, at the start and later; one compilation; empty calls change nothing."""
        specs = P.abstract(self.case.state_specs(B))
        _, end = self.run(self.state, self.x)
        for tree in (self.initial, self.state, end):
            chex.assert_trees_all_equal_structs(tree, specs)
            chex.assert_trees_all_equal_shapes_and_dtypes(tree, specs)
        assert all(not leaf.weak_type for leaf in jax.tree.leaves(end))
        before = self.apply._cache_size()
        self.run(end, self.x)
        assert self.apply._cache_size() == before
        y, same = self.run(end, self.x[:, :0])
        assert y.shape[:2] == (B, 0)
        assert_equal(same, end)
        assert_equal(self.run(end, self.x, whole(0))[1], end)

    def independent_rows(self) -> None:
        """Another row's tokens, or its reset, change no bit of this row."""
        y, end = self.run(self.state, self.x)
        specs = self.case.state_specs(B)
        reset = P.reset(self.state, jnp.array([False, True, False, False]), self.initial, specs)
        other_y, other_end = self.run(reset, self.x.at[1].set(self.x[0]))
        keep = np.array([0, 2, 3])
        rows = lambda tree, which=keep: P.map_rows(lambda s, axis: jnp.take(s, which, axis), specs, tree)
        assert_equal(rows(reset), rows(self.state))
        assert_equal((other_y[keep], rows(other_end)), (y[keep], rows(end)))
        fresh_y, fresh_end = self.run(self.initial, self.x.at[1].set(self.x[0]))
        assert_equal((other_y[1], rows(other_end, np.array([1]))), (fresh_y[1], rows(fresh_end, np.array([1]))))

    def gradients(self) -> None:
        """Through two calls, so that what is written in the first can be read in the second."""
        def loss(params):
            state = self.case.init_state(params, B)

            def call(state, x):
                y, state = self.case.train(params, state, x)
                return state, (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

            return jax.lax.scan(call, state, jnp.stack([self.x, self.x[:, ::-1]]))[1].sum()

        gradient = jit(jax.grad(loss))(self.params)
        dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient)
                if g.size and not np.abs(g).max() > 1e-7]
        # Where mathematics gives zero, rounding may leave a little.
        assert set(dead) <= set(self.case.dead), f"no gradient reaches {dead}"
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))

    def sharded(self) -> str:
        """Rows over `data`, heads over `tensor`, on four of eight devices; the text of the compiled program."""
        mesh, specs = sharding.make_mesh(2, 1, 2), self.case.state_specs(B)
        place = lambda tree, specs: jax.device_put(tree, sharding.shardings(mesh, specs))
        with jax.set_mesh(mesh):
            step = jit(self.case.apply, out_shardings=(None, sharding.shardings(mesh, specs)))
            args = (place(self.params, self.case.specs()), place(self.state, specs), jax.device_put(self.x, sharding.rows(mesh)),
                    jax.device_put(whole(), sharding.rows(mesh)))
            y, end = step(*args)
            text = step.lower(*args).compile().as_text()
        assert_close((y, end), self.apply(self.params, self.state, self.x, whole()), 5e-5)  # float32 sums in another order
        return text
