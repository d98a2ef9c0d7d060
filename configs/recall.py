"""Associative recall over a distance that attention cannot see: 4 pairs, 48 tokens of noise, then the 4 keys again.

Task: memtok_jax/data/tasks/recall.py; key-value recall as in https://arxiv.org/abs/2312.04927, questions at the end.
Command: python train.py --config=recall:mac, then python eval.py --workdir=runs/recall-mac for lengths n, 4n, 16n
Hardware, time: 2 CPU cores, minutes each
Expected (one seed, 1,200 steps): mac, mag, mal and lmm 100 % of the held-out answers; at sixteen times the length mac 99 %,
    mag 100 %, mal 99.8 %, lmm 98 %, linear (99.7 % at the trained length) 52 %; window (the same model without memory) 3.6 %,
    chance 1/32. See docs/results

Every preset has the same width, depth and training. Windows and segments hold 8 tokens: with two layers attention
reaches back 15 of the 64 tokens at most, and no pair is among them. mac adds memory and attention (combine "sum"): with the
paper's gate it learns several times slower (docs/log.md). "linear" is lmm with a linear memory.
"""

from __future__ import annotations

from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import recall, segment_of, titans_layer

MEMORY = NeuralMemoryConfig(head_dim=32, chunk=8)
LINEAR = NeuralMemoryConfig(head_dim=32, chunk=8, depth=1, residual=False, norm=False)
PATTERNS = {"mac": "mac", "mag": "mag", "mal": "mal", "lmm": "lmm", "linear": "lmm", "window": "window"}
PRESETS = tuple(PATTERNS)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    kind, memory = PATTERNS[preset], LINEAR if preset == "linear" else MEMORY
    layer = titans_layer(kind, 8, memory, "sum" if preset == "mac" else "gate")
    model = LanguageModelConfig(width=64, layers=2, pattern=(layer,), head_dim=32, hidden=128, segment=segment_of(kind, 8),
                                prefix=0 if kind == "lmm" else 4)
    return recall(model, pairs=4, sequence=64, steps=1200)
