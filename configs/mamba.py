"""Selective scans as a byte-level language model: Mamba and Mamba-2, constant state, no attention.

Papers: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, https://arxiv.org/abs/2312.00752
        Transformers are SSMs (Mamba-2), https://arxiv.org/abs/2405.21060
Command: python train.py --config=mamba            (preset "mamba")
         python train.py --config=mamba:mamba2     (one decay for a head of channels; products of matrices)
Hardware, time: 2 CPU cores, minutes each
Expected: not measured yet

Each layer has a feed-forward network behind the scan, like all layers here; the papers' models are scans alone, twice as many.
Neighbours: hymba (attention beside the scan), titans_lmm (another recurrent memory without attention).
"""

from __future__ import annotations

from memtok_jax.memory.ssm import Mamba2Config, MambaConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import laptop_text

SCANS = {"mamba": MambaConfig(), "mamba2": Mamba2Config(head_dim=32, state=32)}
PRESETS = tuple(SCANS)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return laptop_text(LanguageModelConfig(width=128, layers=2, pattern=(SsmConfig(SCANS[preset]),)))
