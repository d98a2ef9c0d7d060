"""What every generator of samples must do, whatever the task."""

from __future__ import annotations

import numpy as np

from memtok_jax.data.tasks.scoring import IGNORED


def samples_are_pure(module, cfg, length: int, gaps: bool = False):
    """Equal seeds give equal samples, others give others; tokens stand in the vocabulary. Returns one batch.

    gaps: behind an answer that is shorter than others stand places that are not scored.
    """
    one, same, other = (module.sample(cfg, length, 5, seed) for seed in (7, 7, 8))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.int32 and a.shape == (5, length)
    assert (one.ids != other.ids).any()
    assert 0 <= one.ids.min() and one.ids.max() < module.vocabulary(cfg) == len(module.symbols(cfg))
    assert all(0 < accuracy <= 1 for accuracy in module.chance(cfg, length).values())
    answers_repeat_the_labels(module, cfg, length, one, gaps)
    return one


def answers_repeat_the_labels(module, cfg, length: int, one, gaps: bool = False) -> None:
    """An input that is an answer is the label before it."""
    answers = module.answers(cfg, length)
    assert answers.shape == (length,) and answers.dtype == bool and not answers[0]
    t = np.flatnonzero(answers)
    scored = one.labels[:, t - 1] != IGNORED
    assert scored.all() or gaps
    np.testing.assert_array_equal(one.ids[:, t][scored], one.labels[:, t - 1][scored])
