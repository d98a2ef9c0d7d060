"""The controlled hijack: its images say what it claims, its verdict follows its rule."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks import hijack
from benchmarks.hijack import ARMS, CONTROL, EFFECTS, Task


def test_images_hold_their_answer():
    """Kinds are read back from the pixels by taking the random contents out; the answer is the bit of the most frequent kind."""
    task = Task(side=4)
    sample = jax.device_get(hijack.draw(task, jax.random.key(0), 50))
    patterns, directions, bits = hijack.fixed(task)
    cells = sample.images.reshape(50, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(50, 16, 48)
    np.testing.assert_array_equal(cells, sample.pixels)
    assert set(sample.symbol.sum(1)) <= set(range(task.fewest, task.most + 1)) and sample.symbol.any(0).all()
    without = np.eye(48) - np.linalg.pinv(directions) @ directions
    for pixels, symbol, answer in zip(sample.pixels, sample.symbol, sample.answer, strict=True):
        gaps = np.abs((pixels[symbol][:, None] - patterns[None]) @ without).max(-1)
        assert (gaps.min(1) < 1e-4).all()
        counts = np.bincount(gaps.argmin(1), minlength=task.kinds)
        assert bits[counts.argmax()] == answer
        flat = pixels[~symbol].reshape(-1, 3)
        assert (flat == flat[0]).all(), "the background is one colour"
    assert 0.3 < sample.answer.mean() < 0.7


def runs_with(differences: dict[str, list[float]]) -> list[dict]:
    """Fabricated runs of three seeds: one register differs from none by so much, four registers not at all."""
    base = [0.5, 0.6, 0.7]

    def record(arm: str, seed: int, gap: dict[str, list[float]]) -> dict:
        return {"arm": arm, "seed": seed, **{name: base[seed] + gap.get(name, [0] * 3)[seed] for name in EFFECTS}}

    none, one, four = ARMS
    return [record(arm, seed, differences if arm == one else {}) for arm in (none, one, four, CONTROL) for seed in range(3)]


def test_an_effect_needs_every_seed_and_two_standard_errors():
    found = hijack.effects(runs_with({"loss": [-0.1, -0.11, -0.12], "pixel_error_background": [-0.1, -0.1, 0.01],
                                      "position_background": [-0.1, -0.1, -0.1], "answer_from_background": [-0.01, -0.01, -0.9]}))
    holds = {(e["arm"], e["measure"]): e["holds"] for e in found}
    assert [key for key, value in holds.items() if value] == [("1 register", "loss")], "signs, a seed against it, too wide a spread"
    loss = next(e for e in found if e["holds"])
    np.testing.assert_allclose([loss["difference"], loss["error"]], [-0.11, 0.01 / np.sqrt(3)], atol=1e-12)
    assert hijack.verdict(found) == "1 of 8 predictions hold: joint loss (1 register)."


def test_nothing_found_is_called_a_null():
    assert hijack.verdict(hijack.effects(runs_with({}))).startswith("Null: ")
