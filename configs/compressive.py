"""The Compressive Transformer as a byte-level language model: the oldest rows of a cache become slots of several rows each.

Paper: Compressive Transformers for Long-Range Sequence Modelling, https://arxiv.org/abs/1911.05507
Command: python train.py --config=compressive
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: see docs/results

The laptop preset has as many slots as that of transformer_xl: 32 rows as they are and 32 slots of 4 rows each instead of 64 rows.
"mean" is the same with mean pooling, which learns nothing. The presets enwik8 and pg19 have layers, segment, memory and rate of the
paper's table; the number of compressed slots (as many as rows), the width (that of the large Transformer-XL), warm-up and length of
the run are ours, and the paper's rarer updates after 60,000 steps are left out. Their data does not come with this package: they
read bytes of what --data names, and pg19 keeps a vocabulary of 32,000.
The loss of the compression is train/auxiliary_loss in metrics.jsonl; the loss and bits per byte are without it.
Neighbours: transformer_xl, transformer.
"""

from __future__ import annotations

from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import compressive_paper, laptop_cached

PRESETS = ("laptop", "mean", "enwik8", "pg19")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    if preset == "laptop":
        return laptop_cached(CompressiveConfig(length=32, compressed=32, rate=4))
    if preset == "mean":
        return laptop_cached(CompressiveConfig(length=32, compressed=32, rate=4, compression="mean", objective="none"))
    return compressive_paper(preset)
