"""Dynamic evaluation: the weights of a trained model go on learning from the text that is being scored (Krause et al.,
arXiv 1709.07432; Mikolov et al. 2010 for recurrent networks).

    score the tokens of a call with the weights theta
    g      = gradient of their mean loss
    theta <- theta - rate g                                                       "sgd"
    theta <- theta - rate g / (sqrt(MS) + epsilon) + decay (theta_0 - theta) R     "rms"

MS is the mean square of each weight's gradient over training data, fixed; R is its root over the mean root of all weights, at
most 1 / decay. Every token is scored before it is learned from. It is the peer of a memory that learns at test time: that memory
writes a few fast weights by a learned rule, this writes all weights by the rule of training, and its state is a second copy of the
model.

No gradient flows into the carry of earlier calls. The parts of the carry that follow from the weights follow the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.compiler import options
from memtok_jax.evaluation.options import DynamicConfig
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model
from memtok_jax.numerics import target_nats
from memtok_jax.training.losses import IGNORE
from memtok_jax.training.step import begin


class Rule(NamedTuple):
    """How a gradient becomes a step.

    root: tree like the parameters, the root of MS; None is "sgd". rate, decay, epsilon: f[].
    """

    root: P.Tree | None
    rate: jax.Array
    decay: jax.Array
    epsilon: jax.Array


class Stream(NamedTuple):
    """What goes from one call to the next: the weights as they are now, and the carry."""

    params: P.Tree
    carry: P.Tree


def loss_of(params: P.Tree, carry: P.Tree, inputs: jax.Array, targets: jax.Array, start_B: jax.Array, length_B: jax.Array,
            model: Model) -> tuple[jax.Array, tuple[jax.Array, P.Tree]]:
    """Mean loss over the scored tokens of a call, i32[B, T]: (nats, (nats of each token [B, T], carry))."""
    rows = len(inputs)
    specs, initial = model.state_specs(rows), model.init_state(params, rows)
    carry = begin(P.reset(carry, start_B, initial, specs), start_B, initial, specs)
    logits, carry, _ = model.run(params, carry, inputs, Call(length=length_B))
    scored = targets != IGNORE
    nats = jnp.where(scored, target_nats(logits, targets)[0], 0)
    return nats.sum() / jnp.maximum(scored.sum(), 1), (nats, carry)


def stepped(params: P.Tree, trained: P.Tree, gradient: P.Tree, rule: Rule) -> P.Tree:
    """The weights after one step."""
    if rule.root is None:
        return jax.tree.map(lambda p, p0, g: p - rule.rate * g + rule.decay * (p0 - p), params, trained, gradient)
    mean = mean_root(rule.root)
    back = lambda r: jnp.minimum(rule.decay * r / mean, 1.0)
    return jax.tree.map(lambda p, p0, g, r: p - rule.rate * g / (r + rule.epsilon) + back(r) * (p0 - p), params, trained, gradient,
                        rule.root)


def mean_root(root: P.Tree) -> jax.Array:
    """Mean over all weights."""
    leaves = jax.tree.leaves(root)
    return sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)


def score_calls(stream: Stream, trained: P.Tree, rule: Rule, inputs: jax.Array, targets: jax.Array, start_B: jax.Array,
                length_B: jax.Array, *, model: Model, tokens: int) -> tuple[Stream, jax.Array]:
    """Score a batch i32[B, N tokens], `tokens` at a time, with a step after each: (stream, nats [B, N tokens]).

    A text begins with the trained weights: they return if every row of the batch starts a stream. Several rows share the weights.
    """
    rows, total = inputs.shape
    cut = lambda x: jnp.moveaxis(x.reshape(rows, total // tokens, tokens), 1, 0)
    fresh = jax.tree.map(lambda now, first: jnp.where(start_B.all(), first, now), stream.params, trained)

    def one(now: Stream, x):
        some, wanted, first = x
        (_, (nats, carry)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            now.params, now.carry, some, wanted, start_B & (first == 0), jnp.clip(length_B - first, 0, tokens), model)
        return Stream(stepped(now.params, trained, gradient, rule), carry), nats

    stream, nats = jax.lax.scan(one, Stream(fresh, stream.carry), (cut(inputs), cut(targets), jnp.arange(0, total, tokens)))
    return stream, jnp.moveaxis(nats, 0, 1).reshape(rows, total)


@cache
def _compiled(platform: str):
    return jax.jit(score_calls, static_argnames=("model", "tokens"), donate_argnames=("stream",),
                   compiler_options=options(platform))


_first_carry = jax.jit(lambda params, model, rows: model.init_state(params, rows), static_argnums=(1, 2))


def score(params: P.Tree, batches: Iterable[dict[str, np.ndarray]], rule: Rule, *, model: Model, tokens: int) -> float:
    """Total nats of all batches (as `data.open_eval` gives them), with a step after every `tokens` tokens of each row."""
    run, stream, nats = _compiled(jax.default_backend()), None, 0.0
    for batch in batches:
        if stream is None:
            stream = Stream(jax.tree.map(jnp.copy, params), _first_carry(params, model, len(batch["inputs"])))
        arrays = (batch[name] for name in ("inputs", "targets", "start", "length"))
        stream, found = run(stream, params, rule, *arrays, model=model, tokens=tokens)
        nats += float(np.asarray(found).sum(dtype=np.float64))
    return nats


# ------------------------------------------------------------------------------------------------------------ mean squares

@partial(jax.jit, static_argnames=("model", "tokens"))
def _squares(params: P.Tree, carry: P.Tree, inputs: jax.Array, targets: jax.Array, start_B: jax.Array, *, model: Model,
             tokens: int) -> tuple[P.Tree, P.Tree]:
    """(sum over the calls of a training batch of each weight's squared gradient, carry)."""
    rows, total = inputs.shape
    cut = lambda x: jnp.moveaxis(x.reshape(rows, total // tokens, tokens), 1, 0)

    def one(before, x):
        carry, sums = before
        some, wanted, first = x
        gradient, (_, carry) = jax.grad(loss_of, has_aux=True)(params, carry, some, wanted, start_B & (first == 0),
                                                               P.full_length(some), model)
        return (carry, jax.tree.map(lambda s, g: s + jnp.square(g), sums, gradient)), None

    zero = jax.tree.map(jnp.zeros_like, params)
    (carry, sums), _ = jax.lax.scan(one, (carry, zero), (cut(inputs), cut(targets), jnp.arange(0, total, tokens)))
    return sums, carry


def root_mean_square(params: P.Tree, batches: Iterable[dict[str, np.ndarray]], *, model: Model, tokens: int) -> P.Tree:
    """Root of the mean square of each weight's gradient over the calls of training batches."""
    sums, carry, calls = jax.tree.map(jnp.zeros_like, params), None, 0
    for batch in batches:
        carry = _first_carry(params, model, len(batch["inputs"])) if carry is None else carry
        more, carry = _squares(params, carry, batch["inputs"], batch["targets"], batch["start"], model=model, tokens=tokens)
        sums, calls = jax.tree.map(jnp.add, sums, more), calls + batch["inputs"].shape[1] // tokens
    return jax.tree.map(lambda s: jnp.sqrt(s / max(calls, 1)), sums)


def rule_of(cfg: DynamicConfig, root: P.Tree | None, rate: float) -> Rule:
    """A rule with its numbers as arrays, so that another rate needs no other program.

    root: of `root_mean_square`; None for "sgd".
    """
    return Rule(root if cfg.rule == "rms" else None, *map(jnp.asarray, (rate, cfg.decay, cfg.epsilon)))
