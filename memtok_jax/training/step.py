"""One update: the carry of the batch before, calls, parts of the batch, gradient, AdamW.

The batch is cut twice. Its rows are taken in microbatches whose gradients are added; inside one microbatch the
sequence is a scan over groups of calls (`backpropagation.plan`), and the gradient flows within a group only. Both cuts
are the same code for one part and for many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from memtok_jax import data, sharding
from memtok_jax import params as pr
from memtok_jax.compiler import options
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.training import average, backpropagation, losses
from memtok_jax.training.experiment import Experiment, OptimizerConfig
from memtok_jax.training.optimizer import held, make_optimizer, schedule

Tree = pr.Tree


@dataclass(frozen=True)
class Update:
    """What an update is made of; hashable. `update_of` takes it from an experiment once.

    model: functions bound to their config.
    optimizer: rule and learning rate.
    loss: one of `losses.LOSSES`.
    batch: B, rows over all devices and microbatches.
    microbatches: number of parts of the rows, one after the other.
    call_tokens: tokens of one call of the model.
    gradient: how far it flows back through the calls, see `backpropagation.py`.
    remat: each call is computed again in the backward pass.
    """

    model: Model
    optimizer: OptimizerConfig
    loss: str
    batch: int
    microbatches: int
    call_tokens: int
    gradient: str
    remat: bool


def update_of(experiment: Experiment, model: Model) -> Update:
    """The update of an experiment, with its model bound."""
    t = experiment.training
    return Update(model, experiment.optimizer, t.loss, t.batch, t.microbatches, experiment.call_tokens, t.gradient,
                  t.remat == "call")


# Training segments are whole and begin at the borders of the model's own units.
TRAINING_CALL = Call(whole=True, training=True)


class TrainState(NamedTuple):
    """Everything that the next update depends on, apart from the data."""

    step: jax.Array       # i32[], updates done
    skipped: jax.Array    # i32[], the last so many updates were left out because they were not finite
    params: Tree
    optimizer: Tree
    carry: Tree           # the memory after the batch before, `batch` rows
    average: Tree         # of the parameters over the updates; without arrays if there is none, see `average.py`


class Batch(NamedTuple):
    """One batch on the devices."""

    inputs: jax.Array     # [B, T, ...]: token ids i32[B, T], or images u8[B, 1, rows, columns, C], a sequence of one
    targets: jax.Array    # i32[B, T] or f32[B, T, n], see `memtok_jax/data/__init__.py`
    start: jax.Array      # bool[B], the row begins a new stream; or bool[B, N], each of N equal parts of the row does


# ------------------------------------------------------------------------------------------------------- state

def init_train_state(update: Update, key: jax.Array) -> TrainState:
    """Initial parameters, optimizer state and carry; call it under `jit` with `state_shardings`."""
    params = update.model.init(key)
    optimizer = make_optimizer(update.optimizer, update.model.specs()).init(params)
    return TrainState(jnp.int32(0), jnp.int32(0), params, optimizer, update.model.init_state(params, update.batch),
                      average.begin(update.optimizer.ema, params))


def state_shardings(update: Update, mesh: Mesh) -> TrainState:
    """A sharding for every array of the train state.

    Raises UserError naming the array and both numbers where a size does not divide.
    """
    specs = update.model.specs()
    whole = sharding.replicated(mesh)
    params = sharding.shardings(mesh, specs)
    carry = sharding.shardings(mesh, update.model.state_specs(update.batch))
    tx = make_optimizer(update.optimizer, specs)
    moments = jax.eval_shape(tx.init, pr.abstract(specs))
    left_out = lambda node: isinstance(node, optax.MaskedNode)  # the moments of parameters that do not learn
    optimizer = optax.tree_map_params(tx, lambda old, s: old if left_out(old) else s, moments, params,
                                      transform_non_params=lambda _: whole, is_leaf=left_out)
    return TrainState(whole, whole, params, optimizer, carry, params if update.optimizer.ema else average.OFF)


def abstract_state(update: Update, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the train state; nothing is allocated."""
    shapes = jax.eval_shape(lambda key: init_train_state(update, key), jax.random.key(0))
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes,
                        state_shardings(update, mesh))


def abstract_batch(update: Update, source: Any, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of one batch. source: config of the data."""
    def rows(shape, dtype):
        return jax.ShapeDtypeStruct((update.batch, *shape), dtype, sharding=sharding.rows(mesh))

    numbers = data.targets(source) in ("shares", "values")
    targets = rows((source.sequence, update.model.vocabulary), jnp.float32) if numbers else rows((source.sequence,), jnp.int32)
    parts = data.parts(source)
    return Batch(rows(*data.input_shape(source)), targets, rows((parts,) if parts > 1 else (), jnp.bool_))


# -------------------------------------------------------------------------------------------------- cut and join

def split_rows(x: jax.Array, n: int, axis: int) -> jax.Array:
    """[..., B, ...] -> [n, ..., B/n, ...]. Part i has the rows i, i + n, i + 2n, ...

    Strided, so that every device keeps its own rows in each part.
    """
    shape = x.shape[:axis] + (x.shape[axis] // n, n) + x.shape[axis + 1:]
    return jnp.moveaxis(x.reshape(shape), axis + 1, 0)


def join_rows(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `split_rows`; axis is that of the batch in the result."""
    x = jnp.moveaxis(x, 0, axis + 1)
    return x.reshape(x.shape[:axis] + (x.shape[axis] * x.shape[axis + 1],) + x.shape[axis + 2:])


def split_time(x: jax.Array, segments: int) -> jax.Array:
    """[B, T, ...] -> [segments, B, T / segments, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], segments, x.shape[1] // segments, *x.shape[2:]), 1, 0)


def starts(start: jax.Array, calls: int) -> jax.Array:
    """bool[B], or bool[B, N] for N equal parts of a row -> bool[calls, B]: the rows that begin a new stream at each call."""
    parts = start.reshape(start.shape[0], -1)
    return jnp.zeros((calls, start.shape[0]), bool).at[::calls // parts.shape[1]].set(parts.T)


# ------------------------------------------------------------------------------------------------------ gradient

def begin(carry: Tree, start_B: jax.Array, initial: Tree, specs: Tree) -> Tree:
    """The carry at the beginning of a group: no gradient enters it but that of the first carry.

    carry: already the first carry in the rows that begin a new stream (`first_carry`).
    initial: what `init_state` makes of the parameters of this update. Derived leaves come from it, and rows that begin take its
        gradient. Their values stand in `carry`, because the rows at hand are a part of the batch and `initial` counts them from 0.
        So the first carry may depend on its row, but its derivative by the parameters may not.
    specs: of the carry.
    """
    fixed = jax.lax.stop_gradient(carry)
    begun = pr.select_rows(start_B, jax.tree.map(_with_gradient, fixed, initial), fixed, specs)
    return pr.renew(begun, initial, specs)


def _with_gradient(value: jax.Array, source: jax.Array) -> jax.Array:
    """`value`, with the gradient of `source`."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    return value + (source - jax.lax.stop_gradient(source))


def first_carry(params: Tree, carry: Tree, start_B: jax.Array, model: Model) -> Tree:
    """The carry of all rows of the batch, with the first carry in the rows that begin a new stream."""
    rows = start_B.shape[0]
    return pr.reset(carry, start_B, model.init_state(params, rows), model.state_specs(rows))


def restart(carry: Tree, start_B: jax.Array, first: Tree, initial: Tree, specs: Tree) -> Tree:
    """The carry with the values of `first` and the gradient of `initial` in the rows that begin.

    first: the first carry of these rows, which need not be numbered from 0.
    """
    return pr.select_rows(start_B, jax.tree.map(_with_gradient, jax.lax.stop_gradient(first), initial), carry, specs)


def cut_gradient(carry: Tree, cut: jax.Array, initial: Tree, specs: Tree) -> Tree:
    """The same carry, without gradient where `cut` (bool[]) is True; derived leaves keep theirs. initial, specs: as in `begin`."""
    stopped = pr.renew(jax.lax.stop_gradient(carry), initial, specs)
    return jax.tree.map(lambda a, b: jnp.where(cut, a, b), stopped, carry)


def group_loss(params: Tree, carry: Tree, first: Tree | None, start_NB: jax.Array, inputs_NBT: jax.Array, targets_NBT: jax.Array,
               scored_N: jax.Array, cut_N: jax.Array | None, total: jax.Array, share: float,
               update: Update) -> tuple[jax.Array, tuple[Tree, losses.Sums]]:
    """Loss of N calls through which the gradient flows, unless it is cut.

    carry: from the call before; no gradient enters it.
    first: the first carry of these rows, for streams that begin at any call. None: they begin at call 0 only, and `carry` is the
        first carry in those rows already.
    start_NB: bool[N, B], rows that begin a new stream at each call.
    scored_N: bool[N], the calls whose loss counts.
    cut_N: bool[N], the gradient is cut before that call. None: nowhere.
    total: scored positions of the whole batch. The loss is divided by it.
    share: weight of the model's own loss in one call, which is a mean over the rows at hand: the fraction that a call of these
        rows is of all rows and calls of the batch.
    Returns the loss and (carry after the last call, totals); the totals hold the model's own loss apart.
    """
    specs, params = update.model.state_specs(start_NB.shape[1]), held(params, update.optimizer, update.model.specs())
    initial = update.model.init_state(params, start_NB.shape[1])

    def one_call(carry, x):
        start, inputs, targets, scored, cut = x
        carry = carry if cut is None else cut_gradient(carry, cut, initial, specs)
        carry = carry if first is None else restart(carry, start, first, initial, specs)
        logits, carry, stats = update.model.run(params, carry, inputs, TRAINING_CALL)
        own = losses.auxiliary_loss(stats) * jnp.where(scored, share, 0)
        return carry, losses.totals(logits, targets, update.loss)._replace(auxiliary=own)

    one_call = jax.checkpoint(one_call, prevent_cse=False) if update.remat else one_call
    carry = begin(carry, start_NB[0] & (first is None), initial, specs)
    carry, sums = jax.lax.scan(one_call, carry, (start_NB, inputs_NBT, targets_NBT, scored_N, cut_N))
    sums = jax.tree.map(lambda s: s.sum(), sums)
    return sums.nats / total + sums.auxiliary, (carry, sums)


def carries_before(params: Tree, carry: Tree, first: Tree | None, start_NB: jax.Array, inputs_NBT: jax.Array,
                   model: Model) -> tuple[Tree, Tree]:
    """A pass without gradient: (carry after the last call, carries that enter each call, stacked [N, ...])."""
    rows = inputs_NBT.shape[1]
    specs = model.state_specs(rows)

    def one_call(carry, x):
        start, inputs = x
        carry = carry if first is None else pr.reset(carry, start, first, specs)
        return model.run(params, carry, inputs, TRAINING_CALL)[1], carry

    return jax.lax.scan(one_call, pr.renew(carry, model.init_state(params, rows), specs), (start_NB, inputs_NBT))


def scored_positions(batch: Batch) -> jax.Array:
    """Number of positions of the batch that are scored, at least 1: f32[]."""
    return jnp.maximum(losses.is_scored(batch.targets).sum(dtype=jnp.float32), 1.0)


def batch_gradient(params: Tree, carry: Tree, batch: Batch, update: Update) -> tuple[Tree, Tree, losses.Sums]:
    """Gradient of the mean loss over the scored positions of the batch.

    Each part of the mesh's data axis computes the gradient of its own rows, and one sum at the end joins them. The compiler,
    left to itself, would take that sum in every iteration of the inner loops.
    Returns the gradient, the carry after the batch, and the totals.
    """
    total, first = scored_positions(batch), None
    if batch.start.ndim == 1:
        carry = first_carry(params, carry, batch.start, update.model)
    else:
        first = update.model.init_state(params, update.batch)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return _part_gradient(params, carry, first, batch, total, update)
    rows = pr.map_rows(lambda x, axis: PartitionSpec(*[None] * axis, "data"), update.model.state_specs(update.batch), carry)

    def part(params, carry, first, batch, total):
        grads, carry, sums = _part_gradient(params, carry, first, batch, total, update)
        return jax.lax.psum(grads, "data"), carry, jax.lax.psum(sums, "data")

    whole, split = PartitionSpec(), PartitionSpec("data")
    specs = (whole, rows, None if first is None else rows, split, whole)
    return jax.shard_map(part, in_specs=specs, out_specs=(whole, rows, whole),
                         axis_names={"data"}, check_vma=False)(params, carry, first, batch, total)


def _part_gradient(params: Tree, carry: Tree, first: Tree | None, batch: Batch, total: jax.Array,
                   update: Update) -> tuple[Tree, Tree, losses.Sums]:
    """`batch_gradient` of some of the rows. first: as in `group_loss`. total: scored positions of all rows."""
    n, calls = update.microbatches, batch.targets.shape[1] // update.call_tokens
    plan = backpropagation.plan(update.gradient, calls)
    specs, state_specs = update.model.specs(), update.model.state_specs(update.batch)
    share = batch.start.shape[0] / n / (update.batch * calls)

    def group(outer, carry, first, x):
        grads, sums = outer
        # Each device adds up its own slice of a gradient only: that of its slice of the parameter.
        more, (carry, s) = jax.grad(group_loss, has_aux=True)(params, carry, first, *x, total, share, update)
        return (sharding.constrain_tree(jax.tree.map(jnp.add, grads, more), specs), jax.tree.map(jnp.add, sums, s)), carry

    def microbatch(outer, x):
        carry, first, inputs, targets, start = x
        inputs, targets = (split_time(x, calls) for x in (inputs, targets))
        start = starts(start, calls)
        xs = _groups(plan, start, inputs, targets)
        if plan.chained:
            (outer, carry), _ = jax.lax.scan(lambda both, x: (group(*both, first, x), None), (outer, carry), xs)
            return outer, carry
        carry, before = carries_before(params, carry, first, start, inputs, update.model)
        before = jax.tree.map(lambda c: c[plan.index[:, 0]], before)
        outer, _ = jax.lax.scan(lambda outer, x: (group(outer, x[0], first, x[1])[0], None), outer, (before, xs))
        return outer, carry

    zero = (jax.tree.map(jnp.zeros_like, params), losses.Sums(*(jnp.float32(0),) * 4))
    parts = [split_rows(x, n, 0) for x in batch]
    split = lambda carry: pr.map_rows(lambda x, axis: split_rows(x, n, axis), state_specs, carry)
    (grads, sums), carries = jax.lax.scan(microbatch, zero, (split(carry), None if first is None else split(first), *parts))
    return grads, pr.map_rows(join_rows, state_specs, carries), sums


def _groups(plan: backpropagation.Plan, start_NB: jax.Array, inputs_NBT: jax.Array, targets_NBT: jax.Array) -> tuple:
    """What `group_loss` takes for each of G groups of S calls: starts [G, S, B], inputs and targets [G, S, B, T], scored, cut."""
    scored = jnp.asarray(plan.scored)
    return (start_NB[plan.index], inputs_NBT[plan.index], losses.keep(targets_NBT[plan.index], scored), scored,
            jnp.asarray(plan.cut) if plan.cut.any() else None)


# -------------------------------------------------------------------------------------------------------- update

def train_step(state: TrainState, batch: Batch, update: Update) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    If the loss or the gradient is not finite, parameters, optimizer and carry stay as they are (an average counts the parameters
    once more). If only the new carry is not finite, the update counts, and the streams concerned begin anew.
    Returns the new state and float32 scalars: loss (of the predictions alone), auxiliary_loss (the model's own), accuracy,
    gradient_norm, learning_rate, tokens, skipped (updates in a row that were left out), restarted (streams that began anew
    because their carry was not finite).
    """
    tx = make_optimizer(update.optimizer, update.model.specs())
    grads, carry, sums = batch_gradient(state.params, state.carry, batch, update)
    norm = optax.tree.norm(grads)
    count = jnp.maximum(sums.count, 1.0)
    rate = jnp.asarray(schedule(update.optimizer)(state.step), jnp.float32)
    direction, optimizer = tx.update(grads, state.optimizer, state.params)
    params = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction)
    finite = jnp.isfinite(sums.nats) & jnp.isfinite(sums.auxiliary) & jnp.isfinite(norm)
    params, optimizer, carry = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, optimizer, carry), state[2:5])
    carry, restarted = restart_bad_streams(params, carry, update)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = {"loss": sums.nats / count, "auxiliary_loss": sums.auxiliary, "accuracy": sums.correct / count, "gradient_norm": norm,
               "learning_rate": rate, "tokens": sums.count, "skipped": skipped.astype(jnp.float32), "restarted": restarted}
    mean = average.advance(state.average, params, update.optimizer.ema, state.step + 1)
    return TrainState(state.step + 1, skipped, params, optimizer, carry, mean), metrics


def restart_bad_streams(params: Tree, carry: Tree, update: Update) -> tuple[Tree, jax.Array]:
    """The carry with the initial one in the rows that hold a number that is not finite, and how many they are: f32[]."""
    specs = update.model.state_specs(update.batch)
    bad_B = ~finite_rows(carry, specs)
    fresh = lambda carry: pr.reset(carry, bad_B, update.model.init_state(params, update.batch), specs)
    return jax.lax.cond(bad_B.any(), fresh, lambda carry: carry, carry), bad_B.sum(dtype=jnp.float32)


def finite_rows(carry: Tree, specs: Tree) -> jax.Array:
    """bool[B]: the rows of a carry whose numbers are all finite."""
    rows = pr.map_rows(lambda x, axis: jnp.isfinite(x).all(tuple(a for a in range(x.ndim) if a != axis)), specs, carry)
    return jnp.stack(jax.tree.leaves(rows)).all(0)


def compile_step(update: Update, mesh: Mesh) -> Callable:
    """The jitted `(state, batch) -> (state, metrics)`; the state is donated. Call it under `jax.set_mesh(mesh)`."""
    return jax.jit(lambda state, batch: train_step(state, batch, update), donate_argnums=0,
                   compiler_options=options(mesh.devices.flat[0].platform),
                   out_shardings=(state_shardings(update, mesh), sharding.replicated(mesh)))
