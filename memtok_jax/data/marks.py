"""Control tokens of conversations (`memtok_jax/virtual_context/codec.py`): bytes that no UTF-8 text contains. And letters of calls.

They stand here so that a task can write what a conversation writes; data uses nothing of the package but config.
"""

from __future__ import annotations

SYSTEM, USER, ASSISTANT, RESULT, END, CALL, CALL_END, STR, STR_END, HEARTBEAT, WORKING = (0xC0, 0xC1, *range(0xF5, 0xFE))
SEND, ARCHIVAL_SEARCH, TEXT = "s", "q", "t"
