"""Two processes on one machine, joined over gloo: they train as one, and continue from one checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys
from toy_run import experiment

from memtok_jax import data
from memtok_jax.data import shards
from memtok_jax.data.prepare import PrepareConfig, prepare
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus in several shards, of documents longer and shorter than a piece."""
    for package in ("array_record", "grain"):
        pytest.importorskip(package, reason=f"needs {package} (pip install 'memtok_jax[corpora]')")
    root = tmp_path_factory.mktemp("corpus")
    texts = [f"text {n}: the memory of a model " + "reads tokens " * (n * 7 % 11) for n in range(60)]
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = PrepareConfig(str(root / "a.jsonl"), tokenizer_toys.bpe(root / "tokenizer.json"), str(root / "out"), held_out=0.2,
                        processes=1, part_bytes=2000)
    prepare(cfg, lambda line: None)
    return root / "out"


PACKED = ("model.vocabulary=320", "data.piece=8", "data.eval_bytes=400")


def test_a_process_reads_the_documents_of_its_own_rows_alone(corpus, monkeypatch):
    """Of four rows the first two read other documents than the last two, and together they read those of one process."""
    cfg, read = experiment(f"shards:{corpus}", *PACKED).data, []
    real = shards._Documents._read_one
    monkeypatch.setattr(shards._Documents, "_read_one", lambda self, index: read.append(index) or real(self, index))

    def reads(index: int, count: int) -> set[int]:
        read.clear()
        source = data.open_train(cfg, 4, index, count)
        for _ in range(3):
            next(source)
        source.close()
        return set(read)

    whole, first, second = reads(0, 1), reads(0, 2), reads(1, 2)
    assert first | second == whole and len(first & second) <= 1 < min(len(first), len(second)), "one may lie across the middle"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_processes_train_on_shards_as_one(corpus, tmp_path):
    """Documents packed into rows: the same numbers in the same order, also after going on from a checkpoint."""
    source, overrides = f"shards:{corpus}", (*OVERRIDES, *PACKED)
    longer = (*overrides, "optimizer.steps=6")
    for changes in (overrides, longer):
        outs = run_pair(tmp_path / "two", source, *changes)
        train(experiment(source, *changes), tmp_path / "one")
    assert "continuing after step 4" in outs[0]
    for name in ("train/loss", "train/gradient_norm", "train/tokens_seen", "eval/bits_per_byte", "data/empty_share"):
        two, one = (metrics.column(metrics.read(tmp_path / folder), name) for folder in ("two", "one"))
        assert two[0] == one[0] != []
        np.testing.assert_allclose(two[1], one[1], rtol=1e-5)
