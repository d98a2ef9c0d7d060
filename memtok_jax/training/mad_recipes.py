"""MAD's tasks as experiments: base settings, the sweep from them, and two protocols.

    paper   the released training: 12,800 fixed rows (memorization 256) for 200 epochs in batches of 128, learning rate to 1e-6 by a
            cosine, every next token in the recall tasks. The paper tries learning rates 1e-4, 5e-4, 1e-3 and weight decays 0, 0.1
    mini    fresh rows in each of 1,000 updates (compression 500) of 4,096 tokens, answers alone
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.mad import NEXT_TOKEN, MadConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# Task -> (settings, tokens of a row).
BASE = {
    "recall": (MadConfig("recall", tokens=16), 128),
    "noisy": (MadConfig("noisy", tokens=32, noise_tokens=16, noise=0.2), 128),
    "fuzzy": (MadConfig("fuzzy", tokens=16), 128),
    "selective": (MadConfig("selective", tokens=16), 256),
    "compression": (MadConfig("compression", tokens=16), 32),
    "memorization": (MadConfig("memorization", tokens=256), 32),
}
ROWS, MEMORIZED, TEST_ROWS, BATCH, EPOCHS, MINI_TOKENS = 12_800, 256, 1280, 128, 200, 4096
VOCABULARIES, FEWER_ROWS = (32, 64, 128), (6400, 3200, 1600, 800)
SHARES, COPIES = (0.4, 0.6, 0.8), (32, 64, 96)
LONGER = {"recall": (256, 512, 1024), "noisy": (256, 512, 1024), "fuzzy": (256, 512, 1024), "selective": (512, 1024),
          "compression": (64, 128, 256), "memorization": ()}


def sweep(task: str) -> list[tuple[str, ...]]:
    """The harder settings of a task as overrides of its experiment, one thing changed in each: 66 settings, base included."""
    sizes = {"noisy": (48, 80, 144), "memorization": (512, 1024, 2048, 4096, 8192)}.get(task, VOCABULARIES)
    changes = [(), *((f"data.task.tokens={v}", f"model.{_output(task)}={v}") for v in sizes),
               *((f"data.sequence={n}", f"training.call_tokens={n}") for n in LONGER[task])]
    if task != "memorization":
        changes += [(f"data.train_samples={rows}",) for rows in FEWER_ROWS]
    if task == "noisy":
        changes += [(f"data.task.noise={share}",) for share in SHARES]
    if task == "selective":
        changes += [(f"data.task.symbols={count}",) for count in COPIES]
    return changes


def _output(task: str) -> str:
    """The field of the model that holds the vocabulary."""
    return "inside.vocabulary" if task == "compression" else "vocabulary"


def mad(task: str, protocol: str, model) -> Experiment:
    """The experiment of one task, "paper" or "mini". model: with the vocabulary of the task."""
    (settings, tokens), mini = BASE[task], protocol == "mini"
    rows = MEMORIZED if task == "memorization" else ROWS
    batch = MINI_TOKENS // tokens if mini else BATCH
    steps = (500 if task == "compression" else 1000) if mini else EPOCHS * rows // BATCH
    labels = "all" if not mini and task in NEXT_TOKEN else "answers"
    return Experiment(
        model=model,
        data=TaskConfig(replace(settings, labels=labels), tokens, eval_samples=TEST_ROWS, train_samples=0 if mini else rows),
        optimizer=OptimizerConfig(learning_rate=2e-3 if mini else 5e-4, steps=steps, warmup_steps=50 if mini else 0,
                                  final_fraction=0.02 if mini else 2e-3, beta2=0.98, weight_decay=0.01 if mini else 0.1),
        training=TrainingConfig(batch=batch, call_tokens=tokens, log_every=20, eval_every=250 if mini else 1000,
                                checkpoint_every=250 if mini else 1000, stop_at=0.999),
        evaluation=EvaluationConfig(batch=128, lengths=(1,)),
    )
