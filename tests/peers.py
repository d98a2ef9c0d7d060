"""Run an exporter of `tests/peers_export` with the Python that has the other implementation."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

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
