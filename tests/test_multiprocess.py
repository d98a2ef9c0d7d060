"""Two processes on one machine, joined over gloo: they train as one, and continue from one checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_run import experiment

from memtok_jax.training import metrics
from memtok_jax.training.run import train

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 150
OVERRIDES = ("training.data=2", "training.fsdp=2", "optimizer.steps=4", "training.log_every=1",
             "training.checkpoint_every=0", "training.eval_every=0", "training.keep=5", "evaluation.batch=4")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_pair(workdir: Path, source: str, *overrides: str) -> list[str]:
    """Run both processes to their end; returns what each printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    address, children = f"127.0.0.1:{free_port()}", []
    try:
        for index in (0, 1):
            command = [sys.executable, str(ROOT / "tests" / "toy_run.py"), str(workdir), source,
                       f"distributed={address},2,{index}", *overrides]
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                                             stderr=subprocess.STDOUT, text=True))
        outs = [child.communicate(timeout=TIME_LIMIT)[0] for child in children]
        assert [child.returncode for child in children] == [0, 0], "\n".join(outs)
        return outs
    finally:
        for child in children:
            child.kill()


@pytest.mark.multiprocess
def test_two_processes_train_and_restore_as_one(tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("to be or not to be " * 400)
    first = run_pair(tmp_path / "two", str(text), *OVERRIDES)
    assert "2 process(es)" in first[0] and "held out" in first[0]
    assert "held out" not in first[1] and "step" not in first[1], "only the first process prints"
    longer = (*OVERRIDES, "optimizer.steps=6")
    second = run_pair(tmp_path / "two", str(text), *longer)
    assert "continuing after step 4" in second[0]
    # The same two runs in this process, on a mesh of the same shape.
    for overrides in (OVERRIDES, longer):
        train(experiment(str(text), *overrides), tmp_path / "one")
    for name in ("train/loss", "train/gradient_norm", "eval/bits_per_byte"):
        two, one = (metrics.column(metrics.read(tmp_path / folder), name) for folder in ("two", "one"))
        assert two[0] == one[0], "each number is written once"
        np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
