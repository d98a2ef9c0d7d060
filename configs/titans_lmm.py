"""Titans, the neural memory alone, without attention (LMM), as a byte-level language model.

Paper: Titans: Learning to Memorize at Test Time. Two versions: arXiv v1, section 3, https://arxiv.org/abs/2501.00663, and
    NeurIPS 2025, section 2. Numbers of equations here and in the code are those of v1.
Command: python train.py --config=titans_lmm
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: see docs/results

The presets 170m, 340m, 400m, 760m and 1.3b have the recipe of the NeurIPS version (table 5; chunk 16),
see `memtok_jax/training/recipes.py`. The header of configs/titans_mac.py lists what contradicts itself in the paper: the learning
rates of table 5 against 4e-4, "four scales" that are five, the width of heads, the factor of the inner loss.
Parameters: 170m 123M, 340m 379M, 400m 437M, 760m 813M, 1.3b 1,077M, with the vocabulary of 32,000.
Neighbours: titans_mac, titans_mag, titans_mal, transformer.
"""

from __future__ import annotations

from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import TITANS_SIZES, titans_text

PRESETS = ("laptop", *TITANS_SIZES)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return titans_text("lmm", preset)
