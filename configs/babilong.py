"""BABILong: questions about facts scattered in books, longer and longer, for RMT, ARMT and other memories.

Papers: BABILong, https://arxiv.org/abs/2406.10149; RMT to a million tokens, https://arxiv.org/abs/2304.11062
Task: memtok_jax/data/tasks/babilong.py
Data: the bAbI tasks (v1.2) and books: --config.data.task.facts=FOLDER --config.data.task.text=FOLDER, or the folders babi and
      gutenberg_books below MEMTOK_DATA_DIR
Command: python train.py --config=babilong                    (RMT, bytes)
         python train.py --config=babilong:qa1_armt           (TASK_MEMORY: qa1 ... qa5 and rmt, armt, mag, transformer_xl, mamba)
         --config.data.task.tokenizer=tokenizer.json --config.model.inside.vocabulary=50257 for pieces instead of bytes
         python train.py --config=babilong:qa1_rmt_pretrained --start_from=FOLDER     (qa1 ... qa5; rmt, armt, mag, plain)
         fine-tunes a pretrained decoder with a memory, in its own tokens: RMT's published recipe is GPT-2 with this
    then python eval.py --workdir=runs/babilong --suite=babilong for whole written answers at 1, 2, 4, ... times the length
Hardware, time: a GPU; on 2 CPU cores hours (not measured yet)
Expected: not measured yet. Published (GPT-2 of 137M parameters, fine-tuned) at 4k, 32k and 128k tokens: qa1 RMT 100, 99, 94, ARMT
    100 throughout; qa2 RMT 98, 82, 39

Stages hold one, two, three, five and eight segments of 256 bytes (of a pretrained decoder: 512 tokens), and every stage but the
first mixes the lengths before, as published: a memory that has always seen the same number of segments does not read others. The
first stage has facts alone.
Neighbours: armt, needles, ruler, retrofit.
"""

from __future__ import annotations

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.babilong import BabilongConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import retrofit_model, small_model

SEGMENT, TOKENS, PARTS = 256, 512, (1, 2, 3, 5, 8)
MODELS = ("rmt", "armt", "mag", "transformer_xl", "mamba")
PRETRAINED = ("rmt", "armt", "mag", "plain")
PRESETS = (*(f"qa{n}_{model}" for n in range(1, 6) for model in MODELS),
           *(f"qa{n}_{model}_pretrained" for n in range(1, 6) for model in PRETRAINED))


def lengths(parts: int, segment: int) -> tuple[int, ...]:
    """Lengths of the rows of a stage with up to this many segments."""
    return tuple(segment * n for n in PARTS if n <= parts)


def stages(segment: int) -> tuple[str, ...]:
    """What differs in each stage but the last."""
    first = f"data.task.alone=true data.sequence={segment} data.lengths=()"
    return (first, *(f"data.sequence={segment * n} data.lengths={','.join(map(str, lengths(n, segment)))}" for n in PARTS[1:-1]))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, memory = preset.removesuffix("_pretrained").partition("_")
    pretrained = preset.endswith("_pretrained")
    segment = TOKENS if pretrained else SEGMENT
    model = retrofit_model(memory, segment) if pretrained else small_model(memory, 256, tokens=segment, width=256, layers=4)
    batch = dict(batch=64, microbatches=8) if pretrained else dict(batch=32)
    rates = ("gate_=20",) if pretrained and memory == "mag" else ()
    return Experiment(
        model=model,
        data=TaskConfig(BabilongConfig((task,)), sequence=segment * PARTS[-1], lengths=lengths(PARTS[-1], segment),
                        eval_samples=1000),
        optimizer=OptimizerConfig(learning_rate=5e-5 if pretrained else 1e-3, steps=5000, warmup_steps=200, weight_decay=0.01,
                                  final_fraction=0.05, rates=rates),
        training=TrainingConfig(**batch, call_tokens=segment, log_every=20, eval_every=250, checkpoint_every=250, stop_at=0.995,
                                curriculum=stages(segment), retrofit=pretrained),
        evaluation=EvaluationConfig(batch=32, batches=8, lengths=(1, 2, 4, 8)),
    )
