"""One part of a raw corpus becomes a shard of training tokens and a shard of held-out texts."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.data import tokenizers
from memtok_jax.data.prepared_corpus import (
    RECORDS,
    SPLITS,
    array_record,
    complete,
    lengths_file,
    part_file,
    sha256,
    shard_file,
    token_type,
    write_json,
)
from memtok_jax.data.raw import Source

NO_TOKENS = "gives no tokens"
STOP = -1  # value of the shared counter that ends the processes of a pool


@dataclass(frozen=True)
class Job:
    """What all parts have in common. tokenizer: path. held_out: share of the documents that is held out. folder: of the output."""

    source: Source
    tokenizer: str
    held_out: float
    folder: str


def is_held_out(text: bytes, share: float) -> bool:
    """By the hash of the text alone: the same document is always in the same split, and so are its copies."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) < share * 2**64


class _Shard:
    """A shard that is being written, and its counts. Made with its first document."""

    def __init__(self, folder: Path, split: str, number: int, stack: contextlib.ExitStack):
        self._path, self._split, self.lengths, self.bytes = folder / shard_file(split, number), split, [], 0
        self._stack, self._writer = stack, None

    def add(self, ids: np.ndarray, text: bytes, kind: np.dtype) -> None:
        """Add a document."""
        if self._writer is None:
            hidden = self._stack.enter_context(complete(self._path))
            self._writer = array_record("array_record").ArrayRecordWriter(str(hidden), RECORDS)
            self._stack.callback(self._writer.close)
        self._writer.write(ids.astype(kind).tobytes() if self._split == "train" else text)
        self.lengths.append(len(ids))
        self.bytes += len(text)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of the complete shard."""
        return {"file": self._path.name, "documents": len(self.lengths), "tokens": sum(self.lengths), "bytes": self.bytes,
                "size": self._path.stat().st_size, "sha256": sha256(self._path)}


def write_part(job: Job, number: int, advance: Callable[[int], None]) -> int:
    """Write the shards of one part, and last the file that says so; returns `number`.

    advance: called with the bytes of each text.
    """
    tokenizer, folder = tokenizers.load(job.tokenizer), Path(job.folder)
    kind, left_out, texts = token_type(tokenizer.vocabulary), [], hashlib.sha256()
    with contextlib.ExitStack() as stack:
        shards = {split: _Shard(folder, split, number, stack) for split in SPLITS}
        for one in job.source.read(job.source.parts[number]):
            text, ids = one.text.encode(), tokenizer.encode(one.text)
            problem = one.problem or ("" if len(ids) else NO_TOKENS)
            if problem:
                left_out.append([problem, one.name])
                continue
            shards["valid" if is_held_out(text, job.held_out) else "train"].add(ids, text, kind)
            texts.update(hashlib.sha256(text).digest())
            advance(len(text))
    if lengths := shards["train"].lengths:
        with complete(folder / lengths_file(shard_file("train", number))) as hidden, hidden.open("wb") as file:
            np.save(file, np.array(lengths, np.int64))
    entries = {split: shard.entry() for split, shard in shards.items() if shard.lengths}
    write_json(folder / part_file(number), {"shards": entries, "left_out": left_out, "texts": texts.hexdigest()})
    return number


# ------------------------------------------------------------------------------------------- in processes of a pool

_pool: list[Any] = []  # job and counter of this process


def begin(job: Job, counter: Any) -> None:
    """Set up a process of the pool, which ends with its parent. counter: shared, bytes of text written by all processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _pool[:] = job, counter


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def write_in_pool(number: int) -> int:
    """`write_part` of a process that `begin` has set up."""
    job, counter = _pool

    def advance(size: int) -> None:
        with counter.get_lock():
            if counter.value == STOP:
                raise InterruptedError("the first process has ended the work")
            counter.value += size

    return write_part(job, number, advance)
