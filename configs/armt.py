"""Associative Recurrent Memory Transformer (ARMT): remember one pair in each segment, then answer for one key.

Paper: Associative Recurrent Memory Transformer, section 4.1, https://arxiv.org/abs/2407.04841
Command: python train.py --config=armt:remember, then python eval.py --workdir=runs/armt-remember for more pairs than trained
Hardware, time: 2 CPU cores, 3 to 4 minutes for remember; rewrite 10 minutes on one busy core
Expected (one seed): remember 100 % of the held-out targets after 1,500 updates, also with 11 pairs; rewrite 98.9 % after 3,000
    (97.9 % of the values)
Paper's results: figures only
Neighbour: rmt.

"remember": keys are distinct. "rewrite": keys repeat and the last value counts. The _rmt presets are RMT of the same width, depth,
training and number of memory tokens. Accuracy counts the value and the point after it: a model without memory that knows the point
has 0.531, and 1 - 2 (1 - accuracy) is the share of right values.
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.associative import AssociativeConfig as Task
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig

PAIRS, UNIT = 5, 4  # one symbol of key, one of value, two signs
PRESETS = ("remember", "rewrite", "remember_rmt", "rewrite_rmt")


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    rule, _, kind = preset.partition("_")
    steps = 1500 if rule == "remember" else 3000
    layer = SegmentConfig() if kind else ArmtLayerConfig(ArmtConfig(key_dim=16))
    inside = LanguageModelConfig(vocabulary=19, width=64, layers=2, head_dim=16, segment=UNIT, pattern=(layer,),
                                 style=replace(GPT2, scale_embedding=True))
    model = RmtConfig(inside, tokens=4, form="causal" if kind else "suffix")
    return Experiment(
        model=model,
        data=TaskConfig(Task(rule=rule), sequence=(PAIRS + 1) * UNIT, eval_samples=512),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=steps, warmup_steps=100, weight_decay=0.001, final_fraction=0.05),
        training=TrainingConfig(batch=64, call_tokens=UNIT, log_every=20, eval_every=500),
        # The next lengths hold 11 pairs (and, for "rewrite", 23: there are only 16 keys to tell apart in "remember").
        evaluation=EvaluationConfig(batch=128, lengths=(1, 2) if rule == "remember" else (1, 2, 4, 10)),
    )
