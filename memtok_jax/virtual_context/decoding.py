"""Sampling from the model behind a main context, token by token, under a mask. The context itself is not changed."""

from __future__ import annotations

import numpy as np

from memtok_jax.virtual_context import codec, grammar
from memtok_jax.virtual_context.automaton import Automaton
from memtok_jax.virtual_context.device import Context, Device
from memtok_jax.virtual_context.grammar import Call

_STRING = bytes((codec.CALL, ord(grammar.OPS["send"].letter), codec.STR))


def sample(logits: np.ndarray, allowed: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """One of the allowed tokens. logits: f32[256]. allowed: bool[256]. temperature: 0 takes the most likely one."""
    z = np.where(allowed, logits.astype(np.float64), -np.inf)
    if temperature <= 0:
        return int(z.argmax())
    p = np.exp((z - z.max()) / temperature)
    return int(np.searchsorted(np.cumsum(p), rng.random() * p.sum(), side="right").clip(0, len(p) - 1))


def write(device: Device, context: Context, rng: np.random.Generator, most: int, temperature: float) -> str:
    """A message of the assistant: at least one character and at most `most` tokens, valid UTF-8."""
    automaton, said = Automaton(len(_STRING) + most + 3), bytearray()
    for token in _STRING:
        automaton.push(token)
    context = device.read(device.fork(context), bytes((codec.ASSISTANT,)))
    while True:
        allowed = automaton.allowed().copy()
        allowed[codec.END], allowed[codec.STR_END] = allowed[codec.STR_END], False
        token = sample(device.logits(context), allowed, temperature, rng)
        if token == codec.END:
            return said.decode()
        said.append(token)
        automaton.push(token)
        context = device.read(context, bytes((token,)))


def decide(device: Device, context: Context, rng: np.random.Generator, most: int, temperature: float,
           calls: int) -> tuple[Call, ...]:
    """A decision of at most `most` tokens, decoded under the automaton of the grammar. calls: most calls in it."""
    automaton, said = Automaton(most, calls), bytearray()
    context = device.fork(context)
    while True:
        said.append(sample(device.logits(context), automaton.allowed(), temperature, rng))
        automaton.push(said[-1])
        if automaton.done:
            return grammar.parse(bytes(said))
        context = device.read(context, bytes((said[-1],)))
