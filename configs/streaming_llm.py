"""StreamingLLM as a byte-level language model: a window and the first tokens of the stream, in constant memory for ever.

Paper: Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453
Command: python train.py --config=streaming_llm            (4 sinks beside a window of 60: 64 slots)
         python train.py --config=streaming_llm:token      (one learned sink token, a prefix, as in section 3.3 of the paper)
         python train.py --config=streaming_llm:logit      (a learned logit per head in the softmax's sum, as in gpt-oss)
         python train.py --config=streaming_llm:gated      (a sigmoid gate on each head's output)
    then python eval.py --workdir=runs/streaming_llm --config.model.pattern.0.sinks=0 for the same weights without their sinks
Hardware, time: 2 CPU cores, minutes (each preset)
Expected (one seed, 65,536 held-out bytes): pinned 2.282 bits per byte, 2.278 without its sinks; token 2.270, logit 2.272, gated
    2.287; sinks do not form in models this small, so none is missed

A stream may last for ever, but nothing older than the window is remembered. The paper counts a window without the query itself: its
"4+1020" is sinks=4, window=1021 here. Trained with the sinks in place, unlike the paper's models, which were trained on whole
contexts and got them afterwards.
Neighbours: transformer (the window alone), titans_mag (a neural memory beside it).
"""

from __future__ import annotations

from dataclasses import replace

from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.style import TITANS
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import laptop_text

# Pinned tokens, learned tokens, and the style's sink and gate.
VARIANTS = {"pinned": (4, 0, {}), "token": (0, 1, {}), "logit": (0, 0, {"sink": "logit"}), "gated": (0, 0, {"gate": "elementwise"})}
PRESETS = tuple(VARIANTS)
SLOTS = 64


def config(preset: str) -> Experiment:
    """The experiment of one preset; all keep 64 keys a layer."""
    sinks, prefix, style = VARIANTS[preset]
    layer = WindowConfig(SLOTS - sinks - prefix, sinks)
    return laptop_text(LanguageModelConfig(width=128, layers=2, pattern=(layer,), head_dim=32, prefix=prefix,
                                           style=replace(TITANS, **style)))
