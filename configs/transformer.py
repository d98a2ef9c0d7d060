"""A plain Transformer as a byte-level language model: what the memories are compared with. Same code, same trainer.

Command: python train.py --config=transformer            (sliding window of 64 tokens, as in titans_mag)
         python train.py --config=transformer:full       (every token sees the last 512: all of a visit)
Hardware, time: 2 CPU cores, minutes
Expected: see docs/results
Neighbours: titans_mac, titans_mag, titans_mal, titans_lmm.
"""

from __future__ import annotations

from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import laptop_text

WINDOWS = {"window": 64, "full": 512}
PRESETS = tuple(WINDOWS)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return laptop_text(LanguageModelConfig(width=128, layers=2, pattern=(WindowConfig(WINDOWS[preset]),), head_dim=32))
