"""Cutting a block at the borders of a unit: a partition, whatever the phase, the length and the block."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax.memory import pieces, tokens
from memtok_jax.models import language_model
from memtok_jax.models.mixers.window import WindowConfig


@pytest.mark.parametrize("unit", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_pieces_are_a_partition_that_crosses_no_border(size, unit):
    """Against a loop over tokens, for every phase and length."""
    phases, lengths = (np.array(g).ravel() for g in np.meshgrid(range(unit), range(size + 1)))
    cut = pieces.cut(jnp.asarray(phases, jnp.int32), jnp.asarray(lengths, jnp.int32), size, unit)
    n = pieces.count(size, unit)
    assert cut.index.shape == (n, len(phases), min(size, unit))
    for row, (phase, length) in enumerate(zip(phases, lengths, strict=True)):
        expected = [[] for _ in range(n)]
        for t in range(length):
            expected[(phase + t) // unit].append(t)
        got = [list(np.asarray(cut.index[i, row, :int(cut.length[i, row])])) for i in range(n)]
        assert got == expected
        assert [bool(c) for c in cut.closes[:, row]] == [(i + 1) * unit <= phase + length for i in range(n)]
        assert int(cut.phase[row]) == (phase + length) % unit


def test_join_undoes_split():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((6, 11, 2)), jnp.float32)
    lengths = np.array([11, 0, 5, 11, 7, 1])
    cut = pieces.cut(jnp.array([0, 1, 2, 3, 0, 3], jnp.int32), jnp.asarray(lengths, jnp.int32), 11, 4)
    back = pieces.join(pieces.split(x, cut), cut)
    real = np.arange(11) < lengths[:, None]
    np.testing.assert_array_equal(np.asarray(back)[real], np.asarray(x)[real])


# ------------------------------------------------------------------------------------------------------ learned tokens

def vision_encoder(weights, patches_BTD, registers, cfg):
    """A tiny encoder without causality: registers in front, one attention layer, registers taken off again."""
    x, _ = tokens.apply(registers, (), patches_BTD, cfg)
    q, k, v = (x @ w for w in weights)
    score = jnp.exp(q @ k.swapaxes(1, 2) / jnp.sqrt(x.shape[-1]))
    y = x + (score / score.sum(-1, keepdims=True)) @ v
    return tokens.split(y, cfg)


def test_persistent_memory_and_registers_are_the_same_code():
    """The tokens of a language model serve a vision encoder as registers; none of them leaves the encoder plain."""
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.standard_normal((3, 8, 8)) / 3, jnp.float32)
    patches = jnp.asarray(rng.standard_normal((2, 9, 8)), jnp.float32)
    model = language_model.LanguageModelConfig(width=8, layers=1, head_dim=4, prefix=3, pattern=(WindowConfig(4),))
    cfg = tokens.TokensConfig(8, 3)
    shape_and_axes = lambda specs: (specs["tokens"].shape, specs["tokens"].axes, specs["tokens"].decayed)
    assert shape_and_axes(language_model.specs(model)["prefix"]) == shape_and_axes(tokens.specs(cfg))
    registers = {"tokens": jnp.asarray(rng.standard_normal((3, 8)), jnp.float32)}
    read, seen = vision_encoder(weights, patches, registers, cfg)
    assert read.shape == (2, 3, 8) and seen.shape == patches.shape
    none = tokens.TokensConfig(8, 0)
    _, plain = vision_encoder(weights, patches, {"tokens": jnp.zeros((0, 8))}, none)
    q, k, v = (patches @ w for w in weights)
    score = jnp.exp(q @ k.swapaxes(1, 2) / jnp.sqrt(8.0))
    np.testing.assert_array_equal(plain, patches + (score / score.sum(-1, keepdims=True)) @ v)
    assert np.abs(seen - plain).max() > 1e-2


def test_learned_tokens_refuse_a_negative_number():
    with pytest.raises(ValueError, match="tokens is -1"):
        tokens.TokensConfig(8, -1)
