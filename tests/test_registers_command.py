"""The analysis of registers as one command: its numbers against the model itself, a planted artifact, files, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import params as P
from memtok_jax.analysis import measures, norms, register_figures, registers, subject
from memtok_jax.analysis.collect import collect, query_maps, query_names
from memtok_jax.config import UserError
from memtok_jax.convert import VitCheckpoint, save_vit
from memtok_jax.data.images.config import CompositesConfig, ImagesConfig
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig
from memtok_jax.models.vision.output import Counts, VitOutput, attention_maps

ROOT = Path(__file__).resolve().parent.parent
CFG = VitConfig(width=32, layers=2, heads=2, hidden=64, patch=4, grid=(4, 4), registers=3, layerscale=1.0, std=0.2, token_std=0.5)
DATA = ImagesConfig(size=(16, 16), composites=CompositesConfig(classes=3), eval_split="valid")
CELL = 6                   # of the planted artifact
GREY = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def model() -> subject.Model:
    """Random weights, and one patch whose position adds a vector that no other token has."""
    params = P.init_params(vit.specs(CFG), jax.random.key(0))
    table = params["positions"]["patches"].at[CELL // 4, CELL % 4].add(40.0 * jnp.eye(32)[5])
    return subject.Model(params | {"positions": params["positions"] | {"patches": table}}, CFG, DATA, *GREY, "planted")


@pytest.fixture(scope="module")
def shown(model) -> subject.Shown:
    return subject.pictures(model, "", (0, 0), 40, "")


@pytest.fixture(scope="module")
def written(model, shown, tmp_path_factory):
    """(folder, record, lines) of the whole analysis with a repair, and the same model without its artifact beside it."""
    folder, lines, options = tmp_path_factory.mktemp("analysis"), [], registers.Options("test_time", cutoff=30.0, top_k=4)
    record = registers.analyse(model, shown, options, folder, lines.append, [without(model)])
    return folder, record, lines


def without(model: subject.Model) -> subject.Model:
    """The same weights without the planted vector."""
    table = model.params["positions"]["patches"].at[CELL // 4, CELL % 4].add(-40.0 * jnp.eye(32)[5])
    return model._replace(params=model.params | {"positions": model.params["positions"] | {"patches": table}}, name="clean")


def test_numbers_are_those_of_the_model(model, shown, written):
    layers = written[1]["results"]["as it is"]["layers"]
    out = vit.features(model.params, jnp.asarray(subject.normalised(model, shown.pixels)), CFG, capture=("hidden", "attention"))
    hidden, attention = np.asarray(out.captured["hidden"], np.float64), np.asarray(out.captured["attention"], np.float64)
    for layer, row in enumerate(layers):
        patches = hidden[layer][:, 4:]
        sizes = np.linalg.norm(patches, axis=-1)
        assert row["median_norm"] == pytest.approx(np.median(sizes), rel=1e-4)
        assert row["max_over_median"] == pytest.approx((sizes.max(1) / np.median(sizes, axis=1)).mean(), rel=1e-4)
        assert row["kurtosis"] == pytest.approx(norms.kurtosis(patches), rel=1e-3)
        assert row["largest_entry"] == pytest.approx(np.abs(patches).max(), rel=1e-4)
        assert row["registers_norm"] == pytest.approx(np.linalg.norm(hidden[layer][:, 1:4], axis=-1).mean(), rel=1e-4)
        if layer:
            received = attention[layer - 1].mean(2)
            assert row["mass_on_registers"] == pytest.approx(received[..., 1:4].sum(-1).mean(), rel=1e-4)
            assert row["mass"]["register 1"] == pytest.approx(received[..., 2].mean(), rel=1e-4)
            assert row["most_attended_over_uniform"] == pytest.approx(20 * received[..., 4:].max(-1).mean(), rel=1e-4)
            assert row["uniform_mass_on_registers"] == 3 / 20


def test_the_planted_artifact_is_found_where_it_is(written):
    result = written[1]["results"]["as it is"]
    for row in result["layers"]:
        assert row["outlier_share"] == 1 / 16 and row["rule"] == "valley of the log norms" and 1 < row["cutoff"] < 40
    assert result["special"] == "outlier" and result["places"]["most_frequent_cell"] == 1.0
    np.testing.assert_array_equal(result["places"]["position_map"], np.eye(16)[CELL].reshape(4, 4))


def test_batches_do_not_matter(model, shown):
    images = subject.normalised(model, shown.pixels[:5])
    whole, parts = (collect(model.params, batches, CFG) for batches in ([images[:3], images[3:]], [images[:3], images[2:]]))
    assert whole.grid == (4, 4) and whole.counts.registers == 3
    for name in whole._fields[:-2]:
        one, other = getattr(whole, name), getattr(parts, name)
        axis = [a for a, n in enumerate(one.shape) if n == 5 and other.shape[a] == 6][0]
        np.testing.assert_allclose(one, np.delete(other, 3, axis), rtol=1e-4, atol=1e-4, err_msg=name)


def test_everything_is_written_and_said(written):
    folder, record, lines = written
    beside = "softmax, 3 registers (clean)"
    assert json.loads((folder / "measures.json").read_text())["results"].keys() == {"as it is", "test-time registers", beside}
    shares = {name: row["worst_outlier_share"] for name, row in record["comparison"].items()}
    assert shares["as it is"] == 1 / 16 and shares[beside] == 0.0 and beside in (folder / "comparison.md").read_text()
    repaired = record["results"]["test-time registers"]
    assert len(repaired["neurons"]) == 4 and "added_norm" in repaired["layers"][-1] and "added 0" in repaired["layers"][-1]["mass"]
    text = "\n".join(lines)
    for expected in ("register neurons (layer, unit) from patches with a norm above 30",
                     "outliers of the last layer: patches with a norm above", "corloc lost",
                     "position accuracy normal", "class from cls", "mass on register 2", "neighbour cosine outlier"):
        assert expected in text, text
    if "no figure" not in lines[-1]:
        for kind in ("norms", "maps", "boxes", "positions"):
            for which in ("", "_test-time_registers", "_softmax_3_registers_clean_"):
                assert (folder / f"{kind}{which}.png").stat().st_size > 3000
        assert (folder / "layers.png").stat().st_size > 3000


def test_the_cutoff_is_said_in_words(written):
    """With a second group of norms, and without one."""
    planted, clean = (written[1]["results"][name]["layers"][-1] for name in ("as it is", "softmax, 3 registers (clean)"))
    above = f"outliers of the last layer: patches with a norm above {planted['cutoff']:.4g}."
    assert registers.cutoff_line(planted).startswith(above)
    assert registers.cutoff_line(clean).startswith("outliers of the last layer: none. The norms of its patches form one group;")


def test_every_axis_and_colour_has_a_name(model, shown, monkeypatch, tmp_path):
    """Each map has a colour bar with its unit, and axes with ticks have labels."""
    pytest.importorskip("matplotlib")
    figures = {}
    monkeypatch.setattr(register_figures, "_save", lambda figure, path: figures.update({path.stem: figure}))
    c = collect(model.params, [subject.normalised(model, shown.pixels[:4])], CFG)
    layers = measures.by_layer(c)
    register_figures.norm_histograms(tmp_path / "norms.png", c, layers, "")
    register_figures.layer_curves(tmp_path / "layers.png", {"": layers}, "")
    register_figures.token_maps(tmp_path / "maps.png", c, shown.pixels[:4], "")
    register_figures.positions(tmp_path / "positions.png", measures.places(c, measures.outliers(c)), "outlier")
    assert all(figures["norms"].axes[n].get_xlabel() or figures["norms"].axes[n].get_ylabel() for n in range(3))
    assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figures["positions"].axes)
    bars = [axes.get_xlabel() or axes.get_ylabel() for axes in figures["maps"].axes if axes.axison]
    assert len(bars) == 2 and bars[0].startswith("norm") and bars[1].startswith("attention")
    assert all(axes.get_xlabel() == "layer" and axes.get_ylabel() for axes in figures["layers"].axes)
    for image in figures["maps"].axes[2].images:
        assert image.get_array().max() == 1.0, "each map is shown as a share of its largest value"


def test_maps_of_any_patch():
    """Against `attention_maps`, on random attention of 2 x 3 patches behind a class token and a register."""
    weights = jnp.asarray(np.random.default_rng(0).random((2, 4, 5, 8, 8)), jnp.float32)
    empty = jnp.zeros((4, 0, 1))
    out = VitOutput(empty, empty, empty, empty, (2, 3), Counts(1, 1, 6, 0), {"attention": weights})
    for patch, place in (((0, 0), (0, 0)), ((1, 2), (1, 2)), (None, (1, 1))):
        maps = query_maps(out, patch)
        for n, query in enumerate(("cls", "reg0", place)):
            np.testing.assert_allclose(maps[:, n], attention_maps(out, -1, query).mean(1), rtol=1e-6)
    assert query_names(out.counts, (1, 2)) == ["class token", "register 0", "patch 1, 2"]
    with pytest.raises(ValueError, match="the grid has 2 rows and 3 columns of patches, counted from 0"):
        query_maps(out, (2, 0))
    assert registers.parse_patch("3,5") == (3, 5) and registers.parse_patch("") is None
    with pytest.raises(UserError, match="--patch=3x5 must be ROW,COLUMN"):
        registers.parse_patch("3x5")


def test_too_few_images_for_a_class_probe_are_none():
    found = measures.Outliers(norms.Cutoff("none", np.inf), "highest norm", np.eye(4, dtype=bool), np.arange(4))
    assert measures.global_probes(None, found, np.zeros(10, int), 3) == {}


# --------------------------------------------------------------------------------------------------------------- mistakes

def test_nothing_to_repair_is_said(model, shown, tmp_path):
    """The same weights without the planted vector have one mode only."""
    expected = "no layer has a second mode of patch norms, so there is nothing to repair; --cutoff=NORM"
    with pytest.raises(UserError, match=expected) as error:
        registers.analyse(without(model), shown, registers.Options("test_time"), tmp_path, lambda text: None)
    assert "\n" not in str(error.value)


def test_sizes_that_are_no_patches(model):
    for size in ((18, 16), (3, 3)):
        with pytest.raises(UserError, match=rf"images of {size[0]} x {size[1]} pixels are not whole patches of 4 x 4; give --size"):
            subject.pictures(model, "composites", size, 3, "")
    with pytest.raises(UserError, match="--size=12y3 must be ROWSxCOLUMNS"):
        registers.parse_size("12y3")
    assert registers.parse_size("24x16") == (24, 16) and registers.parse_size("24") == (24, 24)
    assert subject.pictures(model, "composites", (24, 16), 2, "").pixels.shape == (2, 24, 16, 3)


def test_unreadable_images_and_folders(model, tmp_path):
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="holds no image"):
        subject.pictures(model, str(tmp_path), (0, 0), 3, "")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a.jpg is not an image that can be read") as error:
        subject.pictures(model, str(tmp_path), (0, 0), 3, "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make, message", [
    (lambda folder: folder / "none", "no such file or folder"),
    (lambda folder: _file(folder / "torn.safetensors", b"\x10\0\0\0\0\0\0\0{"), "torn.safetensors"),
    (lambda folder: _file(folder / "notes.txt", b"dear diary"), "notes.txt"),
])
def test_checkpoints_that_are_none(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        registers.load(str(make(tmp_path)))
    assert "\n" not in str(error.value)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_converted_checkpoint_comes_with_its_own_size(tmp_path):
    cfg = replace(CFG, width=64, heads=1, hidden=128)          # heads of 64 features, as all published models have
    params = P.init_params(vit.specs(cfg), jax.random.key(0))
    save_vit(tmp_path / "small.safetensors", VitCheckpoint(params, cfg, {}, "timm"), "timm")
    path = str(tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"tell heads and grid; give heads=1 and grid=\(4, 4\)"):
        registers.load(path)
    with pytest.raises(UserError, match="--mean=0.485,0.456,0.406 --std=0.229,0.224,0.225"):
        registers.load(path, registers.parse_told(1, "4x4", [], []))
    with pytest.raises(UserError, match="--mean=0.5 and --std=0.25,0.25,0.25 must have one number for each of 3 channels"):
        registers.load(path, registers.parse_told(1, "4x4", ["0.5"], ["0.25"] * 3))
    found = registers.load(path, registers.parse_told(1, "(4, 4)", ["0.5"] * 3, ["0.25"] * 3))
    assert (found.data.size, found.cfg.registers, found.name) == ((16, 16), 3, "small.safetensors")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    for heads, grid, mean in ((-1, "", []), (0, "4", []), (0, "4xx4", []), (0, "", ["x"])):
        with pytest.raises(UserError, match="--"):
            registers.parse_told(heads, grid, mean, [])


def test_the_command_line():
    done = subprocess.run([sys.executable, "-m", "memtok_jax.analysis.registers", "--checkpoint=nowhere"], capture_output=True,
                          text=True, timeout=280, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 2 and done.stderr.strip() == "error: --checkpoint=nowhere: no such file or folder"
