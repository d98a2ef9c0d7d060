"""Recurrent Memory Transformer (RMT) on tasks that need what an earlier segment held.

Paper: Recurrent Memory Transformer, section 4.1 and figure 3, https://arxiv.org/abs/2207.06881
Command: python train.py --config=rmt:copy
Hardware, time: 2 CPU cores, minutes
Paper's results: 1.0 on reverse and copy, 0.99 on retrieval, after 250,000 updates and more of other models
Expected here (three seeds): copy 1.0 after 300 to 500 updates, reverse 0.997 to 1.0 after 700 to 1,200 of 12 symbols over two
    segments and 500 to 900 more of 24 over four, retrieval 0.996 to 1.0 after five stages of 50 to 1,550 updates; minutes each.
    Equations (one seed): 2,000 updates in an hour on one core; the last stage right in 99.6 % of the samples when those before are
    shown (without memory 16 %), in 18 % when the model writes them: it carries the roots, but has not learnt to multiply and divide
Neighbours: armt.

                                                               a reader of its own segment
    copy       24 symbols twice, three segments of 24          0.143 (one symbol of 48 stands in the segment that asks for it)
    reverse    24 symbols backwards, four segments of 12       0.125
    retrieval  four pairs, one question, segments 4 + 4 + 2    0.1
    equations  quadratic equations solved in six stages of 30  none stated: a table of the place and the last two characters is
               right in 0.81 of the targets, more than half of which are filler; eval.py also prints the share of right last stages
               ("answers")

Positions are relative (but for retrieval), in two heads (equations: four): see `GPT2_RELATIVE` in memtok_jax/models/style.py. A
run ends when 99.7 % of the held-out symbols are right (equations: 99.95 %, retrieval: 99.5 %). The gradient flows through all
segments: cut between them (--config.training.gradient=every:1), no task can be learnt. Reverse begins with rows of half the
length (training.curriculum): what the first segment wrote must pass through the second one unread, which is seldom learnt at
once. Retrieval begins with two pairs whose keys ascend, then in any order, then three pairs, then four: to keep a binding and to
ask for it are no use without each other, and ascending keys let the second be learnt first. Its positions are learned, its
embeddings small.

Beside each task: _none, the same decoder without memory; _prefix, with memory tokens in front that are never written (Memory
Transformer); _paper, with the paper's mask; _cached, with a cache of one segment beside the memory.
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks import settings_named
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2, GPT2_RELATIVE
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

# vocabulary, tokens of a row, tokens of a segment, memory tokens
TASKS = {"copy": (10, 72, 24, 24), "reverse": (10, 48, 12, 24), "retrieval": (37, 12, 4, 4), "equations": (24, 180, 30, 30)}
# Other fields of the model. Retrieval compares keys: embeddings smaller than what the layers add to them, an output of its own.
MODELS = {"equations": dict(width=128, layers=3, hidden=256), "retrieval": dict(style=replace(GPT2, embedding="matrix"))}
KINDS = ("none", "prefix", "paper", "cached")
PRESETS = (*TASKS, *(f"{task}_{kind}" for task in TASKS for kind in KINDS))


def pairs(number: int, more: str = "") -> str:
    """A stage of retrieval: this many pairs, and as many questions."""
    return (f"data.task.pairs={number} data.task.questions={number} data.sequence={4 * number} training.stop_at=0.98 "
            f"optimizer.learning_rate=0.003 {more}").strip()


# What comes first. Retrieval: keys in ascending order tell where their pairs stand, so what is written can be asked for.
CURRICULUM = {"reverse": ("data.sequence=24",),
              "retrieval": (pairs(2, "data.task.ordered=true"), pairs(2), pairs(3), pairs(4, "optimizer.steps=2000"))}
# What another task leaves as it is: batch, learning rate, updates (of a stage), evaluation, the goal that ends a run.
TRAINING = {"retrieval": (256, 5e-4, 1000, 50, 0.995), "equations": (32, 2e-3, 2000, 100, 0.9995)}


def kind_options(kind: str) -> dict:
    """What a preset's second word changes of the memory tokens."""
    return {"none": dict(tokens=0), "prefix": dict(form="prefix"), "paper": dict(form="paper")}.get(kind, {})


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    task, _, kind = preset.partition("_")
    vocabulary, sequence, segment, tokens = TASKS[task]
    shape = dict(vocabulary=vocabulary, width=64, layers=2, head_dim=32, segment=segment, pattern=(SegmentConfig(),),
                 style=GPT2_RELATIVE)
    cache = dict(pattern=(CachedConfig(XlConfig(segment)),), style=GPT2_RELATIVE) if kind == "cached" else {}
    inside = LanguageModelConfig(**(shape | MODELS.get(task, {}) | cache))
    # The paper's model for equations has six layers; a right answer is 30 right symbols, so that its run goes on for longer.
    batch, rate, steps, every, goal = TRAINING.get(task, (32, 2e-3, 2000, 100, 0.997))
    return Experiment(
        model=RmtConfig(inside, **(dict(tokens=tokens) | kind_options(kind))),
        data=TaskConfig(settings_named(task), sequence, eval_samples=1024),
        optimizer=OptimizerConfig(learning_rate=rate, steps=steps, warmup_steps=100, weight_decay=0.01, final_fraction=0.05),
        training=TrainingConfig(batch=batch, call_tokens=segment, log_every=20, eval_every=every, stop_at=goal,
                                curriculum=() if kind in ("none", "prefix") else CURRICULUM.get(task, ())),
        evaluation=EvaluationConfig(batch=128, lengths=(1,)),
    )
