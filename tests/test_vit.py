"""The vision transformer with registers: what must hold whatever the weights are."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_close, jit
from vit_cases import config, features, gradient, images, scrambled

from memtok_jax import params as P
from memtok_jax import sharding
from memtok_jax.memory import tokens
from memtok_jax.models import language_model
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import attention_maps, split, token_norms

EVERYTHING = ("hidden", "norms", "attention", "qkv", "mlp")
KINDS = {  # every choice of the config at least once
    "dinov2": {},
    "timm": dict(table_rows="patches", mask_token=False, qk_norm=True),
    "all rows": dict(table_rows="all", feed_forward="swiglu", layerscale=0.0),
    "gap": dict(class_token=False, table_rows="patches", final_norm="pooled", layerscale=0.0),
    "dinov3": dict(positions="rope", key_bias=False, epsilon=1e-5),
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def kind(request):
    """(config, scrambled parameters, images that are not square, all that can be captured)."""
    cfg = config(**KINDS[request.param])
    params, x = scrambled(vit.specs(cfg)), images(rows=12, columns=20)
    return cfg, params, x, features(params, x, cfg, capture=EVERYTHING)


# ------------------------------------------------------------------------------------------------------------ an oracle

def oracle(params, image: np.ndarray, cfg: VitConfig) -> np.ndarray:
    """Hidden states [L+1, T, D] of one image in float64 NumPy, token by token and head by head; the grid is the trained one."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    p, (rows, columns) = cfg.patch, cfg.grid
    cut = lambda i, j: np.asarray(image, np.float64)[i * p:(i + 1) * p, j * p:(j + 1) * p].ravel()
    patches = [cut(i, j) for i in range(rows) for j in range(columns)]
    x = np.stack([pixels @ params["patch"]["w"] + params["patch"]["b"] for pixels in patches])
    table = params["positions"]
    x = x + table["patches"].reshape(-1, cfg.width)
    x = np.concatenate([params["class"]["tokens"], params["registers"]["tokens"], x])
    x[:len(table["prefix"])] += table["prefix"]
    states = [x]
    for n in range(cfg.layers):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        u = _norm(x, layer["norm_attention"], cfg.epsilon)
        x = x + layer.get("scale_attention", 1.0) * _attention(layer["attention"], u, cfg)
        u = _norm(x, layer["norm_mlp"], cfg.epsilon)
        x = x + layer.get("scale_mlp", 1.0) * _mlp(layer["mlp"], u)
        states.append(x)
    return np.stack(states)


def _norm(x, params, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon) * params["scale"] + params["bias"]


def _attention(params, u, cfg):
    out = np.zeros((len(u), cfg.heads, cfg.head_dim))
    for h in range(cfg.heads):
        q, k, v = (u @ params[name]["w"][:, h] + params[name]["b"][h] for name in "qkv")
        if cfg.qk_norm:
            q, k = _norm(q, params["norm_q"], cfg.epsilon), _norm(k, params["norm_k"], cfg.epsilon)
        for t in range(len(u)):
            score = np.exp(k @ q[t] / np.sqrt(cfg.head_dim))
            out[t, h] = score @ v / score.sum()
    return out.reshape(u.shape) @ params["o"]["w"] + params["o"]["b"]


def _mlp(params, u):
    up = u @ params["up"]["w"] + params["up"]["b"]
    if "gate" in params:
        gate = u @ params["gate"]["w"] + params["gate"]["b"]
        a = gate / (1 + np.exp(-gate)) * up
    else:
        a = up * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / 2 ** 0.5)))(up)
    return a @ params["down"]["w"] + params["down"]["b"]


@pytest.mark.parametrize("name", ["dinov2", "timm", "all rows", "gap"])
def test_equals_a_literal_oracle(name):
    cfg = config(**KINDS[name])
    params, x = scrambled(vit.specs(cfg)), images()
    found = features(params, x, cfg, capture=EVERYTHING).captured["hidden"]
    for b in range(2):
        np.testing.assert_allclose(found[:, b], oracle(params, np.asarray(x[b]), cfg), rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------------------------ captured internals

def test_capture_changes_no_number(kind):
    cfg, params, x, full = kind
    plain = features(params, x, cfg)
    assert plain.captured == {}
    assert_close(replace(full, captured={}), plain, 1e-6)


def test_captured_tokens_are_those_of_the_output(kind):
    cfg, params, x, full = kind
    seen, t = full.captured, 15 + cfg.prefix
    assert seen["hidden"].shape == (cfg.layers + 1, 2, t, cfg.width)
    np.testing.assert_array_equal(seen["hidden"][-1], full.prenorm)
    np.testing.assert_array_equal(seen["hidden"][0], vit.embed(params, x, cfg))
    np.testing.assert_allclose(seen["norms"], np.linalg.norm(np.asarray(seen["hidden"], np.float64), axis=-1), rtol=1e-6)
    np.testing.assert_allclose(jnp.concatenate(list(token_norms(full).values()), 1), seen["norms"][-1], rtol=1e-6)
    np.testing.assert_allclose(seen["attention"].sum(-1), 1, atol=1e-6)


def test_captured_queries_and_keys_make_the_captured_weights(kind):
    """Against JAX's own attention as well: weights times values through it are what the explicit path computes."""
    cfg, _, _, full = kind
    seen = full.captured
    after = "_rotated" if cfg.positions == "rope" else ""
    q, k, v = seen["q" + after], seen["k" + after], seen["v"]
    score = np.einsum("lbthk,lbshk->lbhts", q, k).astype(np.float64) / np.sqrt(cfg.head_dim)
    weight = np.exp(score - score.max(-1, keepdims=True))
    np.testing.assert_allclose(seen["attention"], weight / weight.sum(-1, keepdims=True), atol=1e-6)
    for layer in range(cfg.layers):
        theirs = jax.nn.dot_product_attention(q[layer], k[layer], v[layer])
        np.testing.assert_allclose(np.einsum("bhts,bshk->bthk", seen["attention"][layer], v[layer]), theirs, atol=5e-6)
    if cfg.positions == "rope":
        prefix = slice(0, cfg.prefix)
        np.testing.assert_array_equal(seen["q"][:, :, prefix], seen["q_rotated"][:, :, prefix])
        assert np.abs(np.asarray(seen["q"] - seen["q_rotated"])).max() > 0.1


def test_maps_are_rows_of_the_weights_by_name(kind):
    cfg, _, _, full = kind
    weight, m, c = np.asarray(full.captured["attention"]), cfg.registers, cfg.class_tokens
    found = attention_maps(full, 1, "reg2")
    np.testing.assert_array_equal(found, weight[1, :, :, c + 2, c + m:].reshape(2, cfg.heads, 3, 5))
    # Patch (1, 4) of a grid of 3 x 5 is number 9: rows first.
    np.testing.assert_array_equal(attention_maps(full, -1, (1, 4)), weight[-1, :, :, c + m + 9, c + m:].reshape(2, cfg.heads, 3, 5))
    np.testing.assert_allclose(attention_maps(full, 0, "reg0", renormalise=True).sum((-2, -1)), 1, atol=1e-6)
    assert np.asarray(found.sum((-2, -1))).max() < 1
    with pytest.raises(ValueError, match="the model has . class tokens and 3 registers"):
        attention_maps(full, 0, "reg3")
    with pytest.raises(ValueError, match="3 rows and 5 columns"):
        attention_maps(full, 0, (3, 0))
    with pytest.raises(ValueError, match="must be 'cls', 'reg0'"):
        attention_maps(full, 0, "register")


def test_cls_map_needs_a_class_token():
    cfg = config(**KINDS["gap"])
    out = features(scrambled(vit.specs(cfg)), images(), cfg, capture=EVERYTHING)
    assert out.cls.shape == (2, 0, 32)
    with pytest.raises(ValueError, match="0 class tokens"):
        attention_maps(out, 0, "cls")
    with pytest.raises(ValueError, match="need features"):
        attention_maps(replace(out, captured={}), 0, "reg0")


def test_split_refuses_another_number_of_tokens(kind):
    _, _, _, full = kind
    with pytest.raises(ValueError, match="tokens"):
        split(full.prenorm[:, 1:], full.counts)


# -------------------------------------------------------------------------------------------------------------- registers

def test_registers_are_the_memory_of_the_language_models():
    """The same file: equal subtrees of parameters, and the tokens of one are registers of the other."""
    cfg = config(registers=5)
    model = language_model.LanguageModelConfig(width=32, head_dim=4, prefix=5, pattern=(WindowConfig(4),))
    describe = lambda specs: jax.tree.map(lambda s: (s.shape, s.axes, s.decayed), specs, is_leaf=lambda n: hasattr(n, "axes"))
    assert describe(vit.specs(cfg)["registers"]) == describe(language_model.specs(model)["prefix"])


def plain_vit(params, x, cfg):
    """A transformer without any registers, put together from the blocks alone."""
    h = vit.patch_embeddings(params, x, cfg) + params["positions"]["patches"].reshape(1, -1, cfg.width)
    cls = jnp.broadcast_to((params["class"]["tokens"] + params["positions"]["prefix"])[None], (len(x), 1, cfg.width))
    h = jnp.concatenate([cls, h], axis=1)
    ones = jnp.ones((2, len(x)))
    for n in range(cfg.layers):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        h, _ = vit.block.run(layer, h, vit.rope.NONE, ones, lambda a: a, cfg)
    return h


def test_zero_registers_are_the_plain_model():
    cfg = config(registers=0)
    params, x = scrambled(vit.specs(cfg)), images()
    out = features(params, x, cfg)
    assert out.registers.shape == (2, 0, 32)
    np.testing.assert_array_equal(out.prenorm, jit(plain_vit, static_argnums=2)(params, x, cfg))


def test_permuted_registers_change_nothing_else(kind):
    """Registers without positions are a set; with rows of the table they are not."""
    cfg, params, x, full = kind
    order = np.array([2, 0, 1])
    turned = params | {"registers": {"tokens": params["registers"]["tokens"][order]}}
    out = features(turned, x, cfg)
    same = max(np.abs(np.asarray(a - b)).max(initial=0) for a, b in ((out.cls, full.cls), (out.patches, full.patches),
                                                         (out.registers, full.registers[:, order])))
    assert same > 0.01 if cfg.table_rows == "all" else same < 1e-5


def test_every_parameter_is_trained():
    """Every register among them. Without effect are the mask token, which nothing used, and the bias of the keys, which adds one
    number to all scores of a query."""
    cfg = config()
    found = gradient(scrambled(vit.specs(cfg)), images(), cfg)
    for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]:
        name, size = jax.tree_util.keystr(path), np.abs(np.asarray(leaf))
        without_effect = "mask" in name or name.endswith("['k']['b']")
        assert size.max() < 1e-5 if without_effect else size.max(-1).min() > 1e-3, name


def test_equal_registers_stay_equal():
    """Why the initial registers need noise: the same vector gets the same gradient for ever."""
    cfg = config()
    params, x = scrambled(vit.specs(cfg)), images()
    equal = params | {"registers": {"tokens": jnp.broadcast_to(params["registers"]["tokens"][:1], (3, 32))}}
    found = np.asarray(gradient(equal, x, cfg)["registers"]["tokens"])
    np.testing.assert_allclose(found, np.tile(found[:1], (3, 1)), atol=1e-4 * np.abs(found).max())
    assert np.abs(found).max() > 1e-2
    drawn = P.init_params(vit.specs(cfg), jax.random.key(0))["registers"]["tokens"]
    assert np.abs(np.asarray(drawn[0] - drawn[1])).max() > 1e-2


def test_registers_after_the_class_token_come_out_again():
    cfg = tokens.TokensConfig(4, 2, after=1)
    params, x = {"tokens": jnp.ones((2, 4))}, images(1, 3, 4, 1)[..., 0]
    y, _ = tokens.apply(params, (), x, cfg)
    np.testing.assert_array_equal(y, np.concatenate([x[:, :1], np.ones((1, 2, 4)), x[:, 1:]], 1))
    taken, rest = tokens.split(y, cfg)
    np.testing.assert_array_equal(taken, np.ones((1, 2, 4)))
    np.testing.assert_array_equal(rest, x)


# ------------------------------------------------------------------------------------------------------------ the whole model

def test_without_attention_a_patch_reaches_only_itself(kind):
    cfg, params, x, _ = kind
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    layers = params["layers"] | {"attention": params["layers"]["attention"] | {"o": zero(params["layers"]["attention"]["o"])}}
    silent = params | {"layers": layers}
    a, b = features(silent, x, cfg), features(silent, x.at[:, 4:8, 12:16].add(1.0), cfg)
    changed = np.abs(np.asarray(a.prenorm - b.prenorm)).max((0, 2)) > 0
    assert list(np.flatnonzero(changed)) == [cfg.prefix + 5 + 3]  # row 1, column 3 of five


def test_rows_of_the_batch_do_not_meet(kind):
    cfg, params, x, full = kind
    out = features(params, x[::-1], cfg)
    np.testing.assert_allclose(out.prenorm[::-1], full.prenorm, atol=2e-6)


def test_what_is_under_a_mask_has_no_influence():
    cfg = config()
    params, x = scrambled(vit.specs(cfg)), images()
    mask = jnp.asarray(np.random.default_rng(0).random((2, 9)) < 0.5)
    pixels = jnp.repeat(jnp.repeat(mask.reshape(2, 3, 3), 4, 1), 4, 2)[..., None]
    out = features(params, x, cfg, mask=mask)
    np.testing.assert_array_equal(features(params, jnp.where(pixels, 7.0, x), cfg, mask=mask).prenorm, out.prenorm)
    assert np.abs(np.asarray(features(params, x, cfg).prenorm - out.prenorm)).max() > 0.1
    # The mask token comes before the positions: two masked patches of one image differ by their positions only.
    embedded = vit.embed(params, x, cfg, mask)[:, cfg.prefix:]
    table = params["positions"]["patches"].reshape(9, 32)
    np.testing.assert_allclose((embedded - table[None])[mask], np.tile(params["mask"]["tokens"], (int(mask.sum()), 1)), atol=1e-6)


def test_bfloat16_is_close():
    cfg = config()
    params, x = scrambled(vit.specs(cfg)), images()
    exact, rounded = features(params, x, cfg), features(params, x, replace(cfg, dtype="bfloat16"))
    assert rounded.prenorm.dtype == jnp.bfloat16
    error = np.asarray(rounded.prenorm, np.float32) - np.asarray(exact.prenorm)
    relative = np.linalg.norm(error) / np.linalg.norm(exact.prenorm)
    assert 1e-4 < relative < 2e-2, relative


def test_vmap_over_parameters_is_a_loop():
    cfg = config(layers=1)
    both = [scrambled(vit.specs(cfg), seed) for seed in (0, 1)]
    x = images()
    mapped = jit(jax.vmap(lambda p: vit.features(p, x, cfg)))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *both))
    for n, params in enumerate(both):
        np.testing.assert_allclose(mapped.prenorm[n], features(params, x, cfg).prenorm, atol=5e-6)


def test_remat_and_unroll_change_nothing():
    cfg = config()
    params, x = scrambled(vit.specs(cfg)), images()
    want = gradient(params, x, cfg)
    for other in (replace(cfg, remat="block"), replace(cfg, unroll=2)):
        assert_close(gradient(params, x, other), want, 1e-5)


def test_weight_decay_leaves_tokens_positions_norms_and_biases_alone():
    """Decayed are the matrices and nothing else."""
    mask = P.decay_mask(vit.specs(config(feed_forward="swiglu", qk_norm=True, attention="gate")))
    for path, decayed in jax.tree_util.tree_flatten_with_path(mask)[0]:
        assert decayed == (jax.tree_util.keystr(path).endswith("['w']")), jax.tree_util.keystr(path)


def test_divided_over_devices_is_the_same_function():
    """Rows over two mesh axes, heads and hidden units over the third; the absent mask token is an array of no rows."""
    cfg = config(mask_token=False)
    params, x = scrambled(vit.specs(cfg)), images(4)
    alone = features(params, x, cfg, capture=("attention",))
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(mesh, vit.specs(cfg)))
        run = jit(lambda p, x: vit.features(p, x, cfg, capture=("attention",)))
        divided = run(placed, jax.device_put(x, sharding.rows(mesh)))
    assert not divided.patches.sharding.is_fully_replicated
    for got, want in zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=5e-6)


# ------------------------------------------------------------------------------------------------------- stochastic depth

def test_stochastic_depth_leaves_out_whole_branches_of_an_image():
    """Every row of the output is one of the four sums that leaving out branches can give; without a key it is the plain one."""
    cfg = config(layers=1, drop_path=0.5, final_norm="pooled")
    params, x = scrambled(vit.specs(cfg)), images(1)
    batch = jnp.repeat(x, 24, axis=0)
    out = np.asarray(features(params, batch, cfg, key=jax.random.key(0)).prenorm)
    layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    h = vit.embed(params, x, cfg)
    run = jit(lambda keep: vit.block.run(layer, h, vit.rope.NONE, keep, lambda u: u, cfg)[0][0])
    possible = [np.asarray(run(jnp.array([[a], [m]]))) for a in (0.0, 2.0) for m in (0.0, 2.0)]
    kinds = [[np.abs(row - want).max() < 1e-5 for want in possible].index(True) for row in out]
    assert set(kinds) == {0, 1, 2, 3}
    np.testing.assert_array_equal(features(params, x, cfg).prenorm, features(params, x, replace(cfg, drop_path=0.0)).prenorm)


def test_stochastic_depth_of_a_row_is_its_own_key():
    cfg = config(drop_path=0.5)
    params, x = scrambled(vit.specs(cfg)), images(4)
    keys = jax.random.split(jax.random.key(3), 4)
    together = features(params, x, cfg, key=keys).prenorm
    np.testing.assert_allclose(features(params, x[2:], cfg, key=keys[2:]).prenorm, together[2:], atol=1e-5)
    draws = vit.block.stochastic_depth(jax.random.split(jax.random.key(0), 4000), replace(cfg, drop_path=0.3), 4000)
    assert sorted(np.unique(draws)) == pytest.approx([0, 1 / 0.7])
    np.testing.assert_allclose(draws.mean(2), 1, atol=5 * (0.3 / 0.7 / 4000) ** 0.5)


# ------------------------------------------------------------------------------------------------------------------ mistakes

@pytest.mark.parametrize("options, text", [
    (dict(width=30), "width=30 does not divide into heads=4"),
    (dict(registers=-1), "vit.registers is -1; it must be at least 0"),
    (dict(positions="rop"), "vit.positions is 'rop'; it must be one of table, rope; did you mean 'rope'?"),
    (dict(interpolation="size"), "vit.interpolation is 'size'; it must be one of"),
    (dict(positions="rope", width=24), "needs heads whose size divides by 4, got 6"),
    (dict(drop_path=1.0), "vit.drop_path is 1.0; it must be below 1"),
    (dict(grid=(3,)), r"vit.grid is \(3,\); it must be a tuple"),
    (dict(patch=0), "vit.patch is 0; it must be at least 1"),
    (dict(layerscale=-1.0), "vit.layerscale is -1.0; it must be at least 0"),
])
def test_bad_configs_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        config(**options)


def test_bad_inputs_are_named():
    cfg = config(mask_token=False)
    params = P.abstract(vit.specs(cfg))
    call = lambda shape, **options: jax.eval_shape(lambda p, x: vit.features(p, x, cfg, **options), params, jnp.zeros(shape))
    with pytest.raises(ValueError, match="images have 1 channels, the model takes 3"):
        call((1, 12, 12, 1))
    with pytest.raises(ValueError, match="images of 12 x 13 pixels are not whole patches of 4 x 4"):
        call((1, 12, 13, 3))
    with pytest.raises(ValueError, match="images of 12 x 0 pixels"):
        call((1, 12, 0, 3))
    with pytest.raises(ValueError, match="expected .batch, rows, columns, channels."):
        call((12, 12, 3))
    with pytest.raises(ValueError, match="capture='attn' must be one of 'hidden'"):
        call((1, 12, 12, 3), capture=("attn",))
    with pytest.raises(ValueError, match="has no mask token"):
        call((1, 12, 12, 3), mask=jnp.zeros((1, 9), bool))
