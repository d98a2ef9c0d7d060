"""Questions about an earlier line of a stream, at a given distance: a window with pinned tokens, and one with a neural memory.

Paper: StreamEval of Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453, section 4.4
Task: memtok_jax/data/tasks/lines.py; lines of 3 tokens, a question after each, up to 4 lines back (streaming_llm) or 8 (mag)
Command: python train.py --config=stream_eval           (StreamingLLM: 4 pinned tokens and 28 more)
         python train.py --config=stream_eval:mag       (the same window, and a neural memory beside it)
         python -m benchmarks.stream_eval               (both, and accuracy by distance, 16 times as long as in training)
Hardware, time: 2 CPU cores, minutes each
Expected: streaming_llm answers all questions within its window after 450 updates (one seed); see docs/log.md

A line and its question are 6 tokens, so 28 of them hold four lines. The window is trained on those: with questions about
lines out of sight it does not learn to look keys up (docs/log.md, 2026-11-30). A second layer could hand farther lines on; training
decides whether it does.
Neighbours: recall (all pairs first, all questions last), streaming_llm (text).
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.lines import LinesConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.mag import MagConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

LAYERS = {"streaming_llm": WindowConfig(28, sinks=4),
          "mag": MagConfig(28, sinks=4, memory=NeuralMemoryConfig(head_dim=32, chunk=8))}
FARTHEST = {"streaming_llm": 4, "mag": 8}
PRESETS = tuple(LAYERS)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task = LinesConfig(tokens=3, every=1, farthest=FARTHEST[preset], keys=8, values=8, noise=4)
    model = LanguageModelConfig(vocabulary=task.keys + task.values + task.noise + 1, width=64, layers=2, pattern=(LAYERS[preset],),
                                head_dim=32, hidden=128)
    return Experiment(
        model=model, data=TaskConfig(task, sequence=192),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=600, warmup_steps=100, weight_decay=0.01),
        training=TrainingConfig(batch=16, log_every=20, eval_every=200, checkpoint_every=200),
        evaluation=EvaluationConfig(batch=32, lengths=(1, 4, 16)))
