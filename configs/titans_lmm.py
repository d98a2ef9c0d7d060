"""Titans, the neural memory alone, without attention (LMM), as a byte-level language model.

Paper: Titans: Learning to Memorize at Test Time, section 3, https://arxiv.org/abs/2501.00663
Command: python train.py --config=titans_lmm
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: see docs/results

The presets 170m, 340m, 400m and 760m have the paper's recipe at the width and depth of MAC of that size, see
`memtok_jax/training/recipes.py` and the header of configs/titans_mac.py.
Neighbours: titans_mac, titans_mag, titans_mal, transformer.
"""

from __future__ import annotations

from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import TITANS_SIZES, titans_text

PRESETS = ("laptop", *TITANS_SIZES)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return titans_text("lmm", preset)
