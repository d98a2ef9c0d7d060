"""Controllers for virtual context: one that makes the calls of a conversation, and one that knows what its memory has kept.

Paper: MemGPT, https://arxiv.org/abs/2310.08560, section 3.2 (nested key-value retrieval); its controller is a large chat model
Tasks: memtok_jax/data/tasks/nested.py, a table of 140 pairs in archival storage, values that are keys themselves;
    memtok_jax/data/tasks/nested_told.py, the same rows told one after the other, then asked for without a search
Command: python train.py --config=memgpt:nested, then
         python -m benchmarks.virtual_context --part=nested --workdir=runs/memgpt-nested
         python train.py --config=memgpt:told, then
         python -m benchmarks.virtual_context --part=summary --workdir=runs/memgpt-told
Hardware, time: nested 3 min 40 s for 750 updates on two CPU cores with a load of 8; told about 18 minutes of one core
Expected: nested all held-out decisions right after 750 updates (a plateau at accuracy .7 ends between updates 550 and 650); in
    conversations 100 % at 0 to 4 overwrites. told .57 of the questions about one evicted pair, .07 about two, none about 140
    (docs/results/virtual_context.md)

"nested": a search asks for "key = WORD" and shows the word's own row or nothing. What a decision needs lies in the 48 tokens before
it: a row or "nothing found", and the word to go on with, which stands at one distance behind a row and at another behind nothing.
The model copies by position. So it goes on for more lookups than it was trained with (3 at most), but needs words of one length.

"told": two layers of Titans MAG with windows of 16 tokens, as for needles. A question and the beginning of its reply are longer
than what two windows reach, so attention sees no row of the table from there: whatever the model knows of it, its memory has told.
One pair comes first, then two.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.nested import NestedConfig
from memtok_jax.data.tasks.nested_told import NestedToldConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import GPT2_RELATIVE
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import small_model

PRESETS = ("nested", "told")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return {"nested": nested, "told": told}[preset]()


def nested() -> Experiment:
    """Transcripts of the script."""
    model = LanguageModelConfig(width=64, layers=2, pattern=(WindowConfig(48),) * 2, head_dim=16, hidden=128, style=GPT2_RELATIVE)
    return Experiment(
        model=model, data=TaskConfig(NestedConfig(), sequence=144, eval_samples=128),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=1500, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=8, log_every=50, eval_every=250, checkpoint_every=250, stop_at=0.9999, data=1),
        evaluation=EvaluationConfig(batch=64, lengths=(1,)))


def told() -> Experiment:
    """Two pairs; before them one, as many questions in a row as fit."""
    return Experiment(
        model=small_model("mag", 256, tokens=16),
        data=TaskConfig(NestedToldConfig(pairs=2), sequence=256, eval_samples=64),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=400, warmup_steps=50, weight_decay=0.01),
        training=TrainingConfig(batch=16, call_tokens=64, log_every=20, eval_every=100, checkpoint_every=100, stop_at=0.99, data=1,
                                curriculum=("data.task.pairs=1 data.sequence=192 optimizer.steps=500",)),
        evaluation=EvaluationConfig(batch=32, lengths=(1,)))
