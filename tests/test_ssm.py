"""Selective scans: equal to loops over tokens in values and gradients, however a stream is cut, padded or blocked."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from neural_cases import assert_close, assert_equal, cast, jit, random_like, random_params

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.memory import ssm
from memtok_jax.memory.ssm import Mamba2Config, MambaConfig, recurrence

D, B, T = 6, 3, 13
MAMBA = MambaConfig(width=D, inner=8, state=3, conv=3, rank=2, block=4)
MAMBA2 = Mamba2Config(width=D, inner=12, head_dim=2, groups=3, state=4, conv=3, block=4)
CASES = {"mamba": MAMBA, "norms": replace(MAMBA, norms=True), "mamba2": MAMBA2, "mamba2_one_group": replace(MAMBA2, groups=1)}
every_case = pytest.mark.parametrize("name", CASES)


def module_of(cfg):
    return ssm.MODULES[type(cfg)]


def setup(cfg, dtype=np.float64):
    """(apply, params, a state in the midst of a stream, tokens)."""
    module = module_of(cfg)
    params = random_params(module.specs(cfg), 0, dtype)
    state = random_like(P.abstract(module.state_specs(cfg, B)), 1, 1.0, dtype)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((B, T, D)), dtype)
    return partial(module.apply, cfg=cfg), params, state, x


# ---------------------------------------------------------------------------------------------------------- token by token

def silu(x):
    return x / (1 + jnp.exp(-x))


def normed(x, weight, eps=1e-6):
    return x / jnp.sqrt((x * x).mean() + eps) * weight


def literal_mamba(p, h, past, u, cfg):
    """One token of one row: u[D], h [N, E], past [conv-1, E] -> (y [D], h, past), as the paper's equations stand."""
    q, n, r = p["branch"], cfg.state, cfg.step_rank
    inner, z = u @ p["x"]["w"], u @ p["z"]["w"]
    past = jnp.concatenate([past, inner[None]])
    c = silu(sum(past[j] * q["conv"]["w"][j] for j in range(cfg.conv)) + q["conv"]["b"])
    made = c @ q["selection"]
    low, write, read = made[:r], made[r:r + n], made[r + n:]
    if cfg.norms:
        low, write, read = (normed(v, q["norms"][k]) for v, k in ((low, "step"), (write, "write"), (read, "read")))
    step = jnp.log1p(jnp.exp(low @ q["step"]["w"] + q["step"]["b"]))
    h = jnp.stack([jnp.exp(-step * jnp.exp(q["log_rate"][i])) * h[i] + step * c * write[i] for i in range(n)])
    y = sum(read[i] * h[i] for i in range(n)) + q["skip"] * c
    return (y * silu(z)) @ p["o"]["w"], h, past[1:]


def literal_mamba2(p, h, past, u, cfg):
    """One token of one row: u[D], h [H, P, N], past [conv-1, E + 2 G N] -> (y [D], h, past)."""
    q, e, g, n = p["branch"], cfg.channels, cfg.groups, cfg.state
    made, z = u @ p["x"]["w"], u @ p["z"]["w"]
    past = jnp.concatenate([past, made[None, :cfg.convolved]])
    c = silu(sum(past[j] * q["conv"]["w"][j] for j in range(cfg.conv)) + q["conv"]["b"])
    x, write, read = c[:e].reshape(cfg.heads, -1), c[e:e + g * n].reshape(g, n), c[e + g * n:].reshape(g, n)
    states, outs = [], []
    for i in range(cfg.heads):
        group = i * g // cfg.heads
        step = jnp.log1p(jnp.exp(made[cfg.convolved + i] + q["step_bias"][i]))
        states.append(jnp.exp(-step * jnp.exp(q["log_rate"][i])) * h[i] + step * x[i][:, None] * write[group][None])
        outs.append(states[i] @ read[group] + q["skip"][i] * x[i])
    gated, weights = (jnp.concatenate(outs) * silu(z)).reshape(g, -1), p["norm"].reshape(g, -1)
    y = jnp.concatenate([normed(row, weight, cfg.eps) for row, weight in zip(gated, weights, strict=True)])
    return y @ p["o"]["w"], jnp.stack(states), past[1:]


@every_case
def test_equals_a_loop_over_tokens(name):
    """Values, carry, and gradients of parameters, carry and tokens, in float64, from the midst of a stream."""
    with jax.enable_x64(True):
        cfg = CASES[name]
        apply, params, state, x = setup(cfg)
        tokens = 9  # two blocks and a token
        literal = literal_mamba if isinstance(cfg, MambaConfig) else literal_mamba2

        def by_tokens(params, state, x):
            def token(state, u):
                y, *state = jax.vmap(lambda h, past, u: literal(params, h, past, u, cfg))(*state, u)
                return tuple(state), y

            end, y = jax.lax.scan(token, tuple(state), jnp.moveaxis(x, 1, 0))
            return jnp.moveaxis(y, 0, 1), type(state)(*end)

        def weighted(f):
            def loss(params, state, x):
                y, end = f(params, state, x)
                return (y * jnp.cos(y)).sum() + jnp.sin(end.h).sum() + (end.conv ** 2).sum(), (y, end)
            return jit(jax.grad(loss, (0, 1, 2), has_aux=True))

        got, want = (weighted(f)(params, state, x[:, :tokens]) for f in (apply, by_tokens))
    assert_close(got[1], want[1], 1e-12)
    assert_close(got[0], want[0], 1e-9)
    assert min(np.abs(g).max() for g in jax.tree.leaves(want[0])) > 1e-3, "the case tests nothing"


@pytest.mark.parametrize("name", ["norms", "mamba2"])
def test_gradients_are_finite_differences(name):
    with jax.enable_x64(True):
        apply, params, state, x = setup(CASES[name])
        check_grads(jax.jit(lambda p, s, x: apply(p, s, x)), (params, state, x[:, :6]), order=1, modes=["rev"])


# ------------------------------------------------------------------------------------------------- blocks, cuts, padding

@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("block", [1, 5, 16])
def test_the_block_changes_nothing(name, block):
    """Values, carry and gradients with blocks of one token, of a number that does not divide T, and of more than T."""
    with jax.enable_x64(True):
        cfg = CASES[name]
        _, params, state, x = setup(cfg)

        def gradient(cfg):
            def loss(params, state, x):
                y, after = module_of(cfg).apply(params, state, x, cfg)
                return (y * jnp.cos(y)).sum() + jnp.sin(after.h).sum(), (y, after)
            return jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, state, x)

        assert_close(gradient(replace(cfg, block=block)), gradient(cfg), 1e-11)


def test_both_orders_of_the_recurrence_are_the_same():
    """Token by token and side by side, values and gradients; the written derivative is that of the loop, and has one itself."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        decay, add = jnp.asarray(rng.uniform(0, 1, (11, 2, 3))), jnp.asarray(rng.standard_normal((11, 2, 3)))
        h = jnp.asarray(rng.standard_normal((2, 3)))
        loss = lambda f: lambda *xs: jnp.sin(f(*xs)).sum()
        for f in (recurrence.side_by_side, recurrence.linear_recurrence):
            both = [jit(jax.value_and_grad(loss(g), (0, 1, 2)))(decay, add, h) for g in (f, recurrence.token_by_token)]
            assert_close(*both, 1e-13)
        check_grads(jax.jit(recurrence.linear_recurrence), (decay, add, h), order=2, modes=["rev"])


def test_the_platform_chooses_the_order():
    """Lowered for a CPU there is a loop; for an accelerator there is none, in values and gradients."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 2, 3), (8, 2, 3), (2, 3))]
    both = jax.jit(lambda *xs: jax.vjp(recurrence.linear_recurrence, *xs)[1](xs[1]))
    text = lambda kind: jax.export.export(both, platforms=[kind])(*shapes).mlir_module()
    loops = {kind: "stablehlo.while" in text(kind) for kind in ("cpu", "tpu", "cuda")}
    assert loops == {"cpu": True, "tpu": False, "cuda": False}


@every_case
def test_any_cut_is_one_call(name):
    """Every cut into two calls, and single tokens, with rows of their own length and NaN in the padding: outputs and carry."""
    with jax.enable_x64(True):
        apply, params, state, x = setup(CASES[name])
        lengths, nan = jnp.array([13, 4, 0]), jnp.asarray(np.nan)
        real = np.arange(T) < np.asarray(lengths)[:, None]
        apply = jit(apply)
        x = jnp.where(jnp.asarray(real)[..., None], x, nan)
        y, end = apply(params, state, x, length=lengths)
        y = np.where(real[..., None], y, 0)
        for cuts in ([5], [2, 3, 12], range(1, T)):
            places, now, parts = [0, *cuts, T], state, []
            for start, stop in zip(places, places[1:], strict=False):
                width = 8 if len(places) < 8 else 1  # few shapes: padded further
                piece = jnp.pad(x[:, start:stop], ((0, 0), (0, max(0, width - stop + start)), (0, 0)), constant_values=np.nan)
                part, now = apply(params, now, piece, length=jnp.clip(lengths - start, 0, stop - start))
                parts.append(part[:, :stop - start])
            assert_close((np.where(real[..., None], np.concatenate(parts, 1), 0), now), (y, end), 1e-12)
        assert_equal(jax.tree.map(lambda s: s[2], end), jax.tree.map(lambda s: s[2], state))


@pytest.mark.parametrize("name", ["norms", "mamba2"])
def test_padding_sends_no_gradient(name):
    """NaN in the padding: the gradient is that of the row without it, and zero at the padding."""
    with jax.enable_x64(True):
        apply, params, state, x = setup(CASES[name])
        real = jnp.broadcast_to(jnp.arange(T) < 9, (B, T))

        def loss(params, x, length):
            y, end = apply(params, state, x, length=length)
            return (y[:, :9] ** 2).sum() + jnp.sin(end.h).sum() + end.conv.sum()

        gradient = jit(jax.grad(loss, (0, 1)))
        dirty = gradient(params, jnp.where(real[..., None], x, jnp.nan), jnp.full((B,), 9))
        clean = gradient(params, x[:, :9], None)
        assert_close((dirty[0], dirty[1][:, :9]), clean, 1e-12)
        assert not np.any(dirty[1][:, 9:])


def test_a_branch_takes_dirty_padding_of_both_streams():
    """`scan_branch` alone, as a layer with projections of its own calls it: NaN behind the real tokens of x and of z."""
    with jax.enable_x64(True):
        for cfg in (MAMBA, MAMBA2):
            _, params, state, _ = setup(cfg)
            rng, module = np.random.default_rng(3), module_of(cfg)
            x, z = (jnp.asarray(rng.standard_normal((B, 5, n))) for n in (cfg.stream, cfg.channels))
            dirty = lambda v: v.at[:, 3:].set(jnp.nan)

            def loss(params, x, z, length, module=module, cfg=cfg, state=state):
                y, end, stats = module.scan_branch(params["branch"], state, x, z, cfg, length)
                return (y[:, :3] ** 2).sum() + end.h.sum(), (end, stats)

            step = jit(jax.grad(loss, has_aux=True))
            got = step(params, dirty(x), dirty(z), jnp.full((B,), 3))
            assert_close(got, step(params, x[:, :3], z[:, :3], None), 1e-12)


# -------------------------------------------------------------------------------------------------- numbers and their dtypes

@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_bfloat16_keeps_a_float32_state(name):
    """Operands of products are bfloat16; the carry is float32, and a decay near one is not rounded to one."""
    cfg = replace(CASES[name], dtype="bfloat16")
    apply, params, state, x = setup(cfg, np.float32)
    full = jit(partial(module_of(cfg).apply, cfg=CASES[name]))(params, state, x)[0]
    y, end = jit(apply)(params, state, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in end} == {jnp.dtype(jnp.float32)}
    error = np.abs(y.astype(jnp.float32) - full).max() / np.abs(full).max()
    assert 1e-4 < error < 0.05
    # Steps of about 1e-4: 13 tokens of nothing take a little of the state, and no single one of them a digit of a bfloat16.
    slow = jax.tree_util.tree_map_with_path(lambda path, p: p - 5 if "step" in jax.tree_util.keystr(path) else p, params)
    after = jit(apply)(slow, state._replace(conv=state.conv * 0), x.astype(jnp.bfloat16) * 0)[1].h
    lost = 1 - np.abs(after).sum() / np.abs(state.h).sum()
    assert 2e-4 < lost < 5e-2, "the state fades slowly and does not stand still"


def _extreme(path, p):
    """Biases of the step plus 100, logarithms of the rates plus 5, other parameters as they are."""
    name = jax.tree_util.keystr(path)
    return p + 100 if re.search("step(_bias'|'..'b')", name) else p + 5 if "log_rate" in name else p


def test_extreme_steps_stay_finite():
    """Steps of hundreds, decays of zero: values and gradients are finite."""
    for cfg in (MAMBA, MAMBA2):
        apply, params, state, x = setup(cfg, np.float32)
        params = jax.tree_util.tree_map_with_path(_extreme, params)
        loss = lambda p, s, x, apply=apply: sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(apply(p, s, x)))
        found = jit(jax.grad(loss, (0, 1, 2)))(params, state, x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_initial_values():
    """Steps between 1e-3 and 1e-1, rates 1 to N (or 1 to H), skips of one; none of these is decayed, nor is a bias or a norm."""
    for cfg in (MambaConfig(width=512, norms=True), Mamba2Config(width=512, head_dim=4)):
        specs = module_of(cfg).specs(cfg)
        params = P.init_params(specs, jax.random.key(0))["branch"]
        bias = params["step_bias"] if "step_bias" in params else params["step"]["b"]
        step = np.asarray(jax.nn.softplus(bias))
        assert 9.9e-4 < step.min() < 2e-3 and 0.05 < step.max() < 0.1001 and abs(np.log(step).mean() - np.log(1e-2)) < 0.2
        rates = np.exp(params["log_rate"]).reshape(len(params["log_rate"]), -1)
        np.testing.assert_allclose(rates, np.broadcast_to(np.arange(1, len(rates) + 1)[:, None], rates.shape), rtol=1e-5)
        assert np.all(params["skip"] == 1)
        decayed = {jax.tree_util.keystr(path) for path, on in jax.tree_util.tree_leaves_with_path(P.decay_mask(specs)) if on}
        matrices = {"['x']['w']", "['z']['w']", "['o']['w']", "['branch']['conv']['w']"}
        assert decayed == matrices | ({"['branch']['selection']", "['branch']['step']['w']"} if "step" in params else set())
        if "step" in params:
            r = cfg.step_rank ** -0.5
            w = np.asarray(params["step"]["w"])
            assert r == 32 ** -0.5 and w.min() < -0.95 * r and w.max() > 0.95 * r and np.abs(w).max() <= r


@pytest.mark.parametrize("make, message", [
    (lambda: MambaConfig(state=0), "memory.state is 0"),
    (lambda: MambaConfig(dtype="float16"), "memory.dtype is 'float16'"),
    (lambda: Mamba2Config(width=6, head_dim=5), "12 inner channels are not whole heads of head_dim=5"),
    (lambda: Mamba2Config(width=6, head_dim=4, groups=2), "in groups=2 of equal size"),
    (lambda: ssm.mamba.specs(MambaConfig()), "width=0"),
    (lambda: ssm.mamba2.apply({}, (), jnp.zeros((1, 2, 5)), MAMBA2), "x must be a floating array [batch, tokens, 6]"),
])
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_no_rows_and_no_tokens(name):
    apply, params, state, x = setup(CASES[name], np.float32)
    y, end = jit(apply)(params, state, x[:, :0])
    assert y.shape == (B, 0, D)
    assert_equal(end, state)
    y, end = jax.eval_shape(apply, params, jax.tree.map(lambda s: s[:0], state), x[:0])
    assert y.shape == (0, T, D) and end.h.shape == (0, *state.h.shape[1:])


def test_a_float64_state_in_a_float32_carry_keeps_its_structure():
    """A state keeps the dtype it came in, so that it can be carried by a scan."""
    with jax.enable_x64(True):
        apply, params, state, x = setup(MAMBA)
        y, end = jax.eval_shape(apply, params, cast(state, np.float32), x)
        assert y.dtype == np.float64 and end.h.dtype == end.conv.dtype == np.float32
