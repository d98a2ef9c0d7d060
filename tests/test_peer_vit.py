"""Vision transformers equal those of transformers 5.23.0 and timm 1.0.31: hidden states, attention, masks, logits, at five sizes.

`tests/data/vit_parity.npz` (made by `peers_export/export_vit.py --small`) holds what they compute from random weights, which are
drawn anew here: narrow models, two image sizes that are not the native one. It needs no torch. One test runs the peers with other
numbers, wider models and all five sizes, and prints the largest errors, where a Python that has them is at hand:

    MEMTOK_VIT_PYTHON=/path/to/python pytest -s tests/test_peer_vit.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import ROOT, export
from peers_export import vit_random
from vit_cases import features

from memtok_jax.convert import VitCheckpoint, load_vit
from memtok_jax.convert.vit import to_layout
from memtok_jax.models import layers
from memtok_jax.models.vision import positions, rope, vit
from memtok_jax.numerics import affine_norm, dense

STORED = ROOT / "tests" / "data" / "vit_parity.npz"
TOLERANCE = {"hidden": 2e-5, "last": 2e-5, "masked": 2e-5, "logits": 2e-5, "attention": 2e-6}


class Peer(NamedTuple):
    """Results of the other implementations, and how they came about."""

    arrays: Mapping[str, np.ndarray]
    settings: dict


def read(path: Path) -> Peer:
    arrays = np.load(path)
    return Peer(arrays, json.loads(str(arrays["settings"])))


@pytest.fixture(scope="module")
def stored() -> Peer:
    return read(STORED)


def model(peer: Peer, case: str) -> VitCheckpoint:
    """Our checkpoint of a case, from weights drawn under the peer's names."""
    told = peer.settings["cases"][case]
    own = told["arguments"]
    heads, size = own.get("num_attention_heads") or own["num_heads"], own.get("image_size") or own["img_size"]
    return load_vit(vit_random.weights(told["shapes"], peer.settings["seed"]), heads=heads, grid=(size // own["patch_size"],) * 2)


def some_images(peer: Peer, rows: int, columns: int) -> jax.Array:
    return jnp.asarray(vit_random.images(peer.settings["batch"], rows, columns, peer.settings["seed"]))


def some_mask(peer: Peer, grid: tuple[int, int]) -> jax.Array:
    return jnp.asarray(vit_random.mask(peer.settings["batch"], grid[0] * grid[1], peer.settings["seed"]))


def logits(checkpoint, out, case: str) -> jax.Array:
    """What each peer's classifier reads: class token and patch mean (transformers), one of the two (timm)."""
    mean, params, cfg = out.patches.mean(1), checkpoint.params, checkpoint.config
    if case == "classifier":
        pooled = jnp.concatenate([out.cls[:, 0], mean], axis=-1)
    else:
        pooled = affine_norm(mean, params["norm"], cfg.epsilon) if cfg.final_norm == "pooled" else out.cls[:, 0]
    return dense(pooled, checkpoint.head, "float32")


def ours(peer: Peer, case: str, rows: int, columns: int, checkpoint, names) -> dict[str, jax.Array]:
    """The same arrays from our model."""
    params, cfg, x = checkpoint.params, checkpoint.config, some_images(peer, rows, columns)
    out = features(params, x, cfg, capture=("hidden", "attention"))
    together = lambda out: jnp.concatenate([out.cls, out.registers, out.patches], axis=1)
    found = {"hidden": out.captured["hidden"], "attention": out.captured["attention"], "last": together(out)}
    if "masked" in names:
        found["masked"] = together(features(params, x, cfg, mask=some_mask(peer, out.grid)))
    if "logits" in names:
        found["logits"] = logits(checkpoint, out, case)
    if "angles" in names:
        full = rope.rotation(out.grid, 0, 0, cfg.head_dim, cfg.rope_base)
        found["angles"] = jnp.stack(full)
    return found


def names_of(peer: Peer, case: str, rows: int, columns: int) -> list[str]:
    front = f"{case}/{rows}x{columns}/"
    return [name.removeprefix(front) for name in peer.arrays.files if name.startswith(front)]


def errors(peer: Peer, case: str, rows: int, columns: int, checkpoint) -> dict[str, float]:
    """Largest difference of each array, and how large theirs is on average."""
    names = names_of(peer, case, rows, columns)
    assert "hidden" in names and ("last" in names or "logits" in names)
    found = ours(peer, case, rows, columns, checkpoint, names)
    out = {}
    for name in names:
        theirs = peer.arrays[f"{case}/{rows}x{columns}/{name}"]
        assert found[name].shape == theirs.shape, (case, name)
        out[name] = float(np.abs(np.asarray(found[name]) - theirs).max())
    return out


def assert_case(peer: Peer, case: str) -> dict[str, float]:
    """Every array of every size; returns the largest error of each name."""
    worst: dict[str, float] = {}
    checkpoint = model(peer, case)
    for rows, columns in peer.settings["cases"][case]["sizes"]:
        for name, error in errors(peer, case, rows, columns, checkpoint).items():
            assert error <= TOLERANCE.get(name, 2e-6), f"{case} at {rows}x{columns}: {name} is off by {error:.2g}"
            worst[name] = max(error, worst.get(name, 0.0))
    return worst


def assert_tables(peer: Peer) -> float:
    """Resized tables; returns the largest error."""
    worst, number = 0.0, 0
    for name in (name for name in peer.arrays.files if name.startswith("table/")):
        _, side, grid, mode = name.split("/")
        random = np.random.RandomState([peer.settings["seed"], int(side)])
        table = jnp.asarray(random.standard_normal((1, 2, int(side), int(side))).astype(np.float32)[0].transpose(1, 2, 0))
        rows, columns = map(int, grid.split("x"))
        if mode == "offset_noaa" and rows == columns == int(side):
            continue  # there the model keeps its table, which interpolate would not
        error = np.abs(np.asarray(positions.resize(table, (rows, columns), mode)) - peer.arrays[name]).max()
        assert error <= 2e-5, f"{name} is off by {error:.2g}"
        worst, number = max(worst, float(error)), number + 1
    assert number >= 20
    return worst


CASES = ("registers", "one_register", "swiglu", "classifier", "plain", "dinov3", "dinov3_gated", "timm_registers", "timm_resized",
         "timm_rows_for_all", "timm_average", "timm_qk_norm", "timm_plain")


@pytest.mark.parametrize("case", CASES)
def test_equals_stored_case(stored, case):
    assert_case(stored, case)


def test_resized_tables_equal_torch(stored):
    assert_tables(stored)


def test_configs_are_read_off_the_weights(stored):
    """What each case is called says what must have been found."""
    found = {case: model(stored, case) for case in CASES}
    told = {case: checkpoint.config for case, checkpoint in found.items()}
    those = lambda rule: {case for case, cfg in told.items() if rule(cfg)}
    expected = dict.fromkeys(CASES, 4) | {"one_register": 1, "plain": 0, "timm_plain": 0}
    assert {case: cfg.registers for case, cfg in told.items()} == expected
    assert those(lambda c: c.feed_forward == "swiglu") == {"swiglu", "dinov3_gated"}
    assert those(lambda c: c.positions == "rope") == {"dinov3", "dinov3_gated"}
    assert those(lambda c: c.qk_norm) == {"timm_qk_norm"}
    assert those(lambda c: not c.class_token) == those(lambda c: c.final_norm == "pooled") == {"timm_average"}
    assert those(lambda c: c.interpolation == "size_noaa") == {"plain"}
    assert told["timm_rows_for_all"].table_rows == "all" and told["timm_registers"].table_rows == "patches"
    assert those(lambda c: not c.layerscale) == {"timm_rows_for_all", "timm_average", "timm_qk_norm", "timm_plain"}


@pytest.mark.parametrize("case", CASES)
def test_written_back_it_is_what_the_peer_reads(stored, case):
    """Theirs -> ours -> theirs: the names and shapes that their classes have, and every number."""
    theirs = vit_random.weights(stored.settings["cases"][case]["shapes"], stored.settings["seed"])
    theirs = {name.removeprefix("dinov2_with_registers."): array for name, array in theirs.items()}
    checkpoint = model(stored, case)
    back = to_layout(checkpoint, checkpoint.layout)
    assert {name: array.shape for name, array in back.items()} == {name: array.shape for name, array in theirs.items()}
    for name, array in theirs.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


# ------------------------------------------------------------------------------------------------------- negative controls

def swap(tree, one: str, other: str):
    """The attention parameters with two names exchanged."""
    attention = tree["layers"]["attention"]
    exchanged = attention | {one: attention[other], other: attention[one]}
    return tree | {"layers": tree["layers"] | {"attention": exchanged}}


MISTAKES = {
    "epsilon": lambda c: c._replace(config=replace(c.config, epsilon=1e-5)),
    "interpolation": lambda c: c._replace(config=replace(c.config, interpolation="size_noaa")),
    "keys and values": lambda c: c._replace(params=swap(c.params, "k", "v")),
    "a transposed table": lambda c: c._replace(params=c.params | {"positions": c.params["positions"] | {
        "patches": c.params["positions"]["patches"].swapaxes(0, 1)}}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_found(stored, mistake):
    """The usual mistakes are larger than the tolerance, so the comparison tells them apart."""
    wrong = MISTAKES[mistake](model(stored, "registers"))
    error = errors(stored, "registers", 84, 56, wrong)["last"]
    assert error > 1.5 * TOLERANCE["last"], error


def test_the_tanh_form_of_gelu_would_be_found(stored, monkeypatch):
    monkeypatch.setattr(layers, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    checkpoint = model(stored, "registers")
    out = vit.features(checkpoint.params, some_images(stored, 84, 56), checkpoint.config)
    theirs = stored.arrays["registers/84x56/last"][:, 5:]
    assert 1e-4 < np.abs(np.asarray(out.patches) - theirs).max() < 1e-1


def test_registers_in_the_patch_mean_would_be_found(stored):
    checkpoint = model(stored, "classifier")
    out = features(checkpoint.params, some_images(stored, 28, 28), checkpoint.config, capture=("hidden", "attention"))
    leaking = replace(out, patches=jnp.concatenate([out.registers, out.patches], axis=1))
    theirs = stored.arrays["classifier/28x28/logits"]
    error = lambda out: np.abs(np.asarray(logits(checkpoint, out, "classifier")) - theirs).max()
    assert error(out) <= TOLERANCE["logits"] and error(leaking) > 1e-2


# -------------------------------------------------------------------------------------------------------------------- live

def test_equals_peers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_vit", path, "--seed=7", variable="MEMTOK_VIT_PYTHON",
           imports=("torch", "transformers", "timm"), needs="torch, transformers==5.23.0 and timm==1.0.31")
    peer = read(path)
    print("\n" + ", ".join(f"{name} {peer.settings[name]}" for name in ("torch", "transformers", "timm")))
    for case in CASES:
        worst = assert_case(peer, case)
        sizes = " ".join(f"{rows}x{columns}" for rows, columns in peer.settings["cases"][case]["sizes"])
        print(f"{case:18} {sizes}: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items()))
    print(f"resized tables: {assert_tables(peer):.1e}")
