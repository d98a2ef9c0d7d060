"""State tracking: products of group elements and sums modulo 5, trained on up to 40 tokens and asked for 640, for any memory.

Papers: The Illusion of State in State-Space Models, https://arxiv.org/abs/2404.08819
        Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues, https://arxiv.org/abs/2411.12537
Tasks: memtok_jax/data/tasks/state_tracking.py, modular_arithmetic.py
Command: python train.py --config=state_tracking:parity        (RMT)
         python train.py --config=state_tracking:s3_lmm        (GROUP_MEMORY, see memtok_jax/training/memories.py)
    then python eval.py --workdir=runs/state_tracking-parity --suite=state_tracking for whole rows up to 16 times as long
Hardware, time: 2 CPU cores, minutes each (not measured yet)
Expected: not measured yet. Published: transformers, and scans whose transitions have positive real eigenvalues, are near
    chance beyond the trained length; negative eigenvalues do parity, and more reflections for each token do larger groups

Segments and windows hold 8 tokens and the chunk of a neural memory is 1, because gradients inside a chunk are summed and lose their
order; --config.model.pattern.0.memory.chunk=8 shows what that costs. Presets: parity, s3, s5 (exchanges only), a5,
arithmetic (+ - * modulo 5, the value up to every number), brackets (a tree of + and -, the last value only). Published, of scaled
accuracy on rows of 40 to 256 tokens: arithmetic .03 to .97, brackets .07 to .26. Neighbours: mad, recall.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig, vocabulary
from memtok_jax.data.tasks.modular_arithmetic import ModularArithmeticConfig
from memtok_jax.data.tasks.state_tracking import StateTrackingConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import MEMORIES, small_model

TASKS = {"parity": StateTrackingConfig("Z2"), "s3": StateTrackingConfig("S3"), "s5": StateTrackingConfig("S5", moves="swaps"),
         "a5": StateTrackingConfig("A5"), "arithmetic": ModularArithmeticConfig(),
         "brackets": ModularArithmeticConfig(brackets=True, scored="last")}
PRESETS = (*TASKS, *(f"{task}_{memory}" for task in TASKS for memory in MEMORIES))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    name, _, memory = preset.partition("_")
    data = TaskConfig(TASKS[name], sequence=40, lengths=(8, 16, 24, 40), eval_samples=256)
    return Experiment(
        model=small_model(memory or "rmt", vocabulary(data), tokens=8, chunk=1),
        data=data,
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=1500, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=64, call_tokens=8, log_every=20, eval_every=250, checkpoint_every=250, stop_at=0.999),
        evaluation=EvaluationConfig(batch=64, lengths=(1, 2, 4, 8, 16)),
    )
