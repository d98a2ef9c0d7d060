"""A controller that is a small model of this library, decoded under the automaton of the grammar: every decision is well formed."""

from __future__ import annotations

from collections.abc import Sequence

from memtok_jax.config import UserError
from memtok_jax.virtual_context import automaton, decoding
from memtok_jax.virtual_context.device import Device
from memtok_jax.virtual_context.grammar import Call
from memtok_jax.virtual_context.policies import View


class LearnedPolicy:
    """The model of the conversation decides, or another one.

    device: another model, which reads the main context anew for each decision; if left out, that of the conversation goes on.
    temperature: 0 takes the most likely token that the grammar allows. calls: most calls of one decision.
    """

    def __init__(self, device: Device | None = None, temperature: float = 0.0, calls: int = 1):
        if temperature < 0 or calls < 1:
            raise UserError(f"temperature={temperature} must be at least 0 and calls={calls} at least 1")
        self._device, self._temperature, self._calls = device, temperature, calls

    def decide(self, view: View) -> Sequence[Call]:
        """What the model says behind the main context."""
        most = max(view.cfg.max_new, automaton.SHORTEST)
        device, context = view.device, view.context
        if self._device is not None:
            device, context = self._device, self._device.context(self._device.begin(), view.tokens)
        return decoding.decide(device, context, view.rng, most, self._temperature, self._calls)
