"""Some things are written once in the package: a second copy fails here, and the message says where the first one stands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "memtok_jax"

# What is called -> the files that may call it.
ONCE = {
    "jax.nn.softmax": {"models/attend.py"},
    "jax.nn.log_softmax": {"models/adaptive.py", "training/losses.py"},
    "jax.nn.logsumexp": {"numerics.py"},
    # Over layers in stack.py and repeated.py, over diagonals of layers in wavefront.py, over the segments of a call in the others.
    "jax.lax.scan": {"models/stack.py", "models/mixers/repeated.py", "models/wavefront.py", "models/borders.py", "models/rmt.py",
                     "models/vision/vit.py"},
    "jax.nn.gelu": {"models/layers.py"}, "jax.nn.relu": {"models/layers.py"},
    # The other silu is a gate of an output, not a hidden layer.
    "jax.nn.silu": {"models/layers.py", "models/mixers/lmm.py"},
}
# Memories have networks and loops over tokens of their own; training, evaluation and inference loop over calls.
ELSEWHERE = {"jax.lax.scan": ("memory", "training", "evaluation", "inference"), "jax.nn.gelu": ("memory",),
             "jax.nn.relu": ("memory",), "jax.nn.silu": ("memory",)}


def named(node: ast.AST) -> str:
    """The dotted name of an expression, "" if it has none."""
    if isinstance(node, ast.Name):
        return node.id
    inner = named(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def uses(source: str) -> set[str]:
    """Dotted names in a file; those of `from x import y` in full."""
    tree = ast.parse(source)
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    return imported | {named(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def files() -> dict[str, str]:
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", ONCE)
def test_written_once(name):
    found = {file for file, source in files().items() if name in uses(source) and not file.startswith(ELSEWHERE.get(name, ("//",)))}
    assert found == ONCE[name], f"{name} belongs in {sorted(ONCE[name])}: use what stands there instead of a copy"


def test_the_search_finds_both_ways_to_write_it():
    assert "jax.nn.softmax" in uses("import jax\ny = jax.nn.softmax(x)") & uses("from jax.nn import softmax")


# One feed-forward network, one attention over heads, one set of norms: their parts are built nowhere else.
BUILT_ONCE = {"def feed_forward(": {"models/layers.py"}, "def attend(": {"models/attend.py", "models/mixers/window.py"},
              "...grts,...sgv->...grtv": {"models/attend.py"}, "def shift(": {"models/positions.py"}}


@pytest.mark.parametrize("text", BUILT_ONCE)
def test_defined_once(text):
    """The second `attend` is what a window adds to the first."""
    assert {file for file, source in files().items() if text in source} == BUILT_ONCE[text]


def test_models_name_no_mechanism():
    """Mixers know memories; what is around them (stack, layer, decoder) does not, but for the memory tokens of `rmt.py`."""
    for file in ("stack.py", "block.py", "borders.py", "wavefront.py", "layers.py", "attention.py", "attend.py", "positions.py"):
        source = (PACKAGE / "models" / file).read_text()
        assert not {name for name in uses(source) if name.startswith("memtok_jax.memory.") and not name.endswith(".pieces")}, file
