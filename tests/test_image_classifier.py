"""The image classifier: what reaches the head, random keys as state, and training through the one trainer."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import config, data, sharding
from memtok_jax import params as pr
from memtok_jax.analysis import registers
from memtok_jax.config import UserError
from memtok_jax.data.images.config import AugmentConfig, CompositesConfig, ImagesConfig
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.models.call import Call
from memtok_jax.models.protocol import bind
from memtok_jax.models.vision import classifier, vit
from memtok_jax.models.vision.classifier import ClassifierConfig, ClassifierState
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import Counts, VitOutput
from memtok_jax.training import metrics, run, step
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

VIT = VitConfig(width=16, layers=2, heads=2, hidden=32, patch=4, grid=(4, 4), registers=2, layerscale=1.0, drop_path=0.4, std=0.2)
CFG = ClassifierConfig(VIT, classes=5, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def params():
    return pr.init_params(classifier.specs(CFG), jax.random.key(0))


def images(rows: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (rows, 1, 16, 16, 3), np.uint8))


TRAINING = Call(training=True)


@partial(jax.jit, static_argnames="cfg")
def run_classifier(params, state, x, cfg, call=Call()):  # noqa: B008
    return classifier.run(params, state, x, cfg, call)[:2]



# ------------------------------------------------------------------------------------------------------------------ head

def tokens() -> VitOutput:
    draw = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
    return VitOutput(draw(0, 3, 1, 16), draw(1, 3, 2, 16), draw(2, 3, 16, 16), draw(3, 3, 19, 16), (4, 4), Counts(1, 2, 16, 0))


@pytest.mark.parametrize("pool", classifier.POOLS)
def test_only_what_the_pool_names_reaches_the_head(pool):
    """By the zero pattern of the gradient with respect to the tokens."""
    cfg = dataclasses.replace(CFG, pool=pool)
    params = pr.init_params(classifier.specs(cfg), jax.random.key(0))
    gradient = jax.grad(lambda out: jnp.square(classifier.logits(params, out, cfg)).sum())(tokens())
    reached = {name: bool(np.abs(getattr(gradient, name)).max() > 0) for name in ("cls", "registers", "patches")}
    assert reached == {"cls": "cls" in pool, "registers": "register" in pool, "patches": "patch" in pool}
    assert np.all(gradient.prenorm == 0)


def test_pools_are_what_they_are_called():
    out = tokens()
    pools = {name: classifier.pool(out, dataclasses.replace(CFG, pool=name)) for name in classifier.POOLS}
    mean, register = out.patches.mean(1), out.registers.mean(1)
    np.testing.assert_array_equal(pools["cls_patch"], jnp.concatenate([out.cls[:, 0], mean], 1))
    np.testing.assert_array_equal(pools["cls_mean_register"], jnp.concatenate([out.cls[:, 0], register], 1))
    np.testing.assert_array_equal(pools["cls_register"], jnp.concatenate([out.cls[:, 0], out.registers.reshape(3, -1)], 1))
    np.testing.assert_array_equal(pools["patch_mean"], mean)


def test_a_pooled_norm_comes_after_the_mean():
    cfg = dataclasses.replace(CFG, pool="patch_mean", vit=dataclasses.replace(VIT, final_norm="pooled"))
    params = pr.init_params(classifier.specs(cfg), jax.random.key(0))
    mean = np.asarray(tokens().patches.mean(1))
    normed = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + VIT.epsilon)
    np.testing.assert_allclose(classifier.logits(params, tokens(), cfg), normed @ params["head"]["w"], atol=1e-5)


def test_bytes_and_fractions_of_one_are_the_same_image():
    pixels = images(2)[:, 0]
    np.testing.assert_allclose(classifier.normalise(pixels, CFG), classifier.normalise(pixels / np.float32(255), CFG), atol=1e-6)
    np.testing.assert_allclose(classifier.normalise(pixels, CFG), (np.asarray(pixels) / 255 - 0.5) / 0.25, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------ keys

def test_evaluation_draws_nothing_and_training_draws_anew(params):
    x = images(3)
    first = classifier.init_state(params, CFG, 3)
    y, second = run_classifier(params, first, x, CFG)
    np.testing.assert_array_equal(y, run_classifier(params, second, x, CFG)[0])
    a, after = run_classifier(params, first, x, CFG, TRAINING)
    b, _ = run_classifier(params, second, x, CFG, TRAINING)
    np.testing.assert_array_equal(after.key, second.key)
    assert (np.abs(a - b).max((1, 2)) > 1e-3).all() and np.abs(a - y).max() > 1e-3
    no_drop = dataclasses.replace(CFG, vit=dataclasses.replace(VIT, drop_path=0.0))
    np.testing.assert_allclose(run_classifier(params, first, x, no_drop, TRAINING)[0], y, atol=1e-6)


def test_a_row_draws_the_same_in_any_batch(params):
    """Two of four rows with their keys, in another order: the same outputs and the same next keys."""
    x = images(4)
    state = classifier.init_state(params, CFG, 4)
    assert len({tuple(k) for k in np.asarray(state.key).tolist()}) == 4
    y, after = run_classifier(params, state, x, CFG, TRAINING)
    order = jnp.array([3, 1])
    some, some_after = run_classifier(params, ClassifierState(state.key[order]), x[order], CFG, TRAINING)
    np.testing.assert_allclose(some, y[order], atol=1e-5)
    np.testing.assert_array_equal(some_after.key, after.key[order])


def test_padding_leaves_the_key_alone(params):
    state = classifier.init_state(params, CFG, 3)
    after = run_classifier(params, state, images(3), CFG, Call(length=jnp.array([1, 0, 1])))[1]
    assert ((after.key == state.key).all(1) == jnp.array([False, True, False])).all()


def test_statistics_are_those_of_the_residual_stream(params):
    stats = classifier.run(params, classifier.init_state(params, CFG, 3), images(3), CFG)[2]
    out = vit.features(params["vit"], classifier.normalise(images(3)[:, 0], CFG), VIT)
    norms = np.linalg.norm(out.prenorm, axis=-1)
    median = np.median(norms[:, 3:], axis=1)
    np.testing.assert_allclose(stats["largest_patch_over_median"], (norms[:, 3:].max(1) / median).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["register_over_median"], (norms[:, 1:3].mean(1) / median).mean(), rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize("change, message", [
    ({"pool": "patch_means"}, "model.pool is 'patch_means'; it must be one of .*did you mean 'patch_mean'"),
    ({"vit": dataclasses.replace(VIT, class_token=False)}, "take pool='patch_mean'"),
    ({"pool": "cls_register", "vit": dataclasses.replace(VIT, registers=0)}, "reads registers, and vit.registers is 0"),
    ({"mean": (0.5,)}, "must have one number for each of vit.channels=3"),
    ({"classes": 1}, "model.classes is 1; it must be at least 2"),
])
def test_configs_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(CFG, **change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape, message", [
    ((2, 1, 16, 16, 1), "images have 1 channels, the model takes 3; set data.channels"),
    ((2, 1, 3, 16, 3), "images of 3 x 16 pixels are not whole patches of 4 x 4"),
    ((2, 2, 16, 16, 3), r"expected \[batch, 1, rows, columns, channels\]"),
])
def test_images_that_do_not_fit(params, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        classifier.run(params, classifier.init_state(params, CFG, 2), jnp.zeros(shape, jnp.uint8), CFG)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------- training

def experiment(*overrides: str) -> Experiment:
    """A run of seconds on 48 composites of 16 x 16 pixels."""
    base = Experiment(
        dataclasses.replace(CFG, classes=3),
        ImagesConfig(size=(16, 16), composites=CompositesConfig(classes=3, images=48), eval_samples=20,
                     augment=AugmentConfig(flip=True, jitter=0.2)),
        OptimizerConfig(learning_rate=0.01, steps=6, warmup_steps=1),
        TrainingConfig(batch=8, log_every=1, eval_every=0, checkpoint_every=3, data=1), EvaluationConfig(batch=8))
    return config.override(base, overrides)


def saved(workdir, exp) -> step.TrainState:
    with Checkpoints(workdir, 2) as checkpoints:
        return jax.device_get(checkpoints.restore(step.abstract_state(step.update_of(exp, bind(exp.model)), run.make_mesh(exp)))[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps without interruption: (workdir, experiment)."""
    workdir, exp = tmp_path_factory.mktemp("images") / "run", experiment()
    assert run.train(exp, workdir) == 0
    return workdir, exp


def test_functions_of_the_config():
    assert bind(CFG).functions is classifier


def test_presets_have_their_published_sizes():
    """ViT-S/16 at 224 pixels with LayerScale has 22,059,496 parameters in timm (deit3_small_patch16_224); a register adds D."""
    presets = {name: config.load(f"vit_registers:{name}") for name in
               ("laptop", "fashion_mnist", "cifar10", "imagenet_s", "imagenet_b", "imagenet_l", "experiment_b")}
    for exp in presets.values():
        assert config.from_json(config.to_json(exp)) == exp and exp.call_tokens == 1
    count = pr.count(classifier.specs(presets["imagenet_s"].model))
    assert count == 22_059_496 + 4 * 384


def test_a_run_reports_accuracy_beside_what_costs_nothing(finished):
    last = metrics.read(finished[0])[-1]
    assert {"eval/accuracy", "eval/loss", "baseline/chance", "baseline/majority", "memory/largest_patch_over_median"} <= set(last)
    assert any(name.startswith("baseline/ridge on pixels") for name in last) and last["baseline/chance"] == 1 / 3
    rates = metrics.column(metrics.read(finished[0]), "train/images_seen")
    assert rates == ([1, 2, 3, 4, 5, 6], [8.0, 16, 24, 32, 40, 48])


def test_eval_scores_the_same_images_the_same(finished):
    found = evaluate_run(finished[0], (), lambda text: None)
    last = metrics.read(finished[0])[-1]
    assert found["eval/images"] == 20 and found["eval/accuracy"] == last["eval/accuracy"]
    assert found["eval/loss"] == pytest.approx(last["eval/loss"], rel=1e-5)


def test_the_analysis_reads_a_run_directory(finished):
    model = registers.load(str(finished[0]))
    jax.tree.map(np.testing.assert_array_equal, model.params, saved(*finished).params["vit"])
    assert (model.cfg, model.data, model.mean, model.name) == (VIT, finished[1].data, (0.5,) * 3, "run, step 6")


def test_a_restarted_run_equals_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    """Broken off behind the checkpoint of step 3: parameters, moments, random keys and data go on bit for bit."""
    real = data.open_train

    def failing(*args):
        batches = real(*args)
        read = batches._read
        batches._read = lambda: read() if batches._step < 4 else (_ for _ in ()).throw(RuntimeError("broken off"))
        return batches

    monkeypatch.setattr(data, "open_train", failing)
    with pytest.raises(RuntimeError, match="broken off"):
        run.train(finished[1], tmp_path / "cut")
    monkeypatch.setattr(data, "open_train", real)
    assert run.train(finished[1], tmp_path / "cut") == 0
    cut, whole = saved(tmp_path / "cut", finished[1]), saved(*finished)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    initial = classifier.init_state((), finished[1].model, 8)
    assert whole.step == 6 and (whole.carry.key != initial.key).any(1).all()


def test_eight_devices_equal_one(finished):
    """Random keys travel with their rows, so that stochastic depth draws the same wherever a row lies."""
    exp = experiment("training.microbatches=1")
    how = step.update_of(exp, bind(exp.model))
    batches = [next(it) for it in [data.open_train(exp.data, 8)] for _ in range(2)]
    after = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            where = step.state_shardings(how, mesh)
            state = jax.jit(lambda k: step.init_train_state(how, k), out_shardings=where)(jax.random.key(0))
            update = step.compile_step(how, mesh)
            for batch in batches:
                placed = step.Batch(*(sharding.place_rows(mesh, batch[name]) for name in step.Batch._fields))
                state, numbers = update(state, placed)
        # A bias of the keys shifts all scores of a query alike: its gradient is zero up to rounding, which Adam makes steps of.
        attention = state.params["vit"]["layers"]["attention"]
        attention["k"]["b"] = jnp.zeros_like(attention["k"]["b"])
        after.append(jax.device_get((state.params, numbers["loss"], state.carry)))
    for other in after[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), after[0][:2], other[:2])
        np.testing.assert_array_equal(after[0][2].key, other[2].key)


@pytest.mark.parametrize("classes", [2, 10])
def test_another_number_of_classes_than_outputs_is_refused(classes, tmp_path):
    with pytest.raises(UserError, match=f"the data has {classes} classes, model.classes is 3; set .*={classes}"):
        run.train(experiment(f"data.composites.classes={classes}"), tmp_path / "run")


@pytest.mark.slow
def test_sixteen_images_are_learnt_by_heart(tmp_path):
    exp = experiment("data.composites.images=16", "training.batch=16", "optimizer.steps=150", "model.vit.drop_path=0.0",
                     "data.augment.flip=false", "data.augment.jitter=0.0", "training.log_every=150")
    run.train(exp, tmp_path / "run")
    assert metrics.column(metrics.read(tmp_path / "run"), "train/accuracy")[1][-1] == 1.0


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("registers", [0, 4])
def test_fashion_mnist_is_learnt_with_and_without_registers(tmp_path, registers):
    """Measured: .825 with four registers (seed 0)."""
    exp = config.load("vit_registers:fashion_mnist", (f"model.vit.registers={registers}",))
    run.train(exp, tmp_path / "run")
    assert metrics.column(metrics.read(tmp_path / "run"), "eval/accuracy")[1][-1] >= 0.72
