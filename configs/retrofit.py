"""A memory for a model that is trained already: at the first step it computes what it did before, then it learns to use it.

Papers: Titans (https://arxiv.org/abs/2501.00663), ARMT (2407.04841), RMT (2207.06881), LoRA
(2106.09685), Transformer-XL (1901.02860), StreamingLLM (2309.17453)
Command: python train.py --config=retrofit:mag --start_from=FOLDER          FOLDER: a pretrained model, or a run of train.py
         python train.py --config=retrofit:mag_memory --start_from=FOLDER   only the memory and its gates learn
         python train.py --config=retrofit:rmt_lora --start_from=FOLDER     memory tokens, and low-rank changes of attention
Hardware, time: those of the base
Expected: the loss of step 1 is the base's; whether a memory helps later must be measured against the base trained on as long
    without it, and against the same model whose memory forgets at every segment

mag: a neural memory beside attention, through a gate that starts at 0 (`mixers/beside.py`). armt: a matrix in each layer, whose
values start at 0; attention stays inside the segment. xl: attention sees the layer's inputs of the segment before. sinks: a window
with four first tokens, nothing to learn. rmt: memory tokens around each segment, as large as the base's word embeddings; only
without them (--config.model.tokens=0) are the first logits the base's, because every token sees them. plain: no memory, the arm to
compare with. Not exact for any initial value, so not here: MAG's product.

What learns: everything (mag, armt, rmt, plain; gates twenty times as fast), the memory alone (_memory), or the memory and low-rank
changes of attention's projections, ten times as fast as the rest would (_lora; `models/lora.py`).
Which layers: --config.training.retrofit_layers=upper, every:4 or 8,12,-1; without, all.
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.text import TextConfig
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.lora import LoraConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import TITANS
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

MODELS = ("mag", "armt", "rmt", "xl", "sinks", "plain")
LEARN = ("memory", "lora")
PRESETS = ("mag", "mag_memory", *(name for name in MODELS if name != "mag"), *(f"{name}_lora" for name in MODELS), "armt_memory",
           "rmt_memory")
SEGMENT = 256
# Parts of parameters' paths -> factors of the learning rate. A gate has a long way to go, and no weight decay.
GATES = ("gate_=20",)
MEMORY = {"mag": ("['beside']['1']=1", *GATES), "armt": ("['memory']=1",), "rmt": ("['memory']['tokens']=1",)}
FACTORS = ("['lora']=10",)


def inside(name: str) -> LanguageModelConfig | RmtConfig:
    """The model with a memory."""
    layer, segment = {
        "mag": (BesideConfig((WindowConfig(SEGMENT), LmmConfig(NeuralMemoryConfig(head_dim=64, chunk=64)))), 0),
        "sinks": (WindowConfig(SEGMENT, sinks=4), 0), "plain": (WindowConfig(SEGMENT), 0),
        "armt": (ArmtLayerConfig(ArmtConfig()), SEGMENT), "rmt": (SegmentConfig(), SEGMENT),
        "xl": (CachedConfig(XlConfig(SEGMENT)), SEGMENT)}[name]
    model = LanguageModelConfig(width=128, layers=2, head_dim=32, pattern=(layer,), segment=segment,
                                style=replace(TITANS, scale_embedding=False))
    form = {"armt": "suffix", "rmt": "causal"}.get(name)
    return RmtConfig(model, tokens=16, form=form) if form else model


def config(preset: str) -> Experiment:
    """The experiment of one preset; `--start_from` puts its memory into another model's layers."""
    name, _, learns = preset.partition("_")
    model, rates = inside(name), GATES if name == "mag" else ()
    if learns:
        rates = ("=0", *MEMORY.get(name, ()), *(FACTORS if learns == "lora" else ()))
    if learns == "lora":
        attention = "0." if name == "mag" else ""  # a neural memory has projections of the same names
        model = LoraConfig(model, rank=8, alpha=16.0, targets=tuple(attention + part for part in "qkvo"))
    return Experiment(
        model=model,
        data=TextConfig(source="stdlib", sequence=4 * SEGMENT, eval_bytes=65_536),
        optimizer=OptimizerConfig(learning_rate=3e-5, steps=1000, warmup_steps=100, rates=rates),
        training=TrainingConfig(batch=4, call_tokens=SEGMENT, log_every=20, eval_every=250, checkpoint_every=250, retrofit=True),
        evaluation=EvaluationConfig(batch=4))
