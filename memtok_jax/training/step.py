"""One update: the carry of the batch before, segments, parts of the batch, gradient, AdamW.

The batch is cut twice. Its rows are taken in microbatches whose gradients are added; inside one microbatch the
sequence is a scan over groups of segments (`backpropagation.plan`), and the gradient flows within a group only. Both cuts
are the same code for one part and for many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from memtok_jax import data, sharding
from memtok_jax import params as pr
from memtok_jax.compiler import options
from memtok_jax.training import backpropagation, losses
from memtok_jax.training.experiment import Experiment, functions_of
from memtok_jax.training.optimizer import make_optimizer, schedule

Tree = pr.Tree


class TrainState(NamedTuple):
    """Everything that the next update depends on, apart from the data."""

    step: jax.Array       # i32[], updates done
    skipped: jax.Array    # i32[], the last so many updates were left out because they were not finite
    params: Tree
    optimizer: Tree
    carry: Tree           # the memory after the batch before, `batch` rows


class Batch(NamedTuple):
    """One batch on the devices."""

    inputs: jax.Array     # [B, T, ...]: token ids i32[B, T], or images u8[B, 1, rows, columns, C], a sequence of one
    targets: jax.Array    # i32[B, T] or f32[B, T, n], see `memtok_jax/data/__init__.py`
    start: jax.Array      # bool[B], the row begins a new stream


# ------------------------------------------------------------------------------------------------------- state

def init_train_state(experiment: Experiment, key: jax.Array) -> TrainState:
    """Initial parameters, optimizer state and carry; call it under `jit` with `state_shardings`."""
    functions, model = functions_of(experiment.model), experiment.model
    specs = functions.specs(model)
    params = pr.init_params(specs, key)
    optimizer = make_optimizer(experiment.optimizer, specs).init(params)
    carry = functions.init_state(params, model, experiment.training.batch)
    return TrainState(jnp.int32(0), jnp.int32(0), params, optimizer, carry)


def state_shardings(experiment: Experiment, mesh: Mesh) -> TrainState:
    """A sharding for every array of the train state.

    Raises ValueError naming the array and both numbers where a size does not divide.
    """
    functions, model = functions_of(experiment.model), experiment.model
    specs = functions.specs(model)
    whole = sharding.replicated(mesh)
    params = sharding.shardings(mesh, specs)
    carry = sharding.shardings(mesh, functions.state_specs(model, experiment.training.batch))
    tx = make_optimizer(experiment.optimizer, specs)
    moments = jax.eval_shape(tx.init, pr.abstract(specs))
    optimizer = optax.tree_map_params(tx, lambda _, s: s, moments, params, transform_non_params=lambda _: whole)
    return TrainState(whole, whole, params, optimizer, carry)


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the train state; nothing is allocated."""
    shapes = jax.eval_shape(lambda key: init_train_state(experiment, key), jax.random.key(0))
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes,
                        state_shardings(experiment, mesh))


def abstract_batch(experiment: Experiment, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of one batch."""
    def rows(shape, dtype):
        return jax.ShapeDtypeStruct((experiment.training.batch, *shape), dtype, sharding=sharding.rows(mesh))

    shape, dtype = data.input_shape(experiment.data)
    tokens, numbers = experiment.data.sequence, data.targets(experiment.data) in ("shares", "values")
    targets = rows((tokens, experiment.model.vocabulary), jnp.float32) if numbers else rows((tokens,), jnp.int32)
    return Batch(rows(shape, dtype), targets, rows((), jnp.bool_))


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


# ------------------------------------------------------------------------------------------------------ gradient

def begin(params: Tree, carry: Tree, start_B: jax.Array, experiment: Experiment) -> Tree:
    """The carry at the beginning of a group: no gradient enters it, and rows that begin a new stream are reset."""
    functions, model = functions_of(experiment.model), experiment.model
    # Values made from parameters are computed anew: they are of this update, and their gradient is not cut.
    carry = functions.refresh(params, jax.lax.stop_gradient(carry), model)
    initial = functions.init_state(params, model, start_B.shape[0])
    return pr.reset(carry, start_B, initial, functions.state_specs(model, start_B.shape[0]))


def cut_gradient(params: Tree, carry: Tree, cut: jax.Array, experiment: Experiment) -> Tree:
    """The same carry, without gradient where `cut` (bool[]) is True; values made from parameters keep theirs."""
    stopped = functions_of(experiment.model).refresh(params, jax.lax.stop_gradient(carry), experiment.model)
    return jax.tree.map(lambda a, b: jnp.where(cut, a, b), stopped, carry)


def group_loss(params: Tree, carry: Tree, start_B: jax.Array, inputs_NBT: jax.Array, targets_NBT: jax.Array,
               scored_N: jax.Array, cut_N: jax.Array | None, total: jax.Array, share: float,
               experiment: Experiment) -> tuple[jax.Array, tuple[Tree, losses.Sums]]:
    """Loss of N segments through which the gradient flows, but where it is cut.

    carry: from the segment before; no gradient enters it. start_B: rows that begin a new stream here. cut_N: bool[N],
    the gradient is cut before that segment (None: nowhere). total: scored positions of the whole batch, by which the loss
    is divided. share: of a segment's rows here in all rows and segments of the batch. scored_N: bool[N], whose own loss counts:
    what the model adds is a mean over rows and segments of the whole batch, and the totals hold it apart. Returns the loss and
    (carry after the last segment, totals).
    """
    functions = functions_of(experiment.model)
    # Training segments are whole and start at the borders of the model's own units, which it may use.
    model = functions.for_training(experiment.model, experiment.segment)

    def segment(carry, x):
        inputs, targets, scored, cut = x
        carry = carry if cut is None else cut_gradient(params, carry, cut, experiment)
        logits, carry, seen = functions.run(params, carry, inputs, model)
        own = losses.auxiliary_loss(seen) * jnp.where(scored, share, 0)
        return carry, losses.totals(logits, targets, experiment.training.loss)._replace(auxiliary=own)

    segment = jax.checkpoint(segment, prevent_cse=False) if experiment.training.remat == "segment" else segment
    carry = begin(params, carry, start_B, experiment)
    carry, sums = jax.lax.scan(segment, carry, (inputs_NBT, targets_NBT, scored_N, cut_N))
    sums = jax.tree.map(lambda s: s.sum(), sums)
    return sums.nats / total + sums.auxiliary, (carry, sums)


def carries_before(params: Tree, carry: Tree, start_B: jax.Array, inputs_NBT: jax.Array,
                   experiment: Experiment) -> tuple[Tree, Tree]:
    """A pass without gradient: (carry after the last segment, carries that enter each segment, stacked [N, ...])."""
    functions = functions_of(experiment.model)
    model = functions.for_training(experiment.model, experiment.segment)
    carry = begin(params, carry, start_B, experiment)
    return jax.lax.scan(lambda c, x: (functions.apply(params, c, x, model)[1], c), carry, inputs_NBT)


def scored_positions(batch: Batch) -> jax.Array:
    """Number of positions of the batch that are scored, at least 1: f32[]."""
    return jnp.maximum(losses.is_scored(batch.targets).sum(dtype=jnp.float32), 1.0)


def batch_gradient(params: Tree, carry: Tree, batch: Batch, experiment: Experiment) -> tuple[Tree, Tree, losses.Sums]:
    """Gradient of the mean loss over the scored positions of the batch.

    Rows on different parts of the mesh's data axis never meet before the end: each part computes its own gradient,
    and one sum joins them. Left to the compiler, the sum would be taken in every turn of the inner loops.
    Returns the gradient, the carry after the batch, and the totals.
    """
    total = scored_positions(batch)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return _part_gradient(params, carry, batch, total, experiment)
    specs = functions_of(experiment.model).state_specs(experiment.model, experiment.training.batch)
    rows = pr.map_rows(lambda x, axis: PartitionSpec(*[None] * axis, "data"), specs, carry)

    def part(params, carry, batch, total):
        grads, carry, sums = _part_gradient(params, carry, batch, total, experiment)
        return jax.lax.psum(grads, "data"), carry, jax.lax.psum(sums, "data")

    whole, split = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(part, in_specs=(whole, rows, split, whole), out_specs=(whole, rows, whole),
                         axis_names={"data"}, check_vma=False)(params, carry, batch, total)


def _part_gradient(params: Tree, carry: Tree, batch: Batch, total: jax.Array,
                   experiment: Experiment) -> tuple[Tree, Tree, losses.Sums]:
    """`batch_gradient` of some of the rows; total: scored positions of all rows."""
    functions, model = functions_of(experiment.model), experiment.model
    n, tokens = experiment.training.microbatches, batch.targets.shape[1]
    plan = backpropagation.plan(experiment.training.gradient, tokens // experiment.segment)
    specs, state_specs = functions.specs(model), functions.state_specs(model, experiment.training.batch)

    # A mean over the rows at hand counts by their share of all rows and segments of the batch.
    share = batch.start.shape[0] / n / (experiment.training.batch * (tokens // experiment.segment))

    def group(outer, carry, x):
        grads, sums = outer
        # Each device adds up its own slice of a gradient only: that of its slice of the parameter.
        more, (carry, s) = jax.grad(group_loss, has_aux=True)(params, carry, *x, total, share, experiment)
        return (sharding.constrain_tree(jax.tree.map(jnp.add, grads, more), specs), jax.tree.map(jnp.add, sums, s)), carry

    def microbatch(outer, x):
        carry, inputs, targets, start = x
        inputs, targets = (split_time(x, plan.scored.sum()) for x in (inputs, targets))
        starts = start[None] & (plan.index[:, :1] == 0)
        scored = jnp.asarray(plan.scored)
        xs = (starts, inputs[plan.index], losses.keep(targets[plan.index], scored), scored,
              jnp.asarray(plan.cut) if plan.cut.any() else None)
        if plan.chained:
            (outer, carry), _ = jax.lax.scan(lambda both, x: (group(*both, x), None), (outer, carry), xs)
            return outer, carry
        carry, before = carries_before(params, carry, start, inputs, experiment)
        before = jax.tree.map(lambda c: c[plan.index[:, 0]], before)
        outer, _ = jax.lax.scan(lambda outer, x: (group(outer, *x)[0], None), outer, (before, xs))
        return outer, carry

    zero = (jax.tree.map(jnp.zeros_like, params), losses.Sums(*(jnp.float32(0),) * 4))
    parts = [split_rows(x, n, 0) for x in batch]
    carries = pr.map_rows(lambda x, axis: split_rows(x, n, axis), state_specs, carry)
    (grads, sums), carries = jax.lax.scan(microbatch, zero, (carries, *parts))
    return grads, pr.map_rows(join_rows, state_specs, carries), sums


# -------------------------------------------------------------------------------------------------------- update

def train_step(state: TrainState, batch: Batch, experiment: Experiment) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. An update with a loss or gradient that is not finite leaves params, optimizer and carry alone.

    Returns the new state and float32 scalars: loss (of the predictions alone), auxiliary_loss (the model's own), accuracy,
    gradient_norm, learning_rate, tokens, skipped.
    """
    tx = make_optimizer(experiment.optimizer, functions_of(experiment.model).specs(experiment.model))
    grads, carry, sums = batch_gradient(state.params, state.carry, batch, experiment)
    norm = optax.tree.norm(grads)
    count = jnp.maximum(sums.count, 1.0)
    rate = jnp.asarray(schedule(experiment.optimizer)(state.step), jnp.float32)
    direction, optimizer = tx.update(grads, state.optimizer, state.params)
    params = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), state.params, direction)
    finite = jnp.isfinite(sums.nats) & jnp.isfinite(sums.auxiliary) & jnp.isfinite(norm)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, optimizer, carry), state[2:])
    skipped = jnp.where(finite, 0, state.skipped + 1)
    metrics = {"loss": sums.nats / count, "auxiliary_loss": sums.auxiliary, "accuracy": sums.correct / count, "gradient_norm": norm,
               "learning_rate": rate, "tokens": sums.count, "skipped": skipped.astype(jnp.float32)}
    return TrainState(state.step + 1, skipped, *kept), metrics


def compile_step(experiment: Experiment, mesh: Mesh) -> Callable:
    """The jitted `(state, batch) -> (state, metrics)`; the state is donated. Call it under `jax.set_mesh(mesh)`."""
    return jax.jit(lambda state, batch: train_step(state, batch, experiment), donate_argnums=0,
                   compiler_options=options(mesh.devices.flat[0].platform),
                   out_shardings=(state_shardings(experiment, mesh), sharding.replicated(mesh)))
