"""Imports point one way (docs/architecture.md), and the core needs nothing but its few dependencies."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "memtok_jax"

# Commands of `python -m`: they may import everything, and nothing imports them.
COMMANDS = {"memtok_jax.analysis.registers": "analysis/registers.py", "memtok_jax.data.prepare": "data/prepare.py",
            "memtok_jax.convert.__main__": "convert/__main__.py"}

# Lower may not import higher. Folders and files of one level may import each other.
LEVELS = {"config": 0, "params": 0, "sharding": 0, "products": 0, "numerics": 0, "compiler": 0, "checks": 0, "memory": 1,
          "models": 2, "flax_modules": 2, "inference": 3, "virtual_context": 3.5, "analysis": 3, "convert": 3, "training": 4,
          "evaluation": 4}


def part_of(module: str) -> str:
    """The folder or file of the package that a module belongs to: "memtok_jax.models.block" -> "models"."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert not imported(path) & set(COMMANDS), f"{path} imports a command"
    if path.relative_to(PACKAGE).as_posix() in COMMANDS.values():
        return
    for name in imported(path):
        if not name.startswith("memtok_jax."):
            continue
        other = part_of(name)
        if own == "data":
            assert other in ("data", "config"), f"{path} imports {name}: data uses nothing of the package but config"
        elif other != "data":
            assert own in LEVELS and other in LEVELS, f"{own} or {other} has no level: add it to LEVELS"
            assert LEVELS[other] <= LEVELS[own], f"{path} imports {name}: an arrow upward"
        else:
            assert LEVELS[own] >= 3, f"{path} imports {name}: memories and models do not know the data"


def test_entry_points_are_short():
    for name in ("train.py", "eval.py", "stream.py", "chat.py"):
        assert len((ROOT / name).read_text().splitlines()) < 60


OPTIONAL = ("PIL", "tensorflow", "tensorflow_datasets", "grain", "matplotlib", "tensorboardX", "chex", "torch",
            "tokenizers", "sentencepiece", "array_record", "pyarrow", "zstandard")


def test_a_run_needs_only_the_core(tmp_path):
    """With every optional package blocked, the package imports and a task trains."""
    script = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import importlib, pkgutil, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in {OPTIONAL!r} else find(name, *a)
import memtok_jax
for module in pkgutil.walk_packages(memtok_jax.__path__, "memtok_jax."):
    importlib.import_module(module.name)
import toy_run
from pathlib import Path
from memtok_jax.training.run import train
exp = toy_run.experiment("task:recall", "data.task.pairs=2", "optimizer.steps=2", "training.eval_every=0")
sys.exit(train(exp, Path({str(tmp_path / "run")!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "no figure is drawn" in done.stdout
