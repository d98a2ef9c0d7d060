"""Recurrent Memory Transformer (RMT) on tasks that need what an earlier segment held.

Paper: Recurrent Memory Transformer, section 4.1 and figure 3, https://arxiv.org/abs/2207.06881
Command: python train.py --config=rmt:copy
Hardware, time: 2 CPU cores, minutes
Paper's results: 1.0 on reverse and copy, 0.99 on retrieval, after 250,000 updates and more of other models
Expected here: copy 1.0 after 400 updates. Not learnt to the end: reverse, where runs can stop with half of the answer right,
    and retrieval; see docs/log.md
Neighbours: armt.

                                                               a reader of its own segment
    copy       24 symbols twice, three segments of 24          0.143 (one symbol of 48 stands in the segment that asks for it)
    reverse    24 symbols backwards, four segments of 12       0.125
    retrieval  four pairs, one question, segments 4 + 4 + 2    0.1

Positions are relative, in two heads: see `DISTANCE_STD` in memtok_jax/models/decoder.py. A run ends when 99.7 % of the held-out
symbols are right. Beside each task: _none, the same decoder without memory; _prefix, with memory tokens in front that are never
written (Memory Transformer); _paper, with the paper's mask. The gradient flows through all segments: cut between them
(--config.training.gradient=every:1), no task can be learnt.
"""

from __future__ import annotations

from memtok_jax.data.config import DataConfig
from memtok_jax.models.recurrent import RecurrentConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# vocabulary, tokens of a row, tokens of a segment, memory tokens
TASKS = {"copy": (10, 72, 24, 24), "reverse": (10, 48, 12, 24), "retrieval": (37, 12, 4, 4)}
KINDS = {"none": dict(tokens=0), "prefix": dict(form="prefix"), "paper": dict(form="paper")}
PRESETS = (*TASKS, *(f"{task}_{kind}" for task in TASKS for kind in KINDS))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, kind = preset.partition("_")
    vocabulary, sequence, segment, tokens = TASKS[task]
    shape = dict(vocabulary=vocabulary, width=64, layers=2, head_dim=32, segment=segment, tokens=tokens, position="relative")
    return Experiment(
        model=RecurrentConfig(**(shape | KINDS.get(kind, {}))),
        data=DataConfig(source=f"task:{task}", sequence=sequence, eval_samples=1024),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=2000, warmup_steps=100, weight_decay=0.01, final_fraction=0.05),
        training=TrainingConfig(batch=32, segment=segment, log_every=20, eval_every=100, stop_at=0.997),
        evaluation=EvaluationConfig(batch=128, lengths=(1,)),
    )
