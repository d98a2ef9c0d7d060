"""MAD: in-context, noisy and fuzzy recall, selective copying, compression and memorization, for any memory.

Paper: Mechanistic Design and Scaling of Hybrid Architectures, https://arxiv.org/abs/2403.17844
Task: memtok_jax/data/tasks/mad.py
Command: python train.py --config=mad:fuzzy                 (mag, the short protocol)
         python train.py --config=mad:fuzzy_window          (another memory; so do selective and compression)
         python train.py --config=mad:fuzzy_paper           (the published rows and length of training; GPU)
    then python eval.py --workdir=runs/mad-fuzzy --suite=mad for accuracy over labels and over classes (as published)
Hardware, time: 2 CPU cores, ten minutes each (not measured yet)
Expected: not measured yet. Published tables of several papers differ by up to 32 points for one model

Fuzzy recall, selective copying and compression tell memories apart. Recall and noisy recall are solved by whatever sees the row;
memorization measures parameters (at most 0.913 after the published 256 rows). Windows and segments hold 32 tokens, so that
attention alone does not see a row. Presets of the paper's protocol have its sizes: width 128, two layers, hidden width 352, no
weights shared between embedding and output. The sweep of harder settings is a list of overrides,
`memtok_jax.training.mad_recipes.sweep`. Neighbours: recall, needles.
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.models.autoencoder import AutoencoderConfig
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.mad_recipes import BASE, mad
from memtok_jax.training.memories import MEMORIES, small_model

TELLING = ("fuzzy", "selective", "compression")
# The stack of RMT and ARMT stands inside a wrapper; the encoder of "compression" is a stack alone.
PRESETS = (*BASE, *(f"{task}_paper" for task in BASE),
           *(f"{task}_{memory}" for task in TELLING for memory in MEMORIES if task != "compression" or "rmt" not in memory))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, kind = preset.partition("_")
    (settings, _), memory = BASE[task], "mag" if kind in ("", "paper") else kind
    model = small_model(memory, settings.tokens, tokens=32)
    if kind == "paper":
        model = replace(model, hidden=352, head_dim=8, style=replace(model.style, embedding="matrix"))
    if task == "compression":
        model = AutoencoderConfig(replace(model, style=replace(model.style, embedding="tied")))
    return mad(task, "paper" if kind == "paper" else "mini", model)
