"""The content of memories taken away, in models whose loss is known, and in windows, which have no memory."""

from __future__ import annotations

import jax
import numpy as np
from copying_model import CopyingConfig
from model_cases import MODELS, WINDOW, model
from test_positions import PERIOD, N, planted

from memtok_jax import sharding
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation import positions as at
from memtok_jax.evaluation.suites import content
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.protocol import bind
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

CERTAIN = CopyingConfig().certainty


def bits(cfg, streams: at.Streams, reset: int, params=None, rows: int = 2) -> dict[str, np.ndarray]:
    """Bits of each token by way; rows are read side by side."""
    bound, mesh = bind(cfg), sharding.make_mesh(1, 1, 1)
    chosen = Experiment(cfg, TextConfig(sequence=2 * reset), OptimizerConfig(1e-3, 1, 0),
                        TrainingConfig(batch=1, call_tokens=reset), EvaluationConfig(batch=rows))
    with jax.set_mesh(mesh):
        own = (chosen, bound, bound.init(jax.random.key(0)) if params is None else params)
        return {name: nats / np.log(2) for name, nats in content.ways(own, None, mesh, streams, reset)}


def test_forgotten_content_is_a_reset_and_swapped_content_is_anothers():
    """A model that is all memory guesses at 8 bits when it has forgotten, and is wrong with certainty when it copies another."""
    np.testing.assert_allclose(bits(CopyingConfig(PERIOD), planted(2), N // 4)["forgotten"], 8, atol=1e-5)
    streams, found = planted(2), bits(CopyingConfig(PERIOD), planted(2), N // 2)
    np.testing.assert_array_equal(found["forgotten"], found["reset"])
    wrong = streams.targets != streams.targets[::-1]
    wrong[:, [*range(N // 2), N - 1]] = False   # before the swap, and the first token that was read behind it
    np.testing.assert_allclose(found["swapped"] - found["own"], wrong * CERTAIN / np.log(2), atol=1e-4)


def test_streams_come_back_in_their_order():
    """Streams that are all alike are swapped with themselves; unlike ones are what they are, whatever their order of reading."""
    one = planted(1)
    found = bits(CopyingConfig(PERIOD), at.Streams(*(np.repeat(part, 5, axis=0) for part in one)), N // 2)
    np.testing.assert_array_equal(found["swapped"], found["own"])
    five = bits(CopyingConfig(PERIOD), planted(5), N // 2)
    np.testing.assert_array_equal(five["forgotten"], five["reset"])
    np.testing.assert_array_equal(five["swapped"][:, :N // 2], five["own"][:, :N // 2])


def random_streams(tokens: int) -> at.Streams:
    ids = np.random.default_rng(1).integers(16, size=(3, tokens + 1)).astype(np.int32)
    return at.Streams(ids[:, :-1], ids[:, 1:])


def test_a_memory_is_what_outlives_windows_and_segments():
    assert not content.has_memory(bind(MODELS["window"])) and not content.has_memory(bind(MODELS["segment"]))
    assert all(content.has_memory(bind(MODELS[name])) for name in ("lmm", "mag", "mac", "armt", "rmt", "transformer_xl"))


def test_windows_stay_as_they_are():
    """Windows alone have no content to take away; a memory beside one changes nothing while its gate is closed, but when open."""
    assert "forgotten" not in bits(MODELS["window"], random_streams(16), 4)
    cfg = model(BesideConfig((WINDOW, LmmConfig(MODELS["lmm"].pattern[0].memory))), segment=0)
    params = bind(cfg).init(jax.random.key(0))
    closed = bits(cfg, random_streams(16), 4, params)
    for name in ("forgotten", "swapped"):
        np.testing.assert_array_equal(closed[name], closed["own"])
    assert np.abs(closed["reset"] - closed["own"]).max() > 1e-3
    open_ = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + ("gate_1" in jax.tree_util.keystr(path)), params)
    opened = bits(cfg, random_streams(16), 4, open_)
    for name in ("forgotten", "swapped"):
        assert np.abs(opened[name] - opened["own"])[:, :4].max() == 0 < np.abs(opened[name] - opened["own"])[:, 4:].max()


def test_in_a_model_of_segments_forgotten_is_reset():
    found = bits(MODELS["transformer_xl"], random_streams(16), 4)
    np.testing.assert_allclose(found["forgotten"], found["reset"], rtol=0, atol=1e-5)
    assert np.abs(found["swapped"] - found["own"])[:, 4:].max() > 0
