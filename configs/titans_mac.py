"""Titans, memory as a context (MAC), as a byte-level language model.

Paper: Titans: Learning to Memorize at Test Time, section 4.1, https://arxiv.org/abs/2501.00663
Command: python train.py --config=titans_mac
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: about 2.29 bits per byte on the first 65,543 held-out bytes of Python 3.11 (xz -9: 2.67, order-3 counts: 2.45), see
    docs/results

The presets 170m, 340m, 400m and 760m have the paper's recipe; `memtok_jax/training/recipes.py` says where the paper is
silent. The paper's data (FineWeb-Edu in Llama-2 tokens) does not come with this package: the presets read bytes of what
--data names, and keep the paper's vocabulary of 32,000 for the same number of parameters.
    python train.py --config=titans_mac:340m --compile_only=v5e:16x16
Neighbours: titans_mag, titans_mal, titans_lmm, transformer.
"""

from __future__ import annotations

from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import TITANS_SIZES, titans_text

PRESETS = ("laptop", *TITANS_SIZES)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return titans_text("mac", preset)
