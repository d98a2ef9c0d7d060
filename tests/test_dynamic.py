"""Dynamic evaluation against literal loops in float64; without a step it is plain scoring."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_model
import toy_run

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.evaluation import dynamic
from memtok_jax.evaluation.options import DynamicConfig
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.run import train

V, TOKENS = 5, 4


@dataclass(frozen=True)
class UnigramConfig:
    """The same logits everywhere: the gradient of its loss is softmax minus frequencies, in closed form."""

    vocabulary: int = V
    call_tokens: int = 1
    reach: int = 1
    segment: int = 0


def specs(cfg):
    return {"logits": P.ParamSpec((cfg.vocabulary,), ("vocab",), P.normal(1.0))}


def state_specs(cfg, batch):
    return P.StateSpec((batch,), ("batch",), jnp.int32)


def init_state(params, cfg, batch):
    return jnp.zeros((batch,), jnp.int32)


def run(params, state, ids, cfg, call: Call):
    return jnp.broadcast_to(params["logits"], (*ids.shape, cfg.vocabulary)), state, {}


UNIGRAM = Model(sys.modules[__name__], UnigramConfig())


def batches(lengths, total: int, vocabulary: int, documents: bool = False, seed: int = 0):
    """Batches of `total` tokens for one row each length; a row may end inside a batch. documents: every batch is a new text."""
    rng, rows = np.random.default_rng(seed), len(lengths)
    for begin in range(0, max(lengths), total):
        length = np.clip(np.array(lengths) - begin, 0, total).astype(np.int32)
        targets = rng.integers(vocabulary, size=(rows, total)).astype(np.int32)
        real = np.arange(total)[None] < length[:, None]
        yield {"inputs": np.where(real, rng.integers(vocabulary, size=(rows, total)), 0).astype(np.int32),
               "targets": np.where(real, targets, -100), "start": np.full(rows, begin == 0 or documents), "length": length}


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def unigram_by_hand(theta0: np.ndarray, cfg: DynamicConfig, rate: float, root: np.ndarray, data) -> float:
    """The rule in numpy, one call after the other."""
    theta, total = theta0.copy(), 0.0
    for batch in data:
        theta = theta0.copy() if batch["start"].all() else theta
        for first in range(0, batch["targets"].shape[1], TOKENS):
            wanted = batch["targets"][:, first:first + TOKENS]
            wanted = wanted[wanted >= 0]
            p = np.exp(theta) / np.exp(theta).sum()
            total -= np.log(p[wanted]).sum()
            gradient = p * (len(wanted) > 0) - np.bincount(wanted, minlength=V) / max(len(wanted), 1)
            if cfg.rule == "sgd":
                theta = theta - rate * gradient + cfg.decay * (theta0 - theta)
            else:
                back = np.minimum(cfg.decay * root / root.mean(), 1)
                theta = theta - rate * gradient / (root + cfg.epsilon) + back * (theta0 - theta)
    return total


@pytest.mark.parametrize("cfg", [DynamicConfig(rule="sgd"), DynamicConfig(rule="sgd", decay=0.1),
                                 DynamicConfig(epsilon=0.01), DynamicConfig(decay=0.9)], ids=["sgd", "decay", "rms", "rms+decay"])
def test_is_its_definition(cfg):
    with jax.enable_x64(True):
        theta, root = np.random.default_rng(3).normal(size=V), np.random.default_rng(4).random(V)
        for lengths, documents in (((24,), False), ((16,), True), ((24, 10), False)):
            data = list(batches(lengths, 8, V, documents))
            found = dynamic.score({"logits": jnp.asarray(theta)}, data, dynamic.rule_of(cfg, {"logits": jnp.asarray(root)}, 0.3),
                                  model=UNIGRAM, tokens=TOKENS)
            assert found == pytest.approx(unigram_by_hand(theta, cfg, 0.3, root, data), rel=1e-13)


def test_mean_squares_are_those_of_the_calls():
    with jax.enable_x64(True):
        theta, data = np.random.default_rng(3).normal(size=V), list(batches((16, 16), 8, V))
        found = dynamic.root_mean_square({"logits": jnp.asarray(theta)}, data, model=UNIGRAM, tokens=TOKENS)["logits"]
    p, squares = np.exp(theta) / np.exp(theta).sum(), []
    for batch in data:
        for first in range(0, 8, TOKENS):
            squares.append((p - np.bincount(batch["targets"][:, first:first + TOKENS].ravel(), minlength=V) / 8) ** 2)
    np.testing.assert_allclose(found, np.sqrt(np.mean(squares, axis=0)), rtol=1e-12)


class WideToy:
    """The toy model, whose carry holds a sum of what was read and a leaf that follows from a parameter; the carry is float64."""

    specs, state_specs, run = (staticmethod(getattr(toy_model, name)) for name in ("specs", "state_specs", "run"))
    init_state = staticmethod(lambda params, cfg, batch: wide(toy_model.init_state(params, cfg, batch)))


def toy_by_hand(model: Model, params, rate: float, data) -> float:
    """One call after the other with `jax.grad` of what `apply` gives; the carry is handed on as numbers."""
    carry, total = None, 0.0
    for batch in data:
        carry = model.init_state(params, len(batch["inputs"])) if carry is None else carry
        for first in range(0, batch["inputs"].shape[1], TOKENS):
            ids, wanted = (jnp.asarray(batch[name][:, first:first + TOKENS]) for name in ("inputs", "targets"))

            def loss(params, carry=carry, ids=ids, wanted=wanted, first=first, batch=batch):
                prefix = jnp.zeros_like(carry.prefix) + params["prefix"][None]   # derived: follows the weights, with its gradient
                length = jnp.clip(batch["length"] - first, 0, TOKENS)
                logits, after = model.apply(params, carry._replace(prefix=prefix), ids, length)
                picked = jnp.take_along_axis(logits, jnp.maximum(wanted, 0)[..., None], -1)[..., 0]
                nats = jax.nn.logsumexp(logits, -1) - picked
                nats = jnp.where(wanted >= 0, nats, 0)
                return nats.sum() / jnp.maximum((wanted >= 0).sum(), 1), (nats.sum(), after)

            gradient, (nats, carry) = jax.grad(loss, has_aux=True)(params)
            params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
            total += float(nats)
    return total


def test_a_model_with_a_carry_is_a_loop_over_its_calls():
    """Carry, derived leaves and weights that change under them; logits of the toy model are float32."""
    with jax.enable_x64(True):
        model = Model(WideToy, toy_model.ToyConfig(vocabulary=16))
        params = wide(model.init(jax.random.key(0)))
        data = list(batches((16, 13), 8, 16))
        rule = partial(dynamic.rule_of, DynamicConfig(rule="sgd"), None)
        moved = dynamic.score(params, data, rule(0.5), model=model, tokens=TOKENS)
        assert moved == pytest.approx(toy_by_hand(model, params, 0.5, data), rel=1e-6)
        still = dynamic.score(params, data, rule(0.0), model=model, tokens=TOKENS)
        assert abs(moved - still) > 1e-2


def test_without_a_step_it_is_plain_scoring():
    """To the last bit: the same calls of the same weights, in the same order."""
    from memtok_jax import sharding
    from memtok_jax.evaluation.score import score

    model = bind(toy_model.ToyConfig(vocabulary=16))
    params, mesh = model.init(jax.random.key(0)), sharding.make_mesh(1, 1, 1)
    data = list(batches((16, 13), 8, 16))
    with jax.set_mesh(mesh):
        plain = score(params, data, mesh, model=model, call_tokens=TOKENS).nats
        root = jax.tree.map(jnp.ones_like, params)
        for cfg in (DynamicConfig(rule="sgd"), DynamicConfig(decay=0.5)):
            assert dynamic.score(params, data, dynamic.rule_of(cfg, root, 0.0), model=model, tokens=TOKENS) == plain


def test_repeated_text_is_learned_and_the_trained_weights_stay():
    """A text of one symbol: the loss falls under dynamic evaluation, and the caller's parameters are untouched."""
    params = {"logits": jnp.zeros(V)}
    data = [{"inputs": np.zeros((1, 40), np.int32), "targets": np.zeros((1, 40), np.int32), "start": np.ones(1, bool),
             "length": np.full(1, 40, np.int32)}]
    nats = dynamic.score(params, data, dynamic.rule_of(DynamicConfig(rule="sgd"), None, 1.0), model=UNIGRAM, tokens=TOKENS)
    assert nats < 0.7 * 40 * np.log(V)
    np.testing.assert_array_equal(params["logits"], 0)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A short run of the toy model on a small text."""
    folder = tmp_path_factory.mktemp("dynamic")
    (folder / "words.txt").write_text("memory is what remains when the rest is gone. " * 200)
    assert train(toy_run.experiment(str(folder / "words.txt"), "optimizer.steps=2", "training.eval_every=0"), folder / "run") == 0
    return folder / "run"


def test_the_command_learns_from_what_it_scores(run_folder):
    result = evaluate_run(run_folder, ("evaluation.dynamic.rates=0.3", "evaluation.dynamic.rule=sgd"), print, "dynamic")
    assert result["eval/dynamic_bits_per_byte"] < result["eval/bits_per_byte"] - 0.1 and result["eval/dynamic_rate"] == 0.3


@pytest.mark.parametrize("change, message", [
    ((), "the learning rate is chosen on the split 'valid', which cannot be scored too"),
    (("evaluation.dynamic.tokens=5",), "evaluation.dynamic.tokens is 5, which does not divide data.sequence 16"),
    (("evaluation.dynamic.rates=",), "evaluation.dynamic.rates is empty"),
    (("evaluation.dynamic.rule=adam",), "evaluation.dynamic.rule is 'adam'; it must be one of sgd, rms"),
    (("data=task:recall",), "suite 'dynamic' judges a model of text, and this run is on task:recall"),
])
def test_mistakes_are_one_line(run_folder, change, message):
    with pytest.raises(UserError, match=message):
        evaluate_run(run_folder, change, print, "dynamic")
