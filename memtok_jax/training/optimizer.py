"""The optimizer: clipping, AdamW or LAMB, and the schedule of the learning rate. The specs say which parameters decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from memtok_jax import params as pr
from memtok_jax.config import UserError
from memtok_jax.training.experiment import OptimizerConfig


def schedule(cfg: OptimizerConfig) -> optax.Schedule:
    """Learning rate of update n (from 0): linear up to the peak, then as `cfg.schedule` says."""
    peak = cfg.learning_rate
    if cfg.warmup_steps == cfg.steps:
        return optax.linear_schedule(peak / cfg.steps, peak, max(cfg.steps - 1, 1))
    # Update 0 already moves: the ramp starts at one part of the peak, not at zero.
    start = peak / cfg.warmup_steps if cfg.warmup_steps else peak
    if cfg.schedule != "cosine":
        warmup = optax.linear_schedule(start, peak, cfg.warmup_steps)
        fall = optax.linear_schedule(peak, cfg.final_fraction * peak, cfg.decay_steps)  # of 0 updates: the peak
        return optax.join_schedules([warmup, optax.constant_schedule(peak), fall], [cfg.warmup_steps, cfg.steps - cfg.decay_steps])
    return optax.warmup_cosine_decay_schedule(start, peak, cfg.warmup_steps, cfg.steps, cfg.final_fraction * peak)


def make_optimizer(cfg: OptimizerConfig, specs: pr.Tree) -> optax.GradientTransformation:
    """AdamW or LAMB over parameters described by `specs`, without the learning rate: what an update subtracts, before it is scaled.

    The gradient is clipped first. The update itself multiplies by the learning rate, because its schedule counts all updates, those
    that were left out included. A parameter whose rate is 0 has no moments.
    """
    rates, moments = rates_of(cfg, specs), optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.epsilon)
    rest = (optax.add_decayed_weights(cfg.weight_decay, pr.decay_mask(specs)),
            *([scale_by_trust_ratio(specs)] if cfg.rule == "lamb" else []))
    if not cfg.rates:  # the chain as it always was, so that the state of older runs fits
        return optax.chain(clip(cfg.clip_norm, specs), moments, *rest)
    learns = jax.tree.structure(specs, is_leaf=pr.is_spec).unflatten(rate > 0 for rate in rates)
    return optax.chain(scale_each([float(rate > 0) for rate in rates]), clip(cfg.clip_norm, specs), optax.masked(moments, learns),
                       *rest, scale_each(rates))


def held(params: pr.Tree, cfg: OptimizerConfig, specs: pr.Tree) -> pr.Tree:
    """The parameters, without a gradient where the rate is 0: nothing is computed for them in the backward pass."""
    if not cfg.rates:
        return params
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten(x if rate else jax.lax.stop_gradient(x) for x, rate in zip(leaves, rates_of(cfg, specs), strict=True))


def rates_of(cfg: OptimizerConfig, specs: pr.Tree) -> list[float]:
    """The factor of each parameter's learning rate, in the order of the leaves. Raises UserError for a text that no path holds."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(specs, is_leaf=pr.is_spec)]
    for text, _ in cfg.factors:
        if not any(text in path for path in paths):
            raise UserError(f"optimizer.rates names {text!r}, which is in no parameter's path, such as {paths[0]}")
    return [next((factor for text, factor in reversed(cfg.factors) if text in path), 1.0) for path in paths]


def scale_each(factors: list[float]) -> optax.GradientTransformation:
    """Multiply each leaf by its factor; with 0 it is zero, even if it was not finite."""

    def update(updates, state, params=None):
        leaves, tree = jax.tree.flatten(updates)
        return tree.unflatten(jnp.zeros_like(x) if f == 0 else x * f for x, f in zip(leaves, factors, strict=True)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip(bound: float, specs: pr.Tree) -> optax.GradientTransformation:
    """Shrink the gradient to a global norm of at most `bound`: one norm for auxiliary parameters, one for all others.

    With one norm for both, a loss that concerns only the compression of a memory would shorten every other step.
    """
    apart = [spec.auxiliary for spec in _leaves(specs)]
    whole = optax.clip_by_global_norm(bound)

    def update(updates, state, params=None):
        leaves, tree = jax.tree.flatten(updates)
        for group in (False, True):
            mine = [i for i, auxiliary in enumerate(apart) if auxiliary == group]
            for i, clipped in zip(mine, whole.update([leaves[i] for i in mine], state)[0], strict=True):
                leaves[i] = clipped
        return tree.unflatten(leaves), state

    return optax.GradientTransformation(whole.init, update)


def _leaves(specs: pr.Tree) -> list[pr.ParamSpec]:
    return jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, pr.ParamSpec))


def scale_by_trust_ratio(specs: pr.Tree) -> optax.GradientTransformation:
    """LAMB (arXiv 1904.00962): the step u of each parameter w becomes |w| / |u| u; if w or u is zero, it stays u.

    It differs from optax's function of the same name in two points, on which published recipes rest: each layer of a stack has a
    ratio of its own, and parameters without decay (norms, biases, tokens) keep their step, as in the fused LAMB of DeiT III.
    """
    known = _leaves(specs)

    def update(updates, state, params):
        leaves, tree = jax.tree.flatten(updates)
        return tree.unflatten(map(_trusted, leaves, jax.tree.leaves(params), known)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _trusted(step: jax.Array, w: jax.Array, spec: pr.ParamSpec) -> jax.Array:
    if not spec.decayed:
        return step
    axes = tuple(range(int(spec.axes[0] == "layers"), w.ndim))
    of_w, of_step = (jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axes, keepdims=True)) for x in (w, step))
    ratio = jnp.where((of_w > 0) & (of_step > 0), of_w / jnp.where(of_step > 0, of_step, 1.0), 1.0)
    return (step * ratio).astype(step.dtype)
