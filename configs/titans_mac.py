"""Titans, memory as a context (MAC), as a byte-level language model.

Paper: Titans: Learning to Memorize at Test Time. Two versions: arXiv v1, section 4.1, https://arxiv.org/abs/2501.00663, and
    NeurIPS 2025, section 3. Numbers of equations here and in the code are those of v1.
Command: python train.py --config=titans_mac
Hardware, time: 2 CPU cores, minutes (the preset "laptop")
Expected: about 2.29 bits per byte on the first 65,543 held-out bytes of Python 3.11 (xz -9: 2.67, order-3 counts: 2.45), see
    docs/results

The presets 170m, 340m, 400m, 760m and 1.3b have the recipe of the NeurIPS version, see `memtok_jax/training/recipes.py`: blocks,
widths, heads and peak learning rates of table 5, chunk 16, segment 512, 128 persistent and 256 retrieved tokens, gates for each
layer of the memory, forgetting by channel. v1 gives none of these and has scalar gates. Where the paper contradicts itself:
    learning rate   table 5 has a peak for each size (used here); section 4.1 and appendix E.1 say 4e-4 for all, as v1 does
    sizes           "four scales", but five are named; 400M has no row in table 5 (here: the width of 340M, 28 blocks)
    head width      table 5 gives 16 heads, 8 at 1.3B: 48, 64, 96, 256 wide. That is used in attention. It is not said whether the
                    memory has heads; here they are 64 wide at every size
    inner loss      with and without a factor 1/2 (v1: equations 12 and 32; NeurIPS: section 2 and appendix F); it rescales the step
    names           the number of parameters depends on the architecture, see below; no count of the paper's own is known
Parameters of MAC: 170m 147M, 340m 461M, 400m 532M, 760m 992M, 1.3b 1,313M, with the vocabulary of 32,000.

The paper's data (FineWeb-Edu in Llama-2 tokens) does not come with this package. The presets keep the paper's vocabulary. They
read bytes of what --data names; for tokens give --config.data.tokenizer=FILE, or --data=shards:FOLDER of a prepared corpus
(docs/tpu_pod.md).
    python train.py --config=titans_mac:340m --compile_only=v5e:16x16
Neighbours: titans_mag, titans_mal, titans_lmm, transformer.
"""

from __future__ import annotations

from memtok_jax.training.experiment import Experiment
from memtok_jax.training.recipes import TITANS_SIZES, titans_text

PRESETS = ("laptop", *TITANS_SIZES)


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    return titans_text("mac", preset)
