"""Peak speeds of accelerators, for rooflines: one line for each chip, as its maker states them.

Sources, read 2026-11-30: https://cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e ("key specifications", per chip). The page
of v5e has said 819 GB/s and 800 GiB/s at different times; the smaller one stands here.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """operations: a second, of matrix products in bfloat16, a multiplication and an addition being two. bandwidth: of its memory,
    bytes a second. memory: bytes."""

    operations: float
    bandwidth: float
    memory: float


CHIPS = {
    "v4": Chip(275e12, 1200e9, 32e9),
    "v5e": Chip(197e12, 819e9, 16e9),
    "v5p": Chip(459e12, 2765e9, 95e9),
    "v6e": Chip(918e12, 1638e9, 32e9),
}
