"""Hymba as a language model: attention heads and a selective scan side by side in every layer, meta tokens, shared keys.

Paper: Hymba: A Hybrid-head Architecture for Small Language Models, https://arxiv.org/abs/2411.13676
Command: python train.py --config=hymba
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected (laptop): 2.017 bits per byte on 65,536 held-out bytes (order-3 counts 2.451), one seed, 28 min on one busy core

The presets 125m, 350m and 1.5b have the sizes of table 11. The first, middle and last layer see a whole sequence, all others
a window. Two neighbours share keys and values; where their number between two such layers is odd, the first three do (the grouping
of the released 1.5B model). Different from the paper: the learning rate follows a cosine instead of a plateau; the middle of 24
layers, which the paper does not name, is layer 11; meta tokens have no positions. Data and vocabulary as said in titans_mac.
    python train.py --config=hymba:1.5b --compile_only=v5e:16x16
Neighbours: streaming_llm (the window alone), titans_mag (another memory beside a window).
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.text import TextConfig
from memtok_jax.memory.ssm import MambaConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.hymba import KEYS, HymbaConfig
from memtok_jax.models.mixers.repeated import RepeatedConfig
from memtok_jax.models.style import TITANS
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.recipes import laptop_text

# Width, layers, heads, heads of keys, hidden width of the feed-forward network.
SIZES = {"125m": (512, 24, 8, 4, 1664), "350m": (768, 32, 12, 4, 2432), "1.5b": (1600, 32, 25, 5, 5504)}
PRESETS = ("laptop", *SIZES)
SEQUENCE, BATCH_TOKENS, TOKENS = 2048, 2_097_152, 1.5e12
MEMORY = MambaConfig(norms=True)


def group(layers: int, window: int) -> tuple:
    """Layers between two that see everything: pairs that share keys, a triple first where the number is odd."""
    own, shared = (HymbaConfig(window, keys=keys, memory=MEMORY) for keys in KEYS)
    triple = (own, shared, shared)[:layers] if layers % 2 else ()
    pairs = (layers - len(triple)) // 2
    return triple + ((RepeatedConfig((own, shared), pairs),) if pairs else ())


def pattern(layers: int, window: int, sequence: int) -> tuple:
    """All layers of a model."""
    whole, middle = (HymbaConfig(sequence, memory=MEMORY),), (layers - 1) // 2
    return whole + group(middle - 1, window) + whole + group(layers - middle - 2, window) + whole


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    if preset == "laptop":
        return laptop_text(LanguageModelConfig(width=128, layers=4, pattern=pattern(4, 64, 256), head_dim=32, kv_heads=2,
                                               value_dim=64, prefix=8))
    width, layers, heads, kv_heads, hidden = SIZES[preset]
    steps, batch = int(TOKENS / BATCH_TOKENS), BATCH_TOKENS // SEQUENCE
    return Experiment(
        model=LanguageModelConfig(
            vocabulary=32_001, width=width, layers=layers, pattern=pattern(layers, 1024, SEQUENCE), head_dim=width // heads,
            heads=heads, kv_heads=kv_heads, value_dim=2 * width // heads, hidden=hidden, prefix=128, dtype="bfloat16",
            remat="block", style=replace(TITANS, std=0.02, scale_embedding=False)),
        data=TextConfig(source="stdlib", sequence=SEQUENCE),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=steps, warmup_steps=steps // 100, final_fraction=1 / 300,
                                  weight_decay=0.1),
        training=TrainingConfig(batch=batch, microbatches=4, call_tokens=SEQUENCE, log_every=10, eval_every=1000,
                                checkpoint_every=500, data=-1, fsdp=16),
        evaluation=EvaluationConfig(batch=256, batches=1))
