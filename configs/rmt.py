"""Recurrent Memory Transformer (RMT) on tasks that need what an earlier segment held.

Paper: Recurrent Memory Transformer, section 4.1 and figure 3, https://arxiv.org/abs/2207.06881
"""

from __future__ import annotations

from memtok_jax.data.config import DataConfig
from memtok_jax.models.recurrent import RecurrentConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# task, tokens of a row, tokens of a segment, memory tokens, updates
TASKS = {"reverse": ("reverse", 48, 12, 24, 2000), "copy": ("copy", 72, 24, 24, 2000),
         "retrieval": ("retrieval", 12, 4, 4, 2000)}
FORMS = {"": "causal", "_paper": "paper", "_prefix": "prefix"}
PRESETS = (*TASKS, *(f"{task}_{kind}" for task in TASKS for kind in ("none", "prefix", "paper")))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, kind = preset.partition("_")
    name, sequence, segment, tokens, steps = TASKS[task]
    model = RecurrentConfig(vocabulary=37 if name == "retrieval" else 10, width=64, layers=3, head_dim=16, segment=segment,
                            tokens=0 if kind == "none" else tokens,
                            form={"paper": "paper", "prefix": "prefix"}.get(kind, "causal"))
    return Experiment(
        model=model,
        data=DataConfig(source=f"task:{name}", sequence=sequence, eval_samples=1024),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=steps, warmup_steps=100, weight_decay=0.01, final_fraction=0.05),
        training=TrainingConfig(batch=64, segment=segment, log_every=20, eval_every=500, checkpoint_every=0),
        evaluation=EvaluationConfig(batch=128, lengths=(1,)),
    )
