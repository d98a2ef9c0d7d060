"""A controller for virtual context: a small model that is trained on transcripts of a script and makes the calls of a conversation.

Paper: MemGPT, https://arxiv.org/abs/2310.08560, section 3.2 (nested key-value retrieval); its controller is a large chat model
Task: memtok_jax/data/tasks/nested.py; a table of 140 pairs in archival storage, values that are keys themselves
Command: python train.py --config=memgpt, then
         python -m benchmarks.virtual_context --part=nested --workdir=runs/memgpt-nested
Hardware, time: one CPU core, minutes
Expected: TODO

nested    searches for "key = WORD", which finds the word's own row or nothing. What a decision needs lies in the 48 tokens before
          it: a row or "nothing found", and the word to go on with, at one distance behind a row, at another behind nothing. The model
          copies by position. So it goes on for more lookups than it was trained with (up to 3), but needs words of one length.
word      searches for the word alone, as the paper does. A search also shows the row whose value the word is, in either order, so
          that a controller must compare words. The window holds a call with its result.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.nested import NestedConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import GPT2_RELATIVE
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# What a search looks for; tokens of the window, layers, tokens of a row, updates.
KINDS = {"nested": ("key", 48, 2, 144, 1500), "word": ("word", 192, 3, 384, 4000)}
PRESETS = tuple(KINDS)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    query, window, layers, sequence, steps = KINDS[preset]
    model = LanguageModelConfig(width=64, layers=layers, pattern=(WindowConfig(window),) * layers, head_dim=16, hidden=128,
                                style=GPT2_RELATIVE)
    return Experiment(
        model=model, data=TaskConfig(NestedConfig(query=query), sequence, eval_samples=128),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=steps, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=8, log_every=50, eval_every=250, checkpoint_every=250, stop_at=0.9999, data=1),
        evaluation=EvaluationConfig(batch=64, lengths=(1,)))
