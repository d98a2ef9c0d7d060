"""Options for XLA are given only to a compiler that knows them, and change rounding at most."""

from __future__ import annotations

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


def test_sums_stay_the_same():
    x = np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32)
    total = jax.jit(lambda x: x.sum(0), compiler_options=compiler.options("cpu"))(x)
    np.testing.assert_allclose(total, x.astype(np.float64).sum(0), atol=1e-4)
