"""RULER's synthetic tasks, learnt from scratch: needles among noise, text and other needles, variable tracking, word counts.

Paper: RULER, https://arxiv.org/abs/2404.06654
Task: memtok_jax/data/tasks/ruler.py; eleven of the thirteen tasks (question answering needs data sets)
Command: python train.py --config=ruler                     (niah_single_1, mag, bytes)
         python train.py --config=ruler:rmt --config.data.task.tasks=niah_single_1,niah_single_2,niah_single_3
    then python eval.py --workdir=runs/ruler --suite=ruler for references found in written answers, by task and length
Hardware, time: a GPU; on 2 CPU cores hours (not measured yet)
Expected: not measured yet. Published numbers are of large models that were not trained on these tasks

--config.data.task.text=FOLDER names the running text, which is no essay collection: call results "niah_single_2 (text)".
Neighbours: needles (short rows, made for small models), babilong.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.ruler import RulerConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import MEMORIES, small_model

PRESETS = ("mag", *(name for name in MEMORIES if name != "mag"))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return Experiment(
        model=small_model(preset, 256, tokens=128, width=256, layers=4),
        data=TaskConfig(RulerConfig(generate=64), sequence=1024, eval_samples=100),
        optimizer=OptimizerConfig(learning_rate=1e-3, steps=5000, warmup_steps=200, weight_decay=0.01),
        training=TrainingConfig(batch=16, call_tokens=128, log_every=20, eval_every=500, checkpoint_every=250, stop_at=0.999),
        evaluation=EvaluationConfig(batch=20, batches=2, lengths=(1, 2, 4, 8)),
    )
