"""Arithmetic that every layer shares: products in the compute dtype, sums and norms in float32."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from memtok_jax import products

DTYPES = ("float32", "bfloat16")  # compute dtypes: of activations and of the operands of matrix products


def wide(*arrays: jax.Array):
    """The dtype of sums, norms, gates and softmax: float32, or float64 where an input is."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)


def _operands(a: jax.Array, b: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    """Both operands of a product in the compute dtype, and the dtype of its sums."""
    out = wide(a, b)
    if dtype == "bfloat16" and out == jnp.float32:
        return a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), out
    return (a, b, out) if a.dtype == b.dtype else (a.astype(out), b.astype(out), out)


def matmul(a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """a @ b with operands in the compute dtype ("float32" or "bfloat16") and sums in float32; float64 stays float64."""
    a, b, out = _operands(a, b, dtype)
    if a.ndim > 2 and b.ndim == 2:
        # As one product of two matrices: from more axes the gradient of b is a product with a transposed copy, which
        # XLA's CPU compiler writes element by element (docs/log.md, 2026-11-26).
        return jnp.matmul(a.reshape(-1, a.shape[-1]), b, preferred_element_type=out).reshape(*a.shape[:-1], b.shape[-1])
    return jnp.matmul(a, b, preferred_element_type=out)


def product(kind: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """One of `products.py` ("nn", "nt", "tn") of two matrices, as `matmul`; its gradients are of these kinds too."""
    a, b, out = _operands(a, b, dtype)
    if a.dtype == b.dtype == out:
        return getattr(products, kind)(a, b)
    return plain_product(kind, a, b, dtype)  # cotangents are wider than the operands


def plain_product(kind: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """The same left to the compiler."""
    a, b, out = _operands(a, b, dtype)
    turn = lambda x, turned: x.T if turned else x
    return jnp.matmul(turn(a, kind[0] == "t"), turn(b, kind[1] == "t"), preferred_element_type=out)


def target_nats(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log softmax(logits)[ids] in nats and the logit of ids, float32 of ids' shape. logits: [..., V]; ids: i32[...].

    An id outside 0 .. V-1 has the logit 0.
    """
    logits = logits.astype(wide(logits))
    # A sum over a comparison, not an index: it stays local where the vocabulary is divided over devices.
    place = jnp.arange(logits.shape[-1]).reshape((1,) * ids.ndim + (-1,))
    picked = jnp.where(place == ids[..., None], logits, 0.0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked, picked


REMAT = ("pointwise", "block")


def recompute(f, remat: str = "pointwise"):
    """f with less storage: the backward pass recomputes intermediate values. Values and gradients are the same.

    "pointwise" (default): everything but matrix products is recomputed; that costs less than storing and reading it.
    "block": everything is recomputed.
    """
    policies = {"pointwise": jax.checkpoint_policies.dots_saveable, "block": jax.checkpoint_policies.nothing_saveable}
    return jax.checkpoint(f, policy=policies[remat], prevent_cse=False)


HIDDEN = -1e30  # score of a key that a query may not see; finite, so that a row without keys has no NaN


def over_layers(name: str, values: jax.Array) -> jax.Array:
    """One number for the layers that share a statistic, values[layers]: a maximum, a sum of losses, or a mean, as its name says."""
    if name.endswith("_max"):
        return values.max()
    return values.sum() if name.endswith("auxiliary_loss") else values.mean()


def lift(weight: jax.Array, like: jax.Array) -> jax.Array:
    """A weight for the last axes of `like`, with leading axes of size one added; the tests forbid implicit rank promotion."""
    return weight.reshape((1,) * (like.ndim - weight.ndim) + weight.shape)


def spread(weight: jax.Array, like: jax.Array) -> jax.Array:
    """A weight for the last axes of `like`, repeated over its leading axes by a product with ones.

    The compiler makes a mere repetition of it; the gradient, a sum over all rows, stays a product, which its CPU backend
    computes ten times as fast as a sum over a leading axis (docs/log.md, 2026-11-26).
    """
    lead = like.shape[:like.ndim - weight.ndim]
    ones = jnp.ones((math.prod(lead), 1), weight.dtype)
    return jnp.matmul(ones, weight.reshape(1, -1), precision="highest").reshape(*lead, *weight.shape)


def dense(x: jax.Array, params, dtype: str) -> jax.Array:
    """x[..., I] @ w[I, ...] + b[...] in x's dtype; no bias where params have no "b".

    "low" [I, r] and "high" [r, ...], where params have them, add x @ low @ high (`models/lora.py`).
    """
    w = params["w"]
    y = matmul(x, w.reshape(w.shape[0], -1), dtype)
    if "low" in params:
        y = y + matmul(matmul(x, params["low"], dtype), params["high"].reshape(params["high"].shape[0], -1), dtype)
    if "b" in params:
        y = y + spread(params["b"].reshape(-1), y)
    return y.astype(x.dtype).reshape(*x.shape[:-1], *w.shape[1:])


def rms_norm(x: jax.Array, weight: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / rms(x) * weight over the last axis, computed in float32, returned in x's dtype."""
    h = x.astype(wide(x))
    return (h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps) * spread(weight, h)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """LayerNorm over the last axis, without an affine map."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


def affine_norm(x: jax.Array, params, eps: float = 1e-5) -> jax.Array:
    """LayerNorm with `scale` and `bias` [D] of params, computed in float32, returned in x's dtype."""
    y = layer_norm(x.astype(wide(x)), eps)
    return (y * spread(params["scale"], y) + spread(params["bias"], y)).astype(x.dtype)
