"""Options for XLA are given only to a compiler that knows them, and change rounding at most; programs are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from memtok_jax import compiler


@pytest.fixture(autouse=True)
def forgotten():
    """Each test asks the compiler anew."""
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


def test_other_platforms_get_none():
    assert compiler.options("tpu") == compiler.options("gpu") == {}


def test_a_compiler_that_does_not_know_an_option_gets_none(monkeypatch):
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert compiler.options("cpu") == {}


SECOND_START = """
import sys
from pathlib import Path
import jax
from memtok_jax.compiler import keep_programs
keep_programs(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
print(len(hits))
"""


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = str(Path(compiler.__file__).parents[1])

    def start(**more: str) -> int:
        command = [sys.executable, "-c", SECOND_START, str(tmp_path)]
        return int(subprocess.run(command, env=environment | more, check=True, capture_output=True, text=True).stdout)

    assert start() == 0
    assert any((tmp_path / compiler.PROGRAMS).iterdir())
    assert start() > 0
    assert start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == 0, "a folder of the user's choice goes first"


def test_sums_stay_the_same():
    x = np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32)
    total = jax.jit(lambda x: x.sum(0), compiler_options=compiler.options("cpu"))(x)
    np.testing.assert_allclose(total, x.astype(np.float64).sum(0), atol=1e-4)
