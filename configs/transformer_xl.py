"""Transformer-XL as a byte-level language model: every layer sees its own inputs of the segment before.

Paper: Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context, https://arxiv.org/abs/1901.02860
Command: python train.py --config=transformer_xl
    then python eval.py --workdir=runs/transformer_xl --config.model.pattern.0.memory.length=256 for a longer cache than in training
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: see docs/results

The presets wt103_base, wt103_large, enwik8_base and enwik8_large have the sizes and recipes of the paper's released scripts,
without their dropout. Their data does not come with this package: they read bytes of what --data names, and the first two keep
their 267,735 words, in clusters, for the same number of parameters (151 million; enwik8: 41 and 277; wt103_large has 285 million
by these sizes, the paper says 257). The evaluations of the paper, as options of eval.py:
    wt103_base      --config.data.sequence=64 --config.model.pattern.0.memory.length=640 --config.model.style.clamp=400
    wt103_large     --config.data.sequence=128 --config.model.pattern.0.memory.length=1600 --config.model.style.clamp=1000
    enwik8_base     --config.data.sequence=80 --config.model.pattern.0.memory.length=2100 --config.model.style.clamp=820
    enwik8_large    --config.data.sequence=128 --config.model.pattern.0.memory.length=3800 --config.model.style.clamp=1000
each with --config.model.pattern.0.same_length=compat (--config.data.sequence must divide what is scored into whole batches).
Neighbours: compressive (half of the slots compressed), transformer (a window of keys and values instead of the cache).
"""

from __future__ import annotations

from memtok_jax.memory.xl import XlConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import laptop_cached, transformer_xl_paper

PRESETS = ("laptop", "wt103_base", "wt103_large", "enwik8_base", "enwik8_large")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return laptop_cached(XlConfig(64)) if preset == "laptop" else transformer_xl_paper(preset)
