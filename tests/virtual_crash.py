"""Kill a conversation at every step, go on, and compare with one that was not killed: python virtual_crash.py FOLDER TURNS

Each step is one occurrence of a point that a kill may come behind. A child process dies there of SIGKILL; its parent opens the
conversation again, says what was not acknowledged, and compares. The last line is {"killed": point -> number, "wrong": [...]}.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import virtual_toys as toys

from memtok_jax.virtual_context.conversation import Conversation
from memtok_jax.virtual_context.store import Store


def talk(path: Path, turns: int, at=lambda point: None) -> dict:
    """Say what has not been said yet; what the conversation is then."""
    with Conversation(path, cfg=toys.SMALL, device=toys.ToyDevice(), policy=toys.RandomPolicy(), synchronous="NORMAL", save_every=6,
                      at=at) as conversation:
        rows = conversation.store.messages(conversation.conv)
        for number in range(sum(row.role == "user" for row in rows), turns):
            conversation.say(toys.says(number), t_us=toys.START + number)
        rows = [(row.id, row.role, row.tokens.hex()) for row in conversation.store.messages(conversation.conv)]
        passages = conversation.store.connection.execute("SELECT id, text FROM passages").fetchall()
        blocks = conversation.store.connection.execute("SELECT * FROM working_blocks").fetchall()
        events = [json.dumps(event) for event in conversation.store.events(conversation.conv)]
        logits = conversation.device.logits(conversation.main.context).tobytes().hex()
        return {"rows": rows, "passages": passages, "blocks": blocks, "events": events, "logits": logits}


def killed_at(path: Path, turns: int, step: int) -> str:
    """The point at which a child was killed at its step-th step, "" if it came to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]

        def at(point: str) -> None:
            count[0] += 1
            if count[0] == step:
                os.write(writer, point.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        talk(path, turns, at)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        point = pipe.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"the child failed at step {step}")
    return point


def main(folder: Path, turns: int) -> None:
    """All steps."""
    Store(folder / "empty.db").close()
    wanted, killed, wrong, step = talk(folder / "whole.db", turns), {}, [], 1
    while True:
        path = folder / f"step{step}.db"
        shutil.copy(folder / "empty.db", path)
        point = killed_at(path, turns, step)
        if not point:
            break
        killed[point] = killed.get(point, 0) + 1
        found = talk(path, turns)
        wrong += [[step, point, name] for name in wanted if wanted[name] != found[name]]
        for file in folder.glob(f"step{step}.db*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        step += 1
    print(json.dumps({"killed": killed, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
