"""Edits of a trained vision transformer: test-time registers on planted neurons, replaced registers, and the search for both."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_cases import config, features, images, scrambled

from memtok_jax.analysis import register_neurons
from memtok_jax.config import UserError
from memtok_jax.models.vision import edits, vit
from memtok_jax.models.vision.output import Counts, split, token_norms

# ------------------------------------------------------------------------------------------------------- a planted neuron

LAYER, UNIT, PLACE = 1, 17, (1, 2)  # this unit fires on the brightest patch, which is the one in row 1, column 2


def planted():
    """A model without registers whose only outlier is written by one unit: (config, params, images).

    Feature 0 of the residual stream is the brightness of a patch; unit UNIT of layer LAYER reads it and writes a huge vector.
    Nothing else matters: attention writes nothing, all other weights are small.
    """
    cfg = config(layers=3, registers=0, layerscale=0.0)
    params = jax.tree.map(lambda p: 0.1 * p, scrambled(vit.specs(cfg)))
    ones = lambda leaf: jnp.ones_like(leaf)
    layers = params["layers"]
    for norm in ("norm_attention", "norm_mlp"):
        layers[norm] = {"scale": ones(layers[norm]["scale"]), "bias": jnp.zeros_like(layers[norm]["bias"])}
    silent = jnp.zeros_like(layers["attention"]["o"]["w"])
    layers["attention"]["o"] = {"w": silent, "b": jnp.zeros_like(layers["attention"]["o"]["b"])}
    # The brightness of a patch goes to feature 0 alone; everything else of the embedding is small noise.
    params["patch"]["w"] = params["patch"]["w"].at[:, 0].set(1 / 48)
    mlp = layers["mlp"]
    mlp["up"]["w"] = mlp["up"]["w"].at[LAYER, :, UNIT].set(0).at[LAYER, 0, UNIT].set(4.0)
    mlp["up"]["b"] = mlp["up"]["b"].at[LAYER, UNIT].set(-12.0)
    mlp["down"]["w"] = mlp["down"]["w"].at[LAYER, UNIT].set(30.0)
    x = 0.01 * images(2)
    row, column = PLACE
    return cfg, params, x.at[:, 4 * row:4 * row + 4, 4 * column:4 * column + 4].add(1.0)


@pytest.fixture(scope="module")
def model():
    return planted()


def test_the_planted_outlier_is_there(model):
    """What the other tests rely on: one patch far above the others, in every image."""
    cfg, params, x = model
    norms = np.asarray(token_norms(features(params, x, cfg))["patches"])
    place = PLACE[0] * 3 + PLACE[1]
    assert (norms.argmax(1) == place).all()
    assert (norms[:, place] > 20 * np.median(norms, axis=1)).all()


def test_search_finds_the_planted_neuron(model):
    cfg, params, x = model
    options = dict(layer=-1, cutoff=100.0, top_k=1)
    assert register_neurons.find(params, [x, x[:1]], cfg, highest_layer=2, **options) == ((LAYER, UNIT),)
    assert register_neurons.find(params, [x], cfg, highest_layer=2, sparse=True, **options) == ((LAYER, UNIT),)
    assert register_neurons.find(params, [x], cfg, highest_layer=0, **options)[0][0] == 0
    with pytest.raises(UserError, match="no patch of 2 images has a norm above cutoff=1e.06"):
        register_neurons.find(params, [x], cfg, highest_layer=2, layer=-1, cutoff=1e6, top_k=1)
    with pytest.raises(UserError, match="highest_layer=3: the model has layers 0 .. 2"):
        register_neurons.find(params, [x], cfg, highest_layer=3, **options)


def test_the_score_is_the_mean_over_outlier_patches(model):
    """Against a loop over images: one with an outlier, one with two, one without, which counts for nothing."""
    cfg, params, x = model
    x = jnp.concatenate([x.at[1, :4, :4].add(0.7), jnp.zeros_like(x[:1])])
    out = features(params, x, cfg, capture=("norms", "mlp"))
    norms, a = np.asarray(out.captured["norms"])[2][:, 1:], np.asarray(out.captured["mlp"])[:, :, 1:]
    assert list((norms > 100).sum(1)) == [1, 2, 0]
    means = [np.abs(a[:, b][:, norms[b] > 100]).mean(1) for b in range(2)]
    found = register_neurons.score(params, x, cfg, 2, 100.0)
    np.testing.assert_allclose(found.size / found.outliers, np.mean(means, axis=0), rtol=1e-5, atol=5e-6)


def test_a_test_time_register_takes_the_norm(model):
    """After the edit no patch stands out, and the added token carries what the patch did."""
    cfg, params, x = model
    edit = edits.test_time_registers([(LAYER, UNIT)])
    before, out = features(params, x, cfg), features(params, x, cfg, edits=(edit,))
    norms = {name: np.asarray(array) for name, array in token_norms(out).items()}
    assert out.counts == Counts(1, 0, 9, 1) and norms["added"].shape == (2, 1)
    assert (norms["patches"].max(1) < 2 * np.median(norms["patches"], axis=1)).all()
    highest = np.asarray(token_norms(before)["patches"]).max(1)
    np.testing.assert_allclose(norms["added"][:, 0], highest, rtol=0.05)
    doubled = features(params, x, cfg, edits=(replace(edit, scale=2.0),))
    np.testing.assert_allclose(token_norms(doubled)["added"][:, 0], 2 * highest, rtol=0.05)


def test_images_of_a_batch_are_edited_each(model):
    cfg, params, x = model
    x = x.at[1].multiply(0.5)
    both = features(params, x, cfg, edits=(edits.test_time_registers([(LAYER, UNIT), (0, 3)]),))
    for b in (0, 1):
        one = features(params, x[b:b + 1], cfg, edits=(edits.test_time_registers([(LAYER, UNIT), (0, 3)]),))
        np.testing.assert_allclose(one.prenorm[0], both.prenorm[b], rtol=1e-5, atol=1e-4)
    added = np.asarray(token_norms(both)["added"])
    assert abs(added[0] - added[1]) > 1


def test_nothing_moved_and_nothing_added_changes_nothing():
    cfg = config()
    params, x = scrambled(vit.specs(cfg)), images()
    out = features(params, x, cfg, edits=(edits.test_time_registers((), tokens=0),))
    np.testing.assert_array_equal(out.prenorm, features(params, x, cfg).prenorm)


# ------------------------------------------------------------------------------------------------ the edit of activations

COUNTS = Counts(1, 2, 4, 1)
UNITS = ((0, 1), (0, 3))


def edited(a, **options):
    edit = edits.test_time_registers(UNITS, **options)
    neurons, = edits.plan((edit,), config(layers=1, hidden=4)).neurons
    return np.asarray(edits.edit_activations((edit,), (neurons[0],), jnp.asarray(a), COUNTS))


def some_activations():
    """[2, 8, 4]: class token, two registers, four patches, the added token."""
    return np.random.default_rng(0).standard_normal((2, 8, 4)).astype(np.float32)


@pytest.mark.parametrize("patches", edits.PATCHES)
def test_activations_against_a_loop(patches):
    """Token by token, for the units on the list; all others and the class token and registers stay."""
    a = some_activations()
    want = a.copy()
    for b in range(2):
        for f in (1, 3):
            seen = a[b, :7, f]
            want[b, 7, f] = 1.5 * seen[np.abs(seen).argmax()]
            own = a[b, 3:7, f]
            limit = np.abs(own).mean() + np.abs(own).std()
            want[b, 3:7, f] = {"zero": np.zeros(4), "mean": np.full(4, own.mean()), "unchanged": own,
                               "outliers": np.where(np.abs(own) > limit, 0, own)}[patches]
    np.testing.assert_allclose(edited(a, scale=1.5, patches=patches), want, rtol=1e-6)
    assert patches == "unchanged" or np.abs(want - a)[:, 3:7].max() > 0.1


def test_one_value_for_all_units_is_the_authors_rule():
    a = some_activations()
    found = edited(a, shared_max=True)
    for b in range(2):
        both = a[b, :7][:, [1, 3]].ravel()
        np.testing.assert_allclose(found[b, 7, [1, 3]], both[np.abs(both).argmax()])


# -------------------------------------------------------------------------------------------------- replaced registers

@pytest.fixture(scope="module")
def trained():
    cfg = config(layers=3)
    params, x = scrambled(vit.specs(cfg)), images(3)
    return cfg, params, x, features(params, x, cfg, capture=("hidden",))


EVERY = (0, 1, 2, 3)


def test_statistics_are_those_of_all_images(trained):
    cfg, params, x, out = trained
    found = register_neurons.register_statistics(params, [x[:2], x[2:]], cfg)
    registers = np.asarray(split(out.captured["hidden"], out.counts, axis=2)["registers"])
    np.testing.assert_allclose(found.mean, registers.mean(1), atol=1e-5)
    np.testing.assert_allclose(found.std, registers.std(1), atol=2e-3)


def test_the_mean_of_one_image_is_the_image(trained):
    """And a shuffle of one image is none."""
    cfg, params, x, out = trained
    own = register_neurons.register_statistics(params, [x[:1]], cfg)
    for edit in (edits.replace_registers("mean", EVERY, own), edits.replace_registers("shuffle", EVERY)):
        found = features(params, x[:1], cfg, edits=(edit,))
        np.testing.assert_allclose(found.prenorm[0], out.prenorm[0], atol=2e-5)


def test_a_shuffle_permutes_registers_between_images(trained):
    """At the last hidden state it changes the registers' rows and nothing else; earlier it reaches the patches."""
    cfg, params, x, out = trained
    found = features(params, x, cfg, edits=(edits.replace_registers("shuffle", (3,), seed=1),))
    np.testing.assert_array_equal(found.patches, out.patches)
    order = [[np.abs(np.asarray(a - b)).max() < 1e-6 for b in out.registers].index(True) for a in found.registers]
    assert sorted(order) == [0, 1, 2] and all(place != own for own, place in enumerate(order))
    early = features(params, x, cfg, edits=(edits.replace_registers("shuffle", (1,), seed=1),))
    assert np.abs(np.asarray(early.patches - out.patches)).max() > 1e-3


def test_zero_registers_are_not_no_registers(trained):
    """The keys of zero tokens still take part in the softmax."""
    cfg, params, x, _ = trained
    out = features(params, x, cfg, capture=("hidden",), edits=(edits.replace_registers("zero", EVERY),))
    assert np.abs(np.asarray(split(out.captured["hidden"], out.counts, axis=2)["registers"])).max() == 0
    none = features(params | {"registers": {"tokens": jnp.zeros((0, 32))}}, x, replace(cfg, registers=0))
    assert np.abs(np.asarray(out.patches - none.patches)).max() > 1e-2


def test_noise_has_the_mean_and_deviation_that_are_given(trained):
    cfg, params, x, _ = trained
    statistics = edits.RegisterStatistics(jnp.full((4, 3, 32), 5.0), jnp.full((4, 3, 32), 0.5))
    out = features(params, jnp.repeat(x[:1], 8, 0), cfg, edits=(edits.replace_registers("noise", (3,), statistics),))
    drawn = np.asarray(split(out.prenorm, out.counts)["registers"])
    assert abs(drawn.mean() - 5) < 5 * 0.5 / drawn.size ** 0.5 and abs(drawn.std() - 0.5) < 0.05


def test_mistakes_are_named(trained):
    cfg, params, x, _ = trained
    call = lambda edit, cfg=cfg: jax.eval_shape(lambda: vit.features(params, x, cfg, edits=(edit,)))
    with pytest.raises(ValueError, match="mode='mean' needs statistics"):
        edits.replace_registers("mean", EVERY)
    with pytest.raises(ValueError, match="mode='none' must be one of 'zero', 'mean', 'noise', 'shuffle'"):
        edits.replace_registers("none", EVERY)
    with pytest.raises(ValueError, match="patches='max' must be one of"):
        edits.test_time_registers((), patches="max")
    with pytest.raises(ValueError, match="hidden states of a model of 3 layers are 0 .. 3"):
        call(edits.replace_registers("zero", (4,)))
    with pytest.raises(ValueError, match=r"register neuron \(3, 0\): the model has 3 layers of 48 units"):
        call(edits.test_time_registers([(3, 0)]))
    with pytest.raises(ValueError, match="the model has no registers"):
        call(edits.replace_registers("zero", (0,)), replace(cfg, registers=0))
