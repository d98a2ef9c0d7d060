"""What the stores of a conversation cost, and whether a very long one stays small; parts of `benchmarks.virtual_context`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from memtok_jax.virtual_context import grammar
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Conversation
from memtok_jax.virtual_context.device import Device
from memtok_jax.virtual_context.policies import Policy, ScriptedPolicy

START = 1_800_000_000_000_000
BATCH = 50_000   # rows of one transaction


def opened(folder: str, policy: Policy | None = None, cfg: ContextConfig | None = None,
           device: Device | None = None) -> Conversation:
    """A new conversation, without snapshots."""
    return Conversation(Path(folder) / "talk.db", cfg=cfg, policy=policy, device=device, synchronous="NORMAL", save_every=0)


def percentiles(seconds: list[float]) -> dict:
    """Milliseconds."""
    return {f"p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 3) for share in (50, 99)}


def timed(function, times: int) -> dict:
    """Percentiles of the seconds of a function of a number."""
    seconds = []
    for number in range(times):
        begun = time.perf_counter()
        function(number)
        seconds.append(time.perf_counter() - begun)
    return percentiles(seconds)


def systems(rows: int, queries: int, vectors: bool, seed: int) -> dict:
    """Search in recall storage of this many messages, one page, and the whole of a page-in: search, text, event, fifo."""
    rng = np.random.default_rng(seed)
    letters, lengths = rng.choice(list("abcdefghijklmnop"), (20_000, 8)), rng.integers(3, 9, 20_000)
    words = np.array(["".join(row[:n]) for row, n in zip(letters, lengths, strict=True)])
    weight = 1 / np.arange(1, len(words) + 1)
    weight /= weight.sum()
    with tempfile.TemporaryDirectory() as folder, opened(folder) as talk:
        begun = time.perf_counter()
        for first in range(0, rows, BATCH):
            with talk.store.transaction():
                for drawn in words[rng.choice(len(words), (min(BATCH, rows - first), 16), p=weight)]:
                    text = " ".join(drawn)
                    talk.store.add_message(talk.conv, "user", START, text, text.encode(), len(text) + 2)
        out: dict = {"rows": rows, "insert_s": round(time.perf_counter() - begun, 1),
                     "file_MB": file_mb(talk)}
        asked = rng.choice(words, (queries, 2), p=weight)
        if vectors:
            begun = time.perf_counter()
            talk.vectors.nearest("messages", "warm up", 1, rows)
            out["embed_all_s"] = round(time.perf_counter() - begun, 1)
        for mode in ("text", "words", "vector", "hybrid") if vectors else ("text", "words"):
            out[f"search_{mode}"] = timed(lambda n, mode=mode: next(talk.search(" ".join(asked[n]), mode)), queries)
        talk.policy = ScriptedPolicy(lambda view: [grammar.search("recall_search", "words", view.event.text, heartbeat=False)])
        out["turn_with_page_in"] = timed(lambda n: talk.say(" ".join(asked[n])), queries)
    return out


def soak(turns: int) -> dict:
    """Turns of a short message and a short reply with a toy model: memory of each tenth, programs compiled behind the first."""
    from memtok_jax.inference.compiles import compile_count
    policy = ScriptedPolicy(lambda view: [grammar.send("I see " + view.event.text)])
    with tempfile.TemporaryDirectory() as folder, opened(folder, policy, device=toy_device()) as talk:
        tenth, over, resident, compiled = max(1, turns // 10), 0, [], 0
        sizes: list[float] = []
        begun = time.perf_counter()
        for turn in range(1, turns + 1):
            talk.say(f"message {turn}", t_us=START + turn)
            over += talk.budget().total > talk.cfg.budget
            sizes.append(resident_mb() if turn % max(1, tenth // 100) == 0 else np.nan)
            if turn % tenth == 0:
                resident.append(round(float(np.nanmean(sizes)), 1))
                sizes = []
            if turn == tenth:
                compiled = compile_count()
        seconds = time.perf_counter() - begun
        return {"turns": turns, "turns_per_s": round(turns / seconds, 1), "over_budget": over, "resident_MB_by_tenth": resident,
                "compiled_behind_the_first_tenth": compile_count() - compiled, "flushes": talk.state.flushes,
                "evicted_tokens": talk.state.evicted, "file_MB": file_mb(talk)}


def file_mb(talk: Conversation) -> float:
    """Size of the database in mebibytes, with all that was written."""
    talk.store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return round(talk.store.path.stat().st_size / 2**20, 2)


def resident_mb() -> float:
    """Memory of this process in mebibytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def toy_device() -> Device:
    """A small RMT with random parameters: its memory tokens are the summary."""
    import jax

    from memtok_jax.models.language_model import LanguageModelConfig
    from memtok_jax.models.mixers.segment import SegmentConfig
    from memtok_jax.models.protocol import bind
    from memtok_jax.models.rmt import RmtConfig
    from memtok_jax.models.style import GPT2_RELATIVE
    from memtok_jax.virtual_context.session_device import SessionDevice
    inside = LanguageModelConfig(width=16, layers=1, head_dim=8, hidden=16, segment=64, pattern=(SegmentConfig(),),
                                 style=GPT2_RELATIVE)
    model = bind(RmtConfig(inside, tokens=2))
    return SessionDevice(model, model.init(jax.random.key(0)), blocks=(16, 64))
