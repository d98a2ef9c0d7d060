"""The contract of every memory. A new mechanism without an entry fails."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import model_cases
import pytest
from contract import B, Checks, memory_case
from model_cases import MEMORY, MODELS
from neural_cases import assert_close, jit, random_params

import memtok_jax
from memtok_jax import sharding
from memtok_jax.memory import armt, compressive, neural, ring, rmt, ssm, tokens, xl
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.rmt import RmtConfig

RING = ring.RingConfig(3, 2, kv_heads=2, key_dim=1, value_dim=3)
NEURAL = neural.NeuralMemoryConfig(**{**vars(MEMORY), "width": 8})
CHANNEL = replace(NEURAL, gates="per_layer", forget_by="channel", forget_rank=2)
MAMBA, MAMBA2 = (replace(case.memory, width=8) for case in (model_cases.MAMBA, model_cases.MAMBA2))
CASES = {
    "tokens": memory_case(tokens, tokens.TokensConfig(8, 3), head=3),
    "xl": memory_case(xl, xl.XlConfig(5, 8), head=5),
    "ring": memory_case(ring, RING, head=5),
    "compressive": memory_case(compressive, compressive.CompressiveConfig(4, 3, 2, "conv", "bptt", width=8), head=8),
    "neural": memory_case(neural, NEURAL),
    "neural.per_layer": memory_case(neural, replace(NEURAL, gates="per_layer")),
    "neural.channel": memory_case(neural, CHANNEL),
    "rmt": memory_case(rmt, rmt.RmtTokensConfig(8, 3), head=3, tail=3),
    "armt": memory_case(armt, armt.ArmtConfig(8, 3)),
    "ssm.mamba": memory_case(ssm.mamba, MAMBA),
    "ssm.mamba2": memory_case(ssm.mamba2, MAMBA2),
}
HELPERS = {"pieces"}  # no mechanism: a cut that mechanisms share
every_memory = pytest.mark.parametrize("name", CASES)


def _modules(folder: str) -> set[str]:
    package = Path(memtok_jax.__file__).parent / folder
    return {path.stem for path in package.iterdir()
            if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())}


def mixers_of(config) -> set[str]:
    """Names of the mixers in a config, at any depth."""
    if isinstance(config, tuple):
        return {name for item in config for name in mixers_of(item)}
    if isinstance(config, RmtConfig):
        return mixers_of(config.model)
    own = {config.name} if isinstance(config, MixerConfig) else set()
    return own.union(*(mixers_of(getattr(config, part)) for part in ("pattern", "mixers", "layer") if hasattr(config, part)))


def test_every_memory_has_an_entry():
    """A folder of several is named in front of a dot."""
    assert _modules("memory") - HELPERS == {name.partition(".")[0] for name in CASES}


def test_every_mixer_is_in_a_model():
    assert _modules("models/mixers") == {name for cfg in MODELS.values() for name in mixers_of(cfg)}


@cache
def checks(name: str) -> Checks:
    return Checks(CASES[name])


@every_memory
def test_1_any_split_gives_the_same(name):
    checks(name).any_split()


@every_memory
def test_2_causal(name):
    checks(name).causal()


@every_memory
def test_3_state_keeps_its_structure(name):
    checks(name).structure()


@pytest.mark.parametrize("name", ["tokens", "neural"])
def test_3_jit_changes_nothing(name):
    own = checks(name)
    with jax.disable_jit():
        plain = own.case.apply(own.params, jax.tree.map(lambda s: s[:1], own.state), own.x[:1, :3], None)
    y, end = own.apply(own.params, own.state, own.x[:, :3], jnp.full((B,), 3, jnp.int32))
    assert_close(plain, jax.tree.map(lambda s: s[:1], (y, end)), 1e-5)


@every_memory
def test_4_rows_are_independent(name):
    checks(name).independent_rows()


@every_memory
def test_5_gradients_reach_every_parameter(name):
    checks(name).gradients()


# ------------------------------------------------------------------------------------- item 6: the plain model of each memory

OFF = {
    "tokens": (tokens, tokens.TokensConfig(8, 0)), "xl": (xl, xl.XlConfig(0, 8)),
    "compressive": (compressive, compressive.CompressiveConfig(0, 0, 2, width=8)),
    "rmt": (rmt, rmt.RmtTokensConfig(8, 0)), "armt": (armt, armt.ArmtConfig(8, 3)), "neural": (neural, NEURAL),
    "neural.channel": (neural, CHANNEL),
}
# A scan without a state is another network, not the input; test_ssm.py compares it with a loop.


def closed(params):
    """The same parameters with every step gate shut, and nothing to store in an associative memory."""
    def one(path, w):
        name = jax.tree_util.keystr(path)
        if "w_values" in name:
            return w * 0
        last = jax.tree_util.keystr(path[-1:])
        return w.at[..., 0].set(0.0 if "w_gates" in last else -1e4) if "_gates" in last else w

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize("name", OFF)
def test_6_switched_off_is_the_plain_model(name):
    """No tokens, no slots, no steps: the input as it came; the neural memory is a fixed network of the convolved queries."""
    module, cfg = OFF[name]
    params, x = closed(random_params(module.specs(cfg), 0, jnp.float32)), checks(name).x
    y, _ = jit(lambda p, x: module.apply(p, module.init_state(p, cfg, B), x, cfg))(params, x)
    plain = neural.read(params, neural.init_state(params, cfg, B), x, cfg) if module is neural else x
    assert_close(y, plain, 1e-6 if module is neural else 0.0)


# ------------------------------------------------------------------------------------------------------- item 7: sharding

COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\(")


def loop_bodies(text: str) -> list[list[str]]:
    """Lines of every loop body of a compiled program, with the computations that it calls."""
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if head := re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            computations[head[1]] = current = []
        elif line.startswith(" "):
            current.append(line)

    def reached(name: str) -> list[str]:
        lines = computations[name]
        called = {n for line in lines for n in re.findall(r"%([\w.\-]+)", line) if n in computations and n != name}
        return lines + [line for n in sorted(called) for line in reached(n)]

    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    return [reached(name) for name in sorted(bodies)]


@pytest.mark.parametrize("name", ["neural", "neural.channel"])
def test_7_sharded_equals_unsharded(name):
    """The neural memory's loop over chunks runs without a collective."""
    loops = loop_bodies(checks(name).sharded())
    assert loops, "the chunks run in a loop"
    assert not [line for body in loops for line in body if COLLECTIVE.search(line)]


@pytest.mark.parametrize("name", ["compressive", "armt", "ssm.mamba", "ssm.mamba2"])
def test_7_other_memories_sharded(name):
    checks(name).sharded()


def test_the_search_for_collectives_finds_one():
    """The same search on a loop that must communicate."""
    mesh = sharding.make_mesh(1, 1, 2)
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, jax.P(None, "tensor")))
        step = jit(lambda w, x: jax.lax.scan(lambda x, _: (jnp.tanh(w @ x), None), x, None, length=5)[0])
        text = step.lower(w, jax.device_put(jnp.ones(4), jax.NamedSharding(mesh, jax.P("tensor")))).compile().as_text()
    assert any(COLLECTIVE.search(line) for body in loop_bodies(text) for line in body)
