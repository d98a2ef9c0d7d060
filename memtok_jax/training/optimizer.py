"""The optimizer: clipping, AdamW with a decay mask from the parameter specs, and the learning-rate schedule."""

from __future__ import annotations

import optax

from memtok_jax import params as pr
from memtok_jax.training.experiment import OptimizerConfig


def schedule(cfg: OptimizerConfig) -> optax.Schedule:
    """Learning rate of update n (from 0): linear up to the peak, then a cosine to its final fraction."""
    peak = cfg.learning_rate
    if cfg.warmup_steps == cfg.steps:
        return optax.linear_schedule(peak / cfg.steps, peak, max(cfg.steps - 1, 1))
    # Update 0 already moves: the ramp starts at one part of the peak, not at zero.
    start = peak / cfg.warmup_steps if cfg.warmup_steps else peak
    return optax.warmup_cosine_decay_schedule(start, peak, cfg.warmup_steps, cfg.steps, cfg.final_fraction * peak)


def make_optimizer(cfg: OptimizerConfig, specs: pr.Tree) -> optax.GradientTransformation:
    """AdamW over parameters described by `specs`, before the learning rate: the direction in which to go down.

    The gradient is clipped to a global norm first. The step multiplies by minus the learning rate itself, so that
    the schedule follows the number of the update also where an update was left out.
    """
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm),
                       optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.epsilon),
                       optax.add_decayed_weights(cfg.weight_decay, pr.decay_mask(specs)))
