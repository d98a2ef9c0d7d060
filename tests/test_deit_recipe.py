"""What of the DeiT III recipe goes beyond cross-entropy and AdamW: mixed images, the binary loss, LAMB."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memtok_jax import config, data, sharding
from memtok_jax import params as pr
from memtok_jax.config import UserError
from memtok_jax.data.images import augment
from memtok_jax.data.images.config import AugmentConfig, CompositesConfig, ImagesConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.vision.classifier import ClassifierConfig
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.training import losses, step
from memtok_jax.training.experiment import Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.optimizer import make_optimizer

MIXING = AugmentConfig(mixup=0.8, cutmix=1.0)
DATA = ImagesConfig(size=(16, 24), composites=CompositesConfig(classes=4, images=40), augment=MIXING)


def pair(rows: int = 20, columns: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A black and a white image: the mean over 255 of any mixture is the share of the white one."""
    return np.zeros((rows, columns, 3), np.uint8), np.full((rows, columns, 3), 255, np.uint8)


# ---------------------------------------------------------------------------------------------------------- mixed images

def test_mixup_is_the_weighted_mean():
    one, other = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment.mixup(one, other, 1.0), one)
    np.testing.assert_array_equal(augment.mixup(one, other, 0.0), other)
    assert np.abs(augment.mixup(one, other, 0.3) - (0.3 * one + 0.7 * other)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_cutmix_keeps_the_share_it_says_and_the_area_of_its_draw(share):
    """The share told is that of the pixels, always; where the window lies inside, it is the one that was drawn."""
    one, other = pair()
    for seed in range(40):
        mixed, left = augment.cutmix(one, other, share, np.random.default_rng(seed))
        assert 1 - mixed.mean() / 255 == pytest.approx(left, abs=1e-9)
        inside = (mixed == 255).all(2)
        ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if len(ys):
            assert inside[ys[0]:ys[-1] + 1, xs[0]:xs[-1] + 1].all(), "one window"
            if ys[0] > 0 and xs[0] > 0 and ys[-1] < 19 and xs[-1] < 29:
                assert abs(left - share) <= (20 + 30 + 1) / 600, "a row and a column of rounding"
        assert left >= share - 51 / 600, "the border takes from the window only"


def test_targets_of_mixed_images_sum_to_one_and_say_what_is_seen():
    np.testing.assert_allclose(augment.shares(1, 3, 0.25, 5), [0, 0.25, 0, 0.75, 0])
    np.testing.assert_array_equal(augment.shares(2, 2, 0.25, 3), [0, 0, 1])
    one, other = pair()
    means = {}
    for name, cfg in (("mixup", AugmentConfig(mixup=0.8)), ("cutmix", AugmentConfig(cutmix=1.0)), ("both", MIXING)):
        drawn = [augment.mix(one, other, cfg, np.random.default_rng(seed)) for seed in range(60)]
        for mixed, share in drawn:
            assert 1 - mixed.mean() / 255 == pytest.approx(share, abs=0.5 / 255)
        means[name] = np.mean([len(np.unique(mixed)) == 1 for mixed, _ in drawn])
    assert means["mixup"] == 1.0 and means["cutmix"] < 0.2 and 0.3 < means["both"] < 0.8, "flat grey or a window, or a coin"


def test_batches_of_mixed_images():
    """Rows of any division over processes are the same, and a plain run's images are those that are mixed."""
    batch = next(data.open_train(DATA, 6))
    plain = next(data.open_train(dataclasses.replace(DATA, augment=AugmentConfig()), 6))
    assert batch["targets"].shape == (6, 1, 4) and batch["targets"].dtype == np.float32 and batch["inputs"].dtype == np.uint8
    np.testing.assert_allclose(batch["targets"].sum(-1), 1, atol=1e-6)
    for row in range(6):
        named = {int(plain["targets"][row, 0]), int(plain["targets"][row ^ 1, 0])}
        assert set(np.flatnonzero(batch["targets"][row, 0] > 1e-6)) <= named
        one, other = (plain["inputs"][n, 0].astype(int) for n in (row, row ^ 1))
        mixed = batch["inputs"][row, 0].astype(int)
        assert (mixed >= np.minimum(one, other)).all() and (mixed <= np.maximum(one, other)).all()
    for count in (2, 3, 6):
        parts = [next(data.open_train(DATA, 6, index, count)) for index in range(count)]
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
    odd = next(data.open_train(DATA, 5))
    assert odd["targets"][4].max() == pytest.approx(1), "without a partner it stays itself"


def test_what_cannot_be_mixed():
    with pytest.raises(UserError, match="augment.mixup is -1.0; it must be at least 0"):
        AugmentConfig(mixup=-1.0)


# ----------------------------------------------------------------------------------------------------------------- losses

def test_the_binary_loss_is_its_formula():
    """Each class of a mixed image counts as there; unscored rows count nothing; extra outputs are no class."""
    rng = np.random.default_rng(0)
    logits, shares = rng.normal(0, 3, (3, 1, 5)), np.array([[[0.3, 0.7, 0, 0]], [[0, 0, 1, 0]], [[np.nan] * 4]])
    there = np.pad(shares, ((0, 0), (0, 0), (0, 1)))[:2] > 0
    p = 1 / (1 + np.exp(-logits[:2]))
    expected = -np.where(there, np.log(p), np.log(1 - p)).mean((1, 2))
    sums = losses.totals(jnp.asarray(logits), jnp.asarray(shares, jnp.float32), "binary")
    np.testing.assert_allclose([sums.nats, sums.count], [expected.sum(), 2], rtol=1e-5)
    labels = jnp.array([[1], [2], [losses.IGNORE]])
    one_hot = losses.totals(jnp.asarray(logits), jax.nn.one_hot(labels, 5).at[2].set(jnp.nan), "binary")
    np.testing.assert_allclose(losses.totals(jnp.asarray(logits), labels, "binary"), one_hot, rtol=1e-6)
    by_optax = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits[:2]), jax.nn.one_hot(labels[:2], 5)).mean(-1).sum()
    np.testing.assert_allclose(one_hot.nats, by_optax, rtol=1e-5)


def test_cross_entropy_of_shares():
    """It is the weighted mean of those of the classes, that of the class for a pure share, and counts the larger share as right."""
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, (2, 1, 4)))
    labels = [jnp.array([[n], [n]]) for n in (0, 3)]
    pure = [losses.totals(logits, label) for label in labels]
    for label, sums in zip(labels, pure, strict=True):
        np.testing.assert_allclose(losses.totals(logits, jax.nn.one_hot(label, 4)), sums, rtol=1e-6)
    mixed = losses.totals(logits, 0.25 * jax.nn.one_hot(labels[0], 4) + 0.75 * jax.nn.one_hot(labels[1], 4))
    np.testing.assert_allclose(mixed.nats, 0.25 * pure[0].nats + 0.75 * pure[1].nats, rtol=1e-6)
    assert mixed.correct == pure[1].correct


def test_targets_that_are_not_kept_are_not_scored():
    labels, shares = jnp.array([[[1], [2]], [[3], [4]]]), jnp.ones((2, 2, 1, 3)) / 3
    kept = jnp.array([True, False])
    for targets in (labels, shares):
        assert losses.is_scored(losses.keep(targets, kept)).tolist() == [[[True], [True]], [[False], [False]]]


# ------------------------------------------------------------------------------------------------------------------- LAMB

SPECS = {"w": pr.ParamSpec((3, 4), (None, None), pr.normal(1.0)),
         "stack": pr.stack({"w": pr.ParamSpec((4, 2), (None, None), pr.normal(1.0))}, 2),
         "zero": pr.ParamSpec((3, 3), (None, None), pr.zeros), "bias": pr.ParamSpec((5,), (None,), pr.normal(1.0), decayed=False)}
RULE = OptimizerConfig(learning_rate=1.0, steps=10, warmup_steps=0, weight_decay=0.1, clip_norm=1e9, rule="lamb", beta2=0.999)


def test_lamb_is_that_of_optax_with_a_ratio_for_each_layer():
    params = pr.init_params(SPECS, jax.random.key(0))
    params["stack"]["w"] = params["stack"]["w"].at[1].mul(10.0)      # one ratio for the stack would be another
    grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), params)
    ours = make_optimizer(RULE, SPECS)
    found = ours.update(grads, ours.init(params), params)[0]
    theirs = optax.lamb(-1.0, b1=0.9, b2=0.999, eps=RULE.epsilon, weight_decay=0.1)
    split = lambda tree: {"w": tree["w"], "first": tree["stack"]["w"][0], "second": tree["stack"]["w"][1], "zero": tree["zero"]}
    expected = theirs.update(split(grads), theirs.init(split(params)), split(params))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), split(found), expected)
    adam = optax.scale_by_adam(0.9, 0.999, RULE.epsilon)
    np.testing.assert_allclose(found["bias"], adam.update(grads["bias"], adam.init(grads["bias"]))[0], rtol=1e-6)
    length = lambda x: np.linalg.norm(np.asarray(x))
    assert length(found["stack"]["w"][1]) == pytest.approx(length(params["stack"]["w"][1]), rel=1e-5), "as long as the matrix"


# --------------------------------------------------------------------------------------------------------------- together

def experiment(**training) -> Experiment:
    vit = VitConfig(width=16, layers=2, heads=2, hidden=32, patch=4, grid=(4, 4), registers=2, layerscale=0.5)
    return Experiment(ClassifierConfig(vit, classes=5), dataclasses.replace(DATA, size=(16, 16)),
                      OptimizerConfig(learning_rate=0.02, steps=8, warmup_steps=1, rule="lamb", weight_decay=0.05),
                      TrainingConfig(batch=8, loss="binary", data=1, **training))


def test_an_update_of_the_whole_recipe():
    """Through the trainer's own step: the loss of two microbatches is that of the whole batch, and goes down on it."""
    exp, mesh, found = experiment(microbatches=2), sharding.make_mesh(1, 1, 1), []
    how = step.update_of(exp, bind(exp.model))
    read = next(data.open_train(exp.data, 8))
    batch = step.Batch(*(jnp.asarray(read[name]) for name in step.Batch._fields))
    with jax.set_mesh(mesh):
        shape = step.abstract_batch(how, exp.data, mesh).targets  # of all outputs; those beyond the classes of the data are padded
        assert (shape.shape, shape.dtype, batch.targets.shape) == ((8, 1, 5), jnp.float32, (8, 1, 4))
        state = jax.jit(lambda k: step.init_train_state(how, k))(jax.random.key(0))
        logits = jax.jit(lambda p, c, x: how.model.apply(p, c, x)[0])(state.params, state.carry, batch.inputs)
        update = step.compile_step(how, mesh)
        for _ in range(6):
            state, numbers = update(state, batch)
            found.append(float(numbers["loss"]))
    sums = losses.totals(logits, batch.targets, "binary")
    assert found[0] == pytest.approx(float(sums.nats / sums.count), rel=1e-4) and found[-1] < 0.95 * found[0]


def test_mistakes_of_the_recipe():
    with pytest.raises(UserError, match="optimizer.rule is 'lion'; it must be one of adamw, lamb"):
        dataclasses.replace(RULE, rule="lion")
    with pytest.raises(UserError, match="training.loss is 'hinge'; it must be one of softmax, binary"):
        TrainingConfig(batch=1, loss="hinge")
    with pytest.raises(UserError, match="training.loss is 'binary', which is for classes and shares; the targets of task:recall"):
        config.load("recall", ("training.loss=binary",))


def test_the_presets_name_the_recipe():
    exp = config.load("vit_registers:imagenet_b")
    assert (exp.optimizer.rule, exp.training.loss, exp.optimizer.learning_rate) == ("lamb", "binary", 3e-3)
    assert (exp.data.augment.mixup, exp.data.augment.cutmix, exp.data.augment.filters) == (0.8, 1.0, ("grey", "solarise", "blur"))
