"""Titans, memory as a layer (MAL), as a byte-level language model.

Paper: Titans: Learning to Memorize at Test Time, section 4.3, https://arxiv.org/abs/2501.00663
Command: python train.py --config=titans_mal
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: see docs/results

The presets 170m, 340m, 400m and 760m have the paper's recipe at the width and depth of MAC of that size, see
`memtok_jax/training/recipes.py` and the header of configs/titans_mac.py.
Neighbours: titans_mac, titans_mag, titans_lmm, transformer.
"""

from __future__ import annotations

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models.config import LanguageModelConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import TITANS_SIZES, laptop_text, titans_paper

PRESETS = ("laptop", *TITANS_SIZES)
PATTERN = ("mal",)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    if preset in TITANS_SIZES:
        return titans_paper(PATTERN, preset)
    model = LanguageModelConfig(width=128, layers=4, pattern=PATTERN, head_dim=32, window=64, segment=64, prefix=8,
                                memory=NeuralMemoryConfig(head_dim=32, chunk=32))
    return laptop_text(model)
