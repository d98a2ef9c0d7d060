"""Recipes that several configs share: the laptop run on text, the papers' sizes, and the recall task."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.data.text import TextConfig
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TRANSFORMER_XL, Style
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig


class TitansSize(NamedTuple):
    """A row of table 5 of Titans (NeurIPS 2025 version)."""

    layers: int  # blocks
    width: int
    heads: int
    learning_rate: float  # peak
    tokens: float  # of training


# arXiv v1 names a size of 400M that table 5 does not have. Ours: 340m with as many more layers as the names say.
TITANS_SIZES = {
    "170m": TitansSize(12, 768, 16, 3e-3, 15e9),
    "340m": TitansSize(24, 1024, 16, 1.5e-3, 15e9),
    "400m": TitansSize(28, 1024, 16, 1.5e-3, 15e9),
    "760m": TitansSize(24, 1536, 16, 1.25e-3, 30e9),
    "1.3b": TitansSize(18, 2048, 8, 7e-4, 100e9),
}
TITANS_BATCH_TOKENS = 524_288  # of one update


def titans_layer(kind: str, window: int, memory: NeuralMemoryConfig, combine: str = "gate", retrieved: int = 0):
    """One layer of an architecture: "lmm", "mac", "mag", "mal" (two branches: memory, then window attention) or "window"."""
    return {
        "lmm": lambda: LmmConfig(memory), "mac": lambda: MacConfig(retrieved, combine, memory),
        "mag": lambda: MagConfig(window, combine, memory), "mal": lambda: (LmmConfig(memory), WindowConfig(window)),
        "window": lambda: WindowConfig(window),
    }[kind]()


def segment_of(kind: str, tokens: int) -> int:
    """Tokens of a segment: MAC alone has segments."""
    return tokens if kind == "mac" else 0


def titans_paper(kind: str, size: str) -> Experiment:
    """One of the paper's sizes with the recipe of its NeurIPS 2025 version: sizes and peak learning rates of table 5; chunk 16,
    segment 512, window 2,048 (appendix E.1); 128 persistent and 256 retrieved tokens (section 4.1); gates for each layer of
    the memory (B.3) and forgetting by channel (2.1); AdamW, cosine, weight decay 0.1, half a million tokens per update, sequences
    of 4,096, or 2,048 where attention has a window. configs/titans_mac.py says where the paper contradicts itself.

    Where the paper is silent: memory of heads of 64; warm-up 1 % of the steps, betas 0.9 and 0.95, clipping at 1, final learning
    rate a tenth of the peak (all of them usual for models of this size). The mesh suits 256 chips; on fewer, set training.data,
    fsdp, tensor and raise training.microbatches.
    """
    row = TITANS_SIZES[size]
    steps, sequence = int(row.tokens / TITANS_BATCH_TOKENS), 2048 if kind in ("mag", "mal") else 4096
    memory = NeuralMemoryConfig(head_dim=64, chunk=16, gates="per_layer", forget_by="channel")
    layer = titans_layer(kind, 2048, memory, retrieved=256)
    model = LanguageModelConfig(vocabulary=32_000, width=row.width, layers=row.layers, pattern=(layer,),
                                head_dim=row.width // row.heads, segment=segment_of(kind, 512), prefix=0 if kind == "lmm" else 128,
                                dtype="bfloat16", remat="block")
    batch = TITANS_BATCH_TOKENS // sequence
    return Experiment(
        model=model,
        data=TextConfig(source="stdlib", sequence=sequence),
        optimizer=OptimizerConfig(learning_rate=row.learning_rate, steps=steps, warmup_steps=steps // 100, weight_decay=0.1),
        training=TrainingConfig(batch=batch, call_tokens=sequence, log_every=10, eval_every=1000,
                                checkpoint_every=500, data=-1, fsdp=16, tensor=2),
        evaluation=EvaluationConfig(batch=batch, batches=1),
    )


def laptop_text(model: LanguageModelConfig) -> Experiment:
    """A byte-level model on the standard library's sources and documentation: minutes on two CPU cores.

    A row stays at one place of the text for two batches, so that memory is carried from batch to batch as it is in streaming, then
    jumps. Each update is a step towards what its few places have in common with the rest: the sooner the places change,
    the better (docs/log.md, 2026-11-27).
    """
    return Experiment(
        model=model,
        data=TextConfig(source="stdlib", sequence=256, contiguous=False, visit=2, eval_bytes=65_536),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=3300, warmup_steps=100, final_fraction=0.02,
                                  weight_decay=0.1),
        training=TrainingConfig(batch=4, log_every=20, eval_every=1100, checkpoint_every=550),
        evaluation=EvaluationConfig(batch=16),
    )


def titans_text(kind: str, preset: str) -> Experiment:
    """The text configs of Titans: a paper size of `kind` layers, or the laptop run.

    On the laptop there are two layers, compiled side by side: the one with memory, and a window attention (another memory for
    "lmm").
    """
    if preset in TITANS_SIZES:
        return titans_paper(kind, preset)
    memory = NeuralMemoryConfig(head_dim=32, expansion=2, chunk=64)
    layer = titans_layer(kind, 64, memory)
    own = dict(pattern=(layer, layer)) if kind == "lmm" else dict(pattern=(layer, WindowConfig(64)), prefix=8)
    return laptop_text(LanguageModelConfig(width=128, layers=2, head_dim=32, segment=segment_of(kind, 64), **own))


def recall(model: LanguageModelConfig, pairs: int, sequence: int, steps: int) -> Experiment:
    """Associative recall: `pairs` key-value pairs first, noise, then all keys again; the values are asked for.

    The model's segment (MAC) or window holds the pairs or the questions, never both.
    """
    task = RecallConfig(pairs=pairs)
    vocabulary = task.keys + task.values + task.noise
    return Experiment(
        model=replace(model, vocabulary=vocabulary),
        data=TaskConfig(task, sequence),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=steps, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=32, log_every=20, eval_every=200, checkpoint_every=200),
        evaluation=EvaluationConfig(batch=32, lengths=(1, 4, 16)),
    )


# -------------------------------------------------------------------------------------------------------- cached memories

# Transformer-XL (arXiv 1901.02860, released scripts): model, tokens of a segment and of the cache, rows, warm-up, updates.
XL_SIZES = {
    "wt103_base": (dict(vocabulary=267_735, width=410, layers=16, heads=10, head_dim=41, hidden=2100,
                        cutoffs=(20_000, 40_000, 200_000)), 150, 60, 0, 200_000),
    "wt103_large": (dict(vocabulary=267_735, width=1024, layers=18, heads=16, head_dim=64, hidden=4096,
                         cutoffs=(20_000, 40_000, 200_000), shrink=4), 384, 128, 16_000, 4_000_000),
    "enwik8_base": (dict(vocabulary=256, width=512, layers=12, heads=8, head_dim=64, hidden=2048), 512, 22, 0, 400_000),
    "enwik8_large": (dict(vocabulary=256, width=1024, layers=24, heads=8, head_dim=128, hidden=3072), 768, 64, 4000, 400_000),
}

# Compressive Transformer (arXiv 1911.05507, section 4): model, segment, memory. The number of slots is ours.
COMPRESSIVE_SIZES = {
    "enwik8": (dict(vocabulary=256, width=1024, layers=24, heads=8, head_dim=128, hidden=3072), 768,
               CompressiveConfig(length=1152, compressed=1152, rate=3)),
    "pg19": (dict(vocabulary=32_000, width=1024, layers=36, heads=16, head_dim=64, hidden=4096), 512,
             CompressiveConfig(length=512, compressed=512, rate=2)),
}


def laptop_cached(memory: XlConfig | CompressiveConfig) -> Experiment:
    """`laptop_text` for a Transformer-XL of two layers that reads segments of 64 tokens, four to a row of a batch.

    Weights start at 1 / sqrt(width); the published 0.02 is made for wider models.
    """
    style = replace(TRANSFORMER_XL, std=128 ** -0.5)
    exp = laptop_text(LanguageModelConfig(vocabulary=256, width=128, layers=2, head_dim=32, hidden=512, segment=64, style=style,
                                          pattern=(CachedConfig(memory),)))
    return replace(exp, training=replace(exp.training, call_tokens=64))


def cached(memory: XlConfig | CompressiveConfig, segment: int, style: Style, **sizes) -> LanguageModelConfig:
    """A model whose layers cache their inputs."""
    return LanguageModelConfig(segment=segment, style=style, pattern=(CachedConfig(memory),), **sizes)


def _cached_paper(model: LanguageModelConfig, segment: int, batch: int, optimizer: OptimizerConfig) -> Experiment:
    """Rows that follow the text from end to end, one segment to a batch, the cache carried."""
    return Experiment(
        model=model,
        data=TextConfig(source="stdlib", sequence=segment),
        optimizer=optimizer,
        training=TrainingConfig(batch=batch, log_every=10, eval_every=4000, checkpoint_every=1000),
        evaluation=EvaluationConfig(batch=batch, batches=10),
    )


def transformer_xl_paper(size: str) -> Experiment:
    """One of the paper's sizes: Adam at 2.5e-4, cosine to zero, gradient clipped to 0.25, no weight decay; no dropout here."""
    model, segment, batch, warmup, steps = XL_SIZES[size]
    optimizer = OptimizerConfig(learning_rate=2.5e-4, steps=steps, warmup_steps=warmup, final_fraction=0.0, beta2=0.999,
                                weight_decay=0.0, clip_norm=0.25)
    return _cached_paper(cached(XlConfig(segment), segment, TRANSFORMER_XL, **model), segment, batch, optimizer)


def compressive_paper(size: str) -> Experiment:
    """One of the paper's sizes: Adam at 3e-4, cosine, gradient clipped to 0.1; warm-up and length of the run are ours."""
    model, segment, memory = COMPRESSIVE_SIZES[size]
    optimizer = OptimizerConfig(learning_rate=3e-4, steps=100_000, warmup_steps=4000, final_fraction=1 / 300, beta2=0.999,
                                weight_decay=0.0, clip_norm=0.1)
    return _cached_paper(cached(memory, segment, TRANSFORMER_XL, **model, remat="block"), segment, 64, optimizer)
