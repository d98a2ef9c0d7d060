"""The controlled hijack: its images say what it claims, its verdict follows its rule."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks import hijack
from benchmarks.hijack import ARMS, CONTROL, RELIEVED, Task


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


def runs_with(differences: dict[str, list[float]], control: float = 0.0) -> list[dict]:
    """Fabricated runs of three seeds: one register differs from none by so much, four not at all, the control in its pixels."""
    base = [0.5, 0.6, 0.7]

    def record(arm: str, seed: int, gap: dict[str, list[float]]) -> dict:
        return {"arm": arm, "seed": seed, **{name: base[seed] + gap.get(name, [0] * 3)[seed] for name in RELIEVED}}

    none, one, four = ARMS
    gaps = {none: {}, one: differences, four: {}, CONTROL: {"pixel_error_background": [-control] * 3}}
    return [record(arm, seed, gap) for arm, gap in gaps.items() for seed in range(3)]


def test_an_effect_needs_every_seed_and_two_standard_errors():
    found = hijack.effects(runs_with({"loss": [-0.1, -0.11, -0.12], "pixel_error_background": [-0.1, -0.1, 0.01],
                                      "position_background": [-0.1, -0.1, -0.1], "answer_from_background": [-0.01, -0.01, -0.9]}))
    held = [(e["arm"], e["measure"]) for e in found if e["holds"]]
    assert held == [("1 register", "loss")], "not those with a seed against it, a wrong sign, too wide a spread"
    loss = next(e for e in found if e["holds"])
    np.testing.assert_allclose([loss["difference"], loss["error"]], [-0.11, 0.01 / np.sqrt(3)], atol=1e-12)
    assert hijack.verdict(found) == ("Hijack (0 registers against the control): null, no prediction holds. "
                                     "Relief (registers against none): 1 of 8 predictions hold, joint loss (1 register).")


def test_hijack_without_relief():
    found = hijack.effects(runs_with({}, control=0.2))
    assert hijack.verdict(found) == (
        "Hijack (0 registers against the control): 1 of 3 predictions hold, pixel error of background tokens (0 registers). "
        "Relief (registers against none): null, no prediction holds.")
    some = hijack.effects(runs_with({"pixel_error_background": [-0.05] * 3}, control=0.2))
    assert hijack.given_back(some).endswith("registers undo 25.0% (1 register), -0.0% (4 registers).")
