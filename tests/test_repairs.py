"""From a file and a folder to a verdict: an artifact built by construction is found, named, moved, and gone; all in one table.

One hidden unit of one layer is wired to fire on white patches only, and writes a vector far longer than any other token. Embeddings
of white patches are as long as all others, so nothing but that unit makes the outliers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import params as P
from memtok_jax.analysis import comparison, registers, subject
from memtok_jax.convert import VitCheckpoint, save_vit
from memtok_jax.convert.vit import IMAGENET
from memtok_jax.models.vision import vit
from memtok_jax.models.vision.config import VitConfig

ROOT = Path(__file__).resolve().parent.parent
CFG = VitConfig(width=64, layers=3, heads=1, hidden=128, patch=4, grid=(6, 6), registers=1, layerscale=1.0, std=0.1)
LAYER, UNIT, FEATURE = 1, 77, 5    # of the planted neuron; the feature that says "white"
IMAGES, WHITE = 40, 2              # pictures, and white patches in each


def planted() -> VitCheckpoint:
    """Random weights but for one feature of the embedding and one neuron."""
    params = P.init_params(vit.specs(CFG), jax.random.key(0))
    rng = np.random.default_rng(0)
    w = np.asarray(params["patch"]["w"])
    w = w - w.mean(0)                                   # a flat patch says nothing ...
    w[:, FEATURE] = 1.5 / len(w)                        # ... but how bright it is
    bias = rng.normal(0, 0.5, CFG.width)
    bias[FEATURE] = 0
    mlp = params["layers"]["mlp"]
    up, down = mlp["up"], mlp["down"]
    # The score of a neuron is the size of its activation (as published), so the planted one has the largest: near 8.
    up = {"w": up["w"].at[LAYER, :, UNIT].set(4 * jnp.eye(CFG.width)[FEATURE]), "b": up["b"].at[LAYER, UNIT].set(-8.0)}
    down = down | {"w": down["w"].at[LAYER, UNIT].set(8 * jnp.ones(CFG.width) / CFG.width**0.5)}
    dark = lambda name: {"tokens": params[name]["tokens"].at[:, FEATURE].set(-2.0)}
    new = {"patch": {"w": jnp.asarray(w), "b": jnp.asarray(bias, jnp.float32)},
           "class": dark("class"), "registers": dark("registers"), "layers": params["layers"] | {"mlp": {"up": up, "down": down}}}
    return VitCheckpoint(params | new, CFG, {}, "transformers")


def with_head(checkpoint: VitCheckpoint, pixels: np.ndarray, labels: np.ndarray) -> tuple[VitCheckpoint, float]:
    """A random head on class token and mean patch, which names one class for a quarter of the images; and its accuracy."""
    model = subject.Model(checkpoint.params, CFG, None, IMAGENET.mean, IMAGENET.std, "")
    out = vit.features(checkpoint.params, jnp.asarray(subject.normalised(model, pixels)), CFG)
    w = np.random.default_rng(2).standard_normal((2 * CFG.width, 2)).astype(np.float32)
    scores = np.concatenate([out.cls[:, 0], out.patches.mean(1)], 1) @ w
    b = np.array([0, np.quantile(scores[:, 0] - scores[:, 1], 0.25)], np.float32)
    head = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
    return checkpoint._replace(head=head), float(((scores + b).argmax(1) == labels).mean())


def write_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of what is written: two classes of dark texture, 24 x 24 pixels, two white patches in a box each."""
    from PIL import Image

    rng, boxes, written = np.random.default_rng(1), {}, []
    for n in range(IMAGES):
        name, weights = (("blue", (0.5, 0.5, 1)), ("red", (1, 0.5, 0.5)))[n % 2]
        pixels = (rng.integers(0, 150, (24, 24, 3)) * np.array(weights)).astype(np.uint8)
        y, x = 4 * rng.integers(6), 4 * rng.integers(5)
        pixels[y:y + 4, x:x + 8] = 255
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{n:02d}.png")
        written.append(pixels)
        boxes[f"{name}/{n:02d}.png"] = [[int(x), int(y), int(x) + 8, int(y) + 4]]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return np.stack(written), np.arange(IMAGES) % 2


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder of the output, record, stdout, accuracy of the head) of the command on a Hugging Face folder and images."""
    pytest.importorskip("PIL")
    root = tmp_path_factory.mktemp("repairs")
    checkpoint, accuracy = with_head(planted(), *write_images(root / "images"))
    (root / "model").mkdir()
    save_vit(root / "model" / "model.safetensors", checkpoint, "transformers")
    (root / "model" / "config.json").write_text(json.dumps({"num_attention_heads": 1, "hidden_act": "gelu", "image_size": 24}))
    (root / "model" / "preprocessor_config.json").write_text(json.dumps({"image_mean": IMAGENET.mean, "image_std": IMAGENET.std}))
    command = [sys.executable, "-m", "memtok_jax.analysis.registers", f"--checkpoint={root / 'model'}",
               f"--images={root / 'images'}", f"--output={root / 'out'}", "--repair=all", "--top_k=1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert run.returncode == 0, run.stderr
    return root / "out", json.loads((root / "out" / "measures.json").read_text()), run.stdout, accuracy


def test_the_outliers_are_found_and_the_neuron_named(done):
    plain, repaired = (done[1]["results"][name] for name in (comparison.PLAIN, comparison.REPAIRED))
    shares = [row["outlier_share"] for row in plain["layers"]]
    planted_share = WHITE / 36
    assert shares == pytest.approx([0, 0, planted_share, planted_share], abs=1e-12), "from the planted layer on, and not before"
    assert plain["layers"][-1]["max_over_median"] > 5
    assert repaired["neurons"] == [[LAYER, UNIT]] and f"({LAYER}, {UNIT})" in done[2]


def test_the_norm_moves_to_the_added_token(done):
    plain, repaired = (done[1]["results"][name]["layers"] for name in (comparison.PLAIN, comparison.REPAIRED))
    assert [row["outlier_share"] for row in repaired] == [0, 0, 0, 0]
    assert max(row["max_over_median"] for row in repaired) < 2
    assert repaired[LAYER]["added_norm"] < 2 * repaired[LAYER]["median_norm"], "nothing is there before the planted layer"
    largest = plain[LAYER + 1]["max_over_median"] * plain[LAYER + 1]["median_norm"]
    assert repaired[LAYER + 1]["added_norm"] == pytest.approx(largest, rel=0.1), "the added token carries what the patches did"


def test_one_table_of_all_options(done):
    folder, record, stdout, _ = done
    controls = [f"registers: {mode}" for mode in ("zero", "mean", "noise", "shuffle")]
    assert list(record["comparison"]) == [comparison.PLAIN, comparison.REPAIRED, *controls]
    for name, row in record["comparison"].items():
        assert {"outlier_share", "max_over_median", "accuracy", "class_from_cls", "corloc"} <= row.keys()
        assert (row["outlier_share"] > 0) == (name != comparison.REPAIRED), "replaced registers repair nothing"
    assert set(record["not_measured"]) == {"softmax-off-by-one", "gated attention"}
    table = (folder / "comparison.md").read_text()
    for line in table.splitlines()[4:]:
        assert line in stdout
    assert "- gated attention: not measured, needs a model trained so (train.py --config.model.vit.attention=gate)" in table


def test_accuracy_is_that_of_the_head(done):
    """Against the head applied by hand to the features of the model that was written."""
    assert 0.2 < done[3] < 0.8 and done[1]["comparison"][comparison.PLAIN]["accuracy"] == pytest.approx(done[3], abs=1e-9)


def test_figures_are_written(done):
    if "no figure" in done[2]:
        pytest.skip("matplotlib is not installed")
    expected = {"layers.png"} | {f"{kind}{which}.png" for kind in ("norms", "maps", "boxes", "positions")
                                 for which in ("", "_test-time_registers")}
    assert {path.name for path in done[0].glob("*.png")} == expected
    assert all((done[0] / name).stat().st_size > 3000 for name in expected)


# ------------------------------------------------------------------------------------------------------ without a program

def test_what_needs_training_is_said():
    """Of two models the one beside has gated attention and no registers."""
    plain = subject.Model(None, CFG, None, (), (), "plain")
    assert set(comparison.untrained([plain])) == {"softmax-off-by-one", "gated attention"}
    gate = plain._replace(cfg=VitConfig(**(vars(CFG) | {"attention": "gate", "registers": 0})))
    assert set(comparison.untrained([plain, gate])) == {"softmax-off-by-one"}
    assert set(comparison.untrained([gate])) == {"softmax-off-by-one", "trained registers"}
    assert comparison.described(gate) == "gated attention, 0 registers"


def test_the_table_leaves_out_what_nobody_has():
    lines = comparison.table({"one": {"outlier_share": 0.125}, "other": {"outlier_share": 0.5, "corloc": 1.0}}, {"third": "no"})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["option", "outliers, last", "CorLoc"]
    assert cells[2:] == [["one", "12.50%", "-"], ["other", "50.00%", "100.00%"]]
    assert lines[-1] == "- third: not measured, no"


def test_models_that_cannot_be_shown_the_same_images(tmp_path):
    model = subject.Model(None, CFG, None, (), (), "wide")
    shown = subject.Shown(np.zeros((1, 26, 24, 3), np.uint8), np.zeros(1, int), [], ("a",), "nowhere")
    with pytest.raises(ValueError, match="wide: images of 26 x 24 pixels are not whole patches of 4 x 4"):
        registers.analyse(model, shown, registers.Options(), tmp_path, print, [model])
    with pytest.raises(ValueError, match="wide: the images have 1 channels, the model takes 3"):
        subject.check_size(model, (24, 24), 1)
