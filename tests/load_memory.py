"""What reading a folder onto a mesh takes beside its result; a process by itself, because peaks cannot be reset.

    python tests/load_memory.py FOLDER data,fsdp,tensor      (XLA_FLAGS=--xla_force_host_platform_device_count=8)

Prints JSON, in bytes: result, all parameters, once (devices of a CPU that hold the same part share it); largest, the largest part
of one device; peak, the largest anonymous memory of the process on the way, less what it was before.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import jax

from memtok_jax.convert import decoders
from memtok_jax.sharding import make_mesh


def anonymous() -> int:
    """Bytes of memory that is not mapped from files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main(folder: str, axes: str) -> None:
    mesh = make_mesh(*map(int, axes.split(",")))
    jax.block_until_ready(jax.device_put(0.0, jax.devices()[-1]))
    before, peak, over = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loaded = decoders.load_onto(mesh, folder, keep=True)
    over.set()
    watcher.join()
    leaves = jax.tree.leaves(loaded.params)
    parts = [shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards]
    print(json.dumps({"result": sum(leaf.nbytes for leaf in leaves), "largest": max(parts), "peak": peak[0] - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
