"""Seeds tell the parts of a task's samples apart: training, test and validation have ranges that never meet.

    0 .. 2^126 - 1               training: seed of the run * 2^63 + number of the batch, or the number of a row of a fixed set
    2^126 + i                    "test", sample i
    2^126 + 2^64 + i             "valid", sample i
"""

from __future__ import annotations

STEPS, HELD_OUT, BETWEEN = 2**63, 2**126, 2**64
SPLITS = {"test": HELD_OUT, "valid": HELD_OUT + BETWEEN}


def split_of(seed: int) -> str:
    """"train", "test" or "valid"."""
    if seed < HELD_OUT:
        return "train"
    return "test" if seed < HELD_OUT + BETWEEN else "valid"
