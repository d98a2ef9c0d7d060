"""Run an exporter of `tests/peers_export` with the Python that has the other implementation."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def export(module: str, path: Path, *options: str, variable: str, imports: tuple[str, ...], needs: str) -> None:
    """Write a case of the peer to `path`, or skip with a line that says how to name a Python that can.

    module: a file of `tests/peers_export`. variable: of the environment, naming that Python; if it is not set, this one must have
        all `imports`.
    """
    python = os.environ.get(variable, "")
    if not python and not all(importlib.util.find_spec(name) for name in imports):
        pytest.skip(f"needs {needs} here, or {variable}=<a Python that has them>")
    command = [python or sys.executable, f"tests/peers_export/{module}.py", f"--output={path}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def part(stored, name: str, kind: str) -> dict:
    """Arrays `NAME/KIND/...` of a stored case, by the rest of their names."""
    front = f"{name}/{kind}/"
    return {key.removeprefix(front): stored[key] for key in stored.files if key.startswith(front)}


def assert_close_to_peer(got, want) -> None:
    """Trees that agree to 1e-11 of each largest number, float64."""

    def close(where, a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max(initial=0), err_msg=jax.tree_util.keystr(where))

    jax.tree_util.tree_map_with_path(close, got, want)
