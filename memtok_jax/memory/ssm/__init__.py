"""Selective state space models as memories: a constant state that every token decays and adds to, as it chooses.

| file | memory | state of a stream |
|---|---|---|
| `mamba.py`  | Mamba, arXiv 2312.00752; with inner norms that of Jamba and Hymba | [N, E], a decay for each number |
| `mamba2.py` | Mamba-2, arXiv 2405.21060 | [H, P, N], a decay for each head |

`recurrence.py` holds what they share. Each module has the functions of a memory, and `scan_branch`: the scan without its
projections, for layers that project for several branches at once. A state is phase-free: a call may end anywhere.
"""

from __future__ import annotations

from types import ModuleType

from memtok_jax.memory.ssm import mamba, mamba2
from memtok_jax.memory.ssm.mamba import MambaConfig, MambaState
from memtok_jax.memory.ssm.mamba2 import Mamba2Config, Mamba2State

__all__ = ["MODULES", "Mamba2Config", "Mamba2State", "MambaConfig", "MambaState", "mamba", "mamba2"]

MODULES: dict[type, ModuleType] = {MambaConfig: mamba, Mamba2Config: mamba2}
