"""Needles in a haystack for every memory: pass-key, number and uuid, trained on rows of up to 256 tokens, asked up to 4,096.

Task: memtok_jax/data/tasks/needles.py, after RULER (https://arxiv.org/abs/2404.06654) and table 2 of Titans
Command: python train.py --config=needles:mag, then python eval.py --workdir=runs/needles-mag --suite=needles for whole values
         written by the model at 1, 2, 4, 8 and 16 times the length, by depth, with controls and a figure
         --suite=needle_stream asks in streams of any length in constant memory (--config.evaluation.needle_stream.tokens=2000000)
         With text of books: --config.data.task.text=gutenberg_books (or a folder of text files); one kind of needle alone:
         --config.data.task.kinds=number
Hardware, time: one CPU core; with its test 43 minutes (mag) and 13 (window) beside other work
Expected: the MAG of `benchmarks.all_memories`, whose memory has other sizes (one seed): pass-key .96, number .94 at 4,096 tokens,
         uuid none at any length; window none. The other presets have not been run

Every preset has two layers of the same width, attention over 16 tokens (of a window, segment or cache), and the same rows in the
same order. Two stages with shorter rows come first (docs/log.md says why). Needles stand at random depths; most lie out of reach,
so that attention alone cannot learn the task. Rows hold one or two needles, and both questions are asked; eval.py asks for one
needle. "window" is the model without memory. Only values are learnt: a model may learn to ignore the text.
Neighbours: recall (pairs first, noise, questions last), babilong.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.needles import NeedlesConfig, vocabulary
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import MEMORIES, small_model

PRESETS = MEMORIES
TASK = NeedlesConfig(kinds=("passkey", "number", "uuid"), needles=(1, 2), questions=2, tail=8)
STAGES = ("data.sequence=64 data.lengths=() data.task.needles=1,1 data.task.questions=1 training.batch=64 optimizer.steps=150",
          "data.sequence=128 data.lengths=() training.batch=32 optimizer.steps=150")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return Experiment(
        model=small_model(preset, vocabulary(TASK), tokens=16),
        data=TaskConfig(TASK, sequence=256, lengths=(128, 192, 256), eval_samples=500),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=700, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=16, call_tokens=16 if preset in ("rmt", "armt") else 64, log_every=20, eval_every=100,
                                checkpoint_every=100, stop_at=0.99, curriculum=STAGES),
        evaluation=EvaluationConfig(batch=50, batches=4, lengths=(1, 2, 4, 8, 16)),
    )
