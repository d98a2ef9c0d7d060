"""A memory for a model that is trained already: at the first step it computes what it did before, then it learns to use it.

Papers: Titans (https://arxiv.org/abs/2501.00663), ARMT (2407.04841), RMT (2207.06881), Transformer-XL (1901.02860), StreamingLLM
(2309.17453), LoRA (2106.09685)
Command: python train.py --config=retrofit:mag --start_from=FOLDER          FOLDER: a pretrained model, or a run of train.py
         python train.py --config=retrofit:mag_memory --start_from=FOLDER   only the memory and its gates learn
         python train.py --config=retrofit:rmt_lora --start_from=FOLDER     memory tokens, and low-rank changes of attention
Hardware, time: those of the base
Expected: the loss of step 1 is the base's; whether a memory helps later must be measured against the base trained on as long
    without it, and against the same model whose memory forgets at every segment

mag: a neural memory beside attention, through a gate that starts at 0 (`mixers/beside.py`). armt: a matrix in each layer, whose
values start at 0; attention stays inside the segment. xl: attention sees the layer's inputs of the segment before. sinks: a window
with four first tokens, nothing to learn. rmt: memory tokens around each segment, as large as the base's word embeddings; only
without them (--config.model.tokens=0) are the first logits the base's, because every token sees them. plain: no memory, the arm to
compare with. Not exact for any initial value, so not here: MAG's product.

What learns: everything (mag, armt, rmt, plain; gates twenty times as fast), the memory alone (_memory), or the memory and low-rank
changes of attention's projections, ten times as fast as the rest would (_lora; `models/lora.py`).
Which layers: --config.training.retrofit_layers=upper, every:4 or 8,12,-1; without, all.
"""

from __future__ import annotations

from memtok_jax.data.text import TextConfig
from memtok_jax.models.lora import LoraConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import RETROFITS, retrofit_model

PRESETS = (*RETROFITS, *(f"{name}_lora" for name in RETROFITS), "mag_memory", "armt_memory", "rmt_memory")
SEGMENT = 256
# Parts of parameters' paths -> factors of the learning rate. A gate has a long way to go, and no weight decay.
GATES = ("gate_=20",)
MEMORY = {"mag": ("['beside']['1']=1", *GATES), "armt": ("['memory']=1",), "rmt": ("['memory']['tokens']=1",)}
FACTORS = ("['lora']=10",)


def config(preset: str) -> Experiment:
    """The experiment of one preset; `--start_from` puts its memory into another model's layers."""
    name, _, learns = preset.partition("_")
    model, rates = retrofit_model(name, SEGMENT), GATES if name == "mag" else ()
    if learns:
        rates = ("=0", *MEMORY.get(name, ()), *(FACTORS if learns == "lora" else ()))
    if learns == "lora":
        attention = "0." if name == "mag" else ""  # a neural memory has projections of the same names
        model = LoraConfig(model, rank=8, alpha=16.0, targets=tuple(attention + part for part in "qkvo"))
    return Experiment(
        model=model,
        data=TextConfig(source="stdlib", sequence=4 * SEGMENT, eval_bytes=65_536),
        optimizer=OptimizerConfig(learning_rate=3e-5, steps=1000, warmup_steps=100, rates=rates),
        training=TrainingConfig(batch=4, call_tokens=SEGMENT, log_every=20, eval_every=250, checkpoint_every=250, retrofit=True),
        evaluation=EvaluationConfig(batch=4))
