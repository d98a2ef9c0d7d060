"""What every memory does with a call: padding, lengths, empty calls, and arguments that do not fit."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_equal, cast, jit, random_params

from memtok_jax.config import UserError
from memtok_jax.memory import armt, compressive, neural, rmt, tokens, xl
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural import NeuralMemoryConfig

D, T = 8, 7
CASES = {
    "neural": (neural, NeuralMemoryConfig(D, head_dim=4, chunk=4, expansion=1)),
    "neural literal": (neural, NeuralMemoryConfig(D, head_dim=4, chunk=4, expansion=1, view="literal")),
    "neural fast norm": (neural, NeuralMemoryConfig(D, head_dim=4, chunk=4, expansion=1, fast_norm=True, forget_to="zero")),
    "neural channel": (neural, NeuralMemoryConfig(D, head_dim=4, chunk=4, expansion=1, gates="per_layer", forget_by="channel")),
    "xl": (xl, xl.XlConfig(5, D)),
    "compressive conv": (compressive, CompressiveConfig(2, 2, 2, "conv", "bptt", width=D)),
    "compressive dilated": (compressive, CompressiveConfig(2, 2, 2, "dilated", "autoencoding", width=D)),
    "compressive most used": (compressive, CompressiveConfig(2, 2, 2, "most_used", "none", width=D)),
    "rmt": (rmt, rmt.RmtTokensConfig(D, 2)),
    "armt": (armt, armt.ArmtConfig(D, 3)),
    "tokens": (tokens, tokens.TokensConfig(D, 2, after=1)),
}
every_memory = pytest.mark.parametrize("name", CASES)


def setup(name: str, batch: int = 2):
    """(module, cfg, params, state, x[B, T, D])."""
    module, cfg = CASES[name]
    params = random_params(module.specs(cfg), 0, np.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, T, D)), jnp.float32)
    return module, cfg, params, module.init_state(params, cfg, batch), x


def call(module, cfg):
    """`run` with the length as an argument."""
    return jit(lambda params, state, x, length: module.run(params, state, x, cfg, length))


@every_memory
def test_padding_may_hold_anything(name):
    """NaN, infinity and large numbers change no bit of outputs, carry and statistics, and all gradients stay finite."""
    module, cfg, params, state, x = setup(name)
    length = jnp.array([3, 0])
    put = lambda value: x.at[0, 3:].set(value).at[1].set(value)

    def loss(params, x):
        y, end, stats = module.run(params, state, x, cfg, length)
        floats = [leaf for leaf in jax.tree.leaves((end, stats)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.sin(y).sum() + sum(jnp.square(leaf).sum() for leaf in floats), (y, end, stats)

    run = jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    want = run(params, put(0.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    for value in (1e6, np.inf, np.nan):
        assert_equal(run(params, put(value)), want)
    assert not np.any(want[1][1][0, 3:]) and not np.any(want[1][1][1])


@every_memory
def test_a_length_beyond_the_call_is_clipped(name):
    """Also the next call is right, which reads what the first one left."""
    module, cfg, params, state, x = setup(name)
    run = call(module, cfg)
    for wild, tame in (([99, -3], [T, 0]), ([-1, 8], [0, T])):
        got, want = run(params, state, x, jnp.array(wild)), run(params, state, x, jnp.array(tame))
        assert_equal(got, want)
        assert_equal(run(params, got[1], x, jnp.array([T, T])), run(params, want[1], x, jnp.array([T, T])))


@every_memory
def test_no_tokens_change_nothing(name):
    """T = 0 and B = 0, with a length and without."""
    module, cfg, params, state, x = setup(name)
    _, state, _ = call(module, cfg)(params, state, x, jnp.array([T, 2]))
    for length in (None, jnp.zeros(2, jnp.int32)):
        y, end, stats = module.run(params, state, x[:, :0], cfg, length)
        full = jax.eval_shape(partial(module.apply, cfg=cfg), params, state, x)[0]
        assert y.shape[0] == 2 and y.shape[1] == full.shape[1] - T
        assert all(np.isfinite(v) for v in stats.values())
    if module is not rmt:  # an empty segment writes nothing; a segment without length is one
        assert_equal(end, state)
    empty = module.init_state(params, cfg, 0)
    y, end, stats = module.run(params, empty, x[:0], cfg)
    assert y.shape[0] == 0 and all(np.isfinite(v) for v in stats.values())
    assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, empty)


@every_memory
@pytest.mark.parametrize("length", [np.zeros(1, np.int32), np.zeros((2, 1), np.int32), np.zeros(2, np.float32),
                                    np.ones((2, T), bool), np.ones(2, bool), 3],
                         ids=["B", "shape", "dtype", "mask", "flags", "int"])
def test_other_lengths_are_refused(name, length):
    module, cfg, params, state, x = setup(name)
    with pytest.raises(UserError, match=r"length must be an integer array \[2\]"):
        jax.eval_shape(lambda x: module.apply(params, state, x, cfg, length), x)


@every_memory
@pytest.mark.parametrize("x", [np.zeros((2, T, D + 1)), np.zeros((T, D)), np.zeros((2, T, D), np.int32),
                               np.zeros((2, T, D), bool), [[1.0]]], ids=["width", "rank", "int", "bool", "list"])
def test_other_tokens_are_refused(name, x):
    module, cfg, params, state, _ = setup(name)
    with pytest.raises(UserError, match=r"x must be a floating array \[batch, tokens, 8\], got"):
        module.apply(params, state, x, cfg)


@every_memory
def test_a_carry_of_another_shape_is_refused(name):
    module, cfg, params, state, x = setup(name)
    wrong = [module.init_state(params, cfg, 3), jax.tree.map(lambda s: s.astype(jnp.float16), state), {"a": x}]
    for other in wrong[:2] if jax.tree.leaves(state) else []:
        with pytest.raises(UserError, match=r"state[.\[].* must be .*, got"):
            module.apply(params, other, x, cfg)
    if jax.tree.leaves(state):
        with pytest.raises(UserError, match=r"state must have the leaves .*, got \['a'\]"):
            module.apply(params, wrong[2], x, cfg)
        module.apply(params, cast(state, np.float32), x, cfg)


@pytest.mark.parametrize("name", ["neural", "compressive conv", "armt", "tokens"])
def test_parameters_of_another_config_are_refused(name):
    """Also those of another head_dim, whose products would have fitted."""
    module, cfg, params, state, x = setup(name)
    other = {neural: NeuralMemoryConfig(D, head_dim=8, chunk=4, expansion=1), compressive: CompressiveConfig(2, 2, 1, width=D),
             armt: armt.ArmtConfig(D, 4), tokens: tokens.TokensConfig(D, 3)}[module]
    with pytest.raises(UserError, match=r"params\[.* must be float32\[.*, got float32\["):
        module.apply(random_params(module.specs(other), 0, np.float32), state, x, cfg)
    with pytest.raises(UserError, match="params must have the leaves"):
        module.apply({}, state, x, cfg)


@every_memory
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strict_promotion(name, dtype):
    """Nothing is cast silently, with gradients and padding, in both compute dtypes."""
    module, cfg = CASES[name]
    options = {"dtype": dtype} if hasattr(cfg, "dtype") else {}
    cfg = type(cfg)(**{**vars(cfg), **options})

    def loss(params, x, length):
        y, end, stats = module.run(params, module.init_state(params, cfg, 2), x, cfg, length)
        return y.astype(jnp.float32).sum(), (end, stats)

    with jax.numpy_dtype_promotion("strict"):
        params = random_params(module.specs(cfg), 0, np.float32)
        x, length = jax.ShapeDtypeStruct((2, T, D), dtype), jax.ShapeDtypeStruct((2,), jnp.int32)
        jax.eval_shape(jax.grad(loss, argnums=(0, 1), has_aux=True), params, x, length)


@pytest.mark.parametrize("module, options", [(neural, dict(head_dim=4)), (xl, dict(length=2)), (rmt, dict(tokens=2)), (armt, {}),
                                             (compressive, dict(length=2, compressed=2, rate=2)), (tokens, dict(tokens=2))],
                         ids=lambda x: getattr(x, "__name__", ""))
def test_width_zero_is_refused(module, options):
    """A model fills the width in; outside one it must be given."""
    kind = {neural: NeuralMemoryConfig, xl: xl.XlConfig, rmt: rmt.RmtTokensConfig, armt: armt.ArmtConfig,
            compressive: CompressiveConfig, tokens: tokens.TokensConfig}[module]
    with pytest.raises(UserError, match="width=0: set the width"):
        cfg = kind(width=0, **options)
        module.specs(cfg), module.state_specs(cfg, 1)


@pytest.mark.parametrize("options", [
    dict(step_max=np.nan), dict(step_max=-1.0), dict(loss_scale=-1.0), dict(loss_scale=np.nan), dict(surprise_clip=np.nan),
    dict(surprise_clip=-7.0), dict(step_bias=np.inf), dict(momentum_bias=np.nan), dict(forget_range=(0.1,)),
    dict(forget_range=(0.1, np.nan)), dict(forget_range=(0.1, 1.0)), dict(momentum="no"), dict(chunk=2.5), dict(chunk=0),
    dict(width=-4), dict(view="fast"), dict(depth=True), dict(conv=2**63)], ids=str)
def test_neural_config_names_the_field(options):
    with pytest.raises(UserError, match=f"memory.{next(iter(options))} "):
        NeuralMemoryConfig(**(dict(width=8, head_dim=4) | options))


@pytest.mark.parametrize("kind, options", [
    (xl.XlConfig, dict(length=2.5)), (xl.XlConfig, dict(length=1, dtype="float16")), (CompressiveConfig, dict(rate=np.nan)),
    (rmt.RmtTokensConfig, dict(std=np.nan)), (rmt.RmtTokensConfig, dict(tokens="two")), (armt.ArmtConfig, dict(eps=np.inf)),
    (armt.ArmtConfig, dict(eps=0.0)), (armt.ArmtConfig, dict(correction=1)), (tokens.TokensConfig, dict(std=-1.0))],
    ids=lambda x: getattr(x, "__name__", str(x)))
def test_other_configs_name_the_field(kind, options):
    valid = {CompressiveConfig: dict(length=2, compressed=2, rate=2), rmt.RmtTokensConfig: dict(width=D, tokens=2),
             armt.ArmtConfig: dict(width=D), tokens.TokensConfig: dict(width=D, tokens=2)}.get(kind, {})
    with pytest.raises(UserError, match=f"{list(options)[-1]} is "):
        kind(**(valid | options))
