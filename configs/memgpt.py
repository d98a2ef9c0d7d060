"""A controller for virtual context: a small model that is trained on transcripts of a script and makes the calls of a conversation.

Paper: MemGPT, https://arxiv.org/abs/2310.08560, section 3.2 (nested key-value retrieval); its controller is a large chat model
Task: memtok_jax/data/tasks/nested.py; a table of 140 pairs in archival storage, values that are keys themselves
Command: python train.py --config=memgpt:nested, then
         python -m benchmarks.virtual_context --part=nested --workdir=runs/memgpt-nested
Hardware, time: 3 min 40 s for 750 updates on two CPU cores with a load of 8
Expected: all held-out decisions right after 750 updates (a plateau at accuracy .7 ends between updates 550 and 650); in
    conversations 100 % at 0 to 4 overwrites, docs/results/virtual_context.md

A search asks for "key = WORD" and shows the word's own row or nothing. What a decision needs lies in the 48 tokens before it: a row
or "nothing found", and the word to go on with, which stands at one distance behind a row and at another behind nothing. The model
copies by position. So it goes on for more lookups than it was trained with (3 at most), but needs words of one length.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.nested import NestedConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import GPT2_RELATIVE
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

PRESETS = ("nested",)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    model = LanguageModelConfig(width=64, layers=2, pattern=(WindowConfig(48), WindowConfig(48)), head_dim=16, hidden=128,
                                style=GPT2_RELATIVE)
    return Experiment(
        model=model, data=TaskConfig(NestedConfig(), sequence=144, eval_samples=128),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=1500, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=8, log_every=50, eval_every=250, checkpoint_every=250, stop_at=0.9999, data=1),
        evaluation=EvaluationConfig(batch=64, lengths=(1,)))
