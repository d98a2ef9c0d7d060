"""A memory for a model that is trained already: at the first step it computes what it did before, then it learns to use it.

Papers: Titans (https://arxiv.org/abs/2501.00663), ARMT (2407.04841), Transformer-XL (1901.02860), StreamingLLM (2309.17453)
Command: python train.py --config=retrofit:mag --start_from=FOLDER          FOLDER: a pretrained model, or a run of train.py
         python train.py --config=retrofit:mag_memory --start_from=FOLDER   only the memory and its gates learn
Hardware, time: those of the base
Expected: the loss of step 1 is the base's; whether a memory helps later must be measured against the base trained on as long
    without it, and against the same model whose memory forgets at every segment

mag: a neural memory beside attention, through a gate that starts at 0 (`mixers/beside.py`). armt: a matrix in each layer, whose
values start at 0; attention stays inside the segment. xl: attention sees the layer's inputs of the segment before. sinks: a window
with four first tokens, nothing to learn. Not exact for any initial value, so not here: RMT's read tokens, and MAG's product.
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.text import TextConfig
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import TITANS
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

PRESETS = ("mag", "mag_memory", "armt", "xl", "sinks")
SEGMENT = 256
# Parts of parameters' paths -> factors of the learning rate. A gate has a long way to go, and no weight decay.
GATES = ("gate_=20",)
ONLY_MEMORY = ("=0", "['beside']['1']=1", "gate_=20")


def config(preset: str) -> Experiment:
    """The experiment of one preset; `--start_from` puts its memory into another model's layers."""
    memory = LmmConfig(NeuralMemoryConfig(head_dim=64, chunk=64))
    layer, segment = {"mag": (BesideConfig((WindowConfig(SEGMENT), memory)), 0), "sinks": (WindowConfig(SEGMENT, sinks=4), 0),
                      "armt": (ArmtLayerConfig(ArmtConfig()), SEGMENT),
                      "xl": (CachedConfig(XlConfig(SEGMENT)), SEGMENT)}[preset.removesuffix("_memory")]
    inside = LanguageModelConfig(width=128, layers=2, head_dim=32, pattern=(layer,), segment=segment,
                                 style=replace(TITANS, scale_embedding=False))
    rates = {"mag": GATES, "mag_memory": ONLY_MEMORY}.get(preset, ())
    return Experiment(
        model=RmtConfig(inside, tokens=16, form="suffix") if preset == "armt" else inside,
        data=TextConfig(source="stdlib", sequence=4 * SEGMENT, eval_bytes=65_536),
        optimizer=OptimizerConfig(learning_rate=3e-5, steps=1000, warmup_steps=100, rates=rates),
        training=TrainingConfig(batch=4, call_tokens=SEGMENT, log_every=20, eval_every=250, checkpoint_every=250, retrofit=True),
        evaluation=EvaluationConfig(batch=4))
