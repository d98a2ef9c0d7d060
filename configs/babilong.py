"""BABILong: questions about facts scattered in books, longer and longer, for RMT, ARMT and other memories.

Papers: BABILong, https://arxiv.org/abs/2406.10149; RMT to a million tokens, https://arxiv.org/abs/2304.11062
Task: memtok_jax/data/tasks/babilong.py
Data: the bAbI tasks (v1.2) and books: --config.data.task.facts=FOLDER --config.data.task.text=FOLDER, or the folders babi and
      gutenberg_books below MEMTOK_DATA_DIR
Command: python train.py --config=babilong                    (RMT, bytes)
         python train.py --config=babilong:qa1_armt           (TASK_MEMORY: qa1 ... qa5 and rmt, armt, mag, transformer_xl, mamba)
         --config.data.task.tokenizer=tokenizer.json --config.model.inside.vocabulary=50257 for pieces instead of bytes
    then python eval.py --workdir=runs/babilong --suite=babilong for whole written answers at 1, 2, 4, ... times the length
Hardware, time: a GPU; on 2 CPU cores hours (not measured yet)
Expected: not measured yet. Published (GPT-2 of 137M parameters, fine-tuned) at 4k, 32k and 128k tokens: qa1 RMT 100, 99, 94, ARMT
100
    throughout; qa2 RMT 98, 82, 39

Stages hold one, two, three, five and eight segments of 256 bytes, and every stage but the first mixes the lengths before, as
published: a memory that has always seen the same number of segments does not read others. The first stage has facts alone.
Neighbours: armt, needles, ruler.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.babilong import BabilongConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import small_model

SEGMENT, PARTS = 256, (1, 2, 3, 5, 8)
MODELS = ("rmt", "armt", "mag", "transformer_xl", "mamba")
PRESETS = tuple(f"qa{n}_{model}" for n in range(1, 6) for model in MODELS)


def lengths(parts: int) -> tuple[int, ...]:
    """Lengths of the rows of a stage with up to this many segments."""
    return tuple(SEGMENT * n for n in PARTS if n <= parts)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, memory = preset.partition("_")
    stages = ["data.task.alone=true data.sequence=256 data.lengths=()"]
    stages += [f"data.sequence={SEGMENT * n} data.lengths={','.join(map(str, lengths(n)))}" for n in PARTS[1:-1]]
    return Experiment(
        model=small_model(memory, 256, tokens=SEGMENT, width=256, layers=4),
        data=TaskConfig(BabilongConfig((task,)), sequence=SEGMENT * PARTS[-1], lengths=lengths(PARTS[-1]), eval_samples=1000),
        optimizer=OptimizerConfig(learning_rate=1e-3, steps=5000, warmup_steps=200, weight_decay=0.01, final_fraction=0.05),
        training=TrainingConfig(batch=32, call_tokens=SEGMENT, log_every=20, eval_every=250, checkpoint_every=250, stop_at=0.995,
                                curriculum=tuple(stages)),
        evaluation=EvaluationConfig(batch=32, batches=8, lengths=(1, 2, 4, 8)),
    )
