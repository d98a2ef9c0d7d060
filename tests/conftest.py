"""Set up JAX for the suite before anything uses a device: eight CPU devices, strict shapes, one compilation cache."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax
import pytest
from absl import flags

# Compile fast rather than run fast: the suite spends its time in the compiler (docs/log.md, 2026-11-28). XLA reads this when the
# first device is asked for, and stops at a flag that it does not know; processes that tests start inherit it.
FAST_COMPILER = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):
    FAST_COMPILER.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_COMPILER])

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()


def pytest_addoption(parser):
    parser.addoption("--run_slow", action="store_true", default=False, help="also run the tests marked slow")
    parser.addoption("--run_exhaustive", action="store_true", default=False, help="also run the tests marked exhaustive")


def pytest_configure(config):
    cache = config.cache.mkdir("jax_compilation") if hasattr(config, "cache") else None
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)  # for commands that tests run, in this process and in others
        # Small programs too: every file compiles hundreds of them anew, after `_forget_programs`.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Let go of a file's compiled programs: those of the whole suite do not fit into memory."""
    yield
    jax.clear_caches()


def _missing(*modules: str) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return ", ".join(absent)


def _mark_listed(items, marker: str) -> None:
    """Give this marker to the tests that `MARKER_tests.txt` lists."""
    lines = Path(__file__).with_name(f"{marker}_tests.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid.rpartition("/")[2] in listed:
            item.add_marker(getattr(pytest.mark, marker))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Skip what this machine cannot run, and say why."""
    _mark_listed(items, "slow")
    _mark_listed(items, "exhaustive")
    reasons = {}
    if not config.getoption("--run_exhaustive"):
        reasons["exhaustive"] = "the longest variants; run with --run_exhaustive"
    if not config.getoption("--run_slow"):
        reasons["slow"] = "takes minutes; run with --run_slow"
    if (absent := _missing("torch", "titans_pytorch")) and not os.environ.get("MEMTOK_PEER_PYTHON"):
        reasons["peer"] = f"compares with another implementation; not installed: {absent}; or set MEMTOK_PEER_PYTHON"
    if absent := _missing("libtpu"):
        reasons["tpu_backend"] = f"compiles for a TPU; not installed: {absent} (pip install 'jax[tpu]')"
    if not os.environ.get("MEMTOK_DATA_DIR"):
        reasons["realdata"] = "real data not found: MEMTOK_DATA_DIR is not set"
    elif not os.path.isdir(os.environ["MEMTOK_DATA_DIR"]):
        reasons["realdata"] = f"real data not found: {os.environ['MEMTOK_DATA_DIR']}; set MEMTOK_DATA_DIR to its folder"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
