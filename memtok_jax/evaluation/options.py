"""Options of the evaluation suites, as parts of `Experiment.evaluation`."""

from __future__ import annotations

from dataclasses import dataclass

from memtok_jax.config import UserError, check_numbers, choose

RULES = ("sgd", "rms")


@dataclass(frozen=True)
class PositionsConfig:
    """Suite "positions": loss by position in streams of held-out text, with its controls.

    tokens: length of a stream.
    streams: at most this many are scored; 0: as many as the held-out text holds.
    reset: in the control whose carry is reset, it is reset every this many tokens. 0: at every segment of the model, or, if it has
        none, at every call of training.
    far: an identifier or name is a far copy if it last occurred more than this many tokens before. 0: the model's reach.
    against: run directory of another model of the same tokens, such as a twin without memory or with full attention. "": none.
    draws: of the bootstrap over streams.
    """

    tokens: int = 8192
    streams: int = 0
    reset: int = 0
    far: int = 0
    against: str = ""
    draws: int = 1000

    def __post_init__(self):
        check_numbers("evaluation.positions", self, at_least=dict(tokens=2, streams=0, reset=0, far=0, draws=1))


@dataclass(frozen=True)
class NeedleStreamConfig:
    """Suite "needle_stream": a needle in each of several endless streams.

    tokens: of a stream, rounded down to whole blocks.
    block: tokens of all streams that are read in one go, rounded down to whole calls of training.
    depths: where needles stand, from 0 (in front) to 1 (at the end).
    repeats: streams for each depth.
    kind: of the needles.
    """

    tokens: int = 65_536
    block: int = 1024
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    repeats: int = 4
    kind: str = "number"

    def __post_init__(self):
        check_numbers("evaluation.needle_stream", self, at_least=dict(tokens=1, block=1, repeats=1), between=dict(depths=(0, 1)))
        if not self.depths:
            raise UserError("evaluation.needle_stream.depths is empty; give at least one depth, as in 0,0.5,1")


@dataclass(frozen=True)
class DynamicConfig:
    """Suite "dynamic": dynamic evaluation, gradient steps on the weights while a text is scored.

    rates: learning rates. If there are several, the one with the lowest loss on the validation split is taken.
    rule: "sgd", or "rms", which divides each gradient by the root of its mean square over training data.
    epsilon: added to that root, so that a weight which training seldom moved takes no large step.
    decay: lambda, how far each step draws the weights back to the trained ones.
    tokens: between two steps; 0: a call of training.
    statistics: training batches from which "rms" takes its mean squares.
    choose_bytes: bytes of the validation split on which the rate is chosen; 0: all.
    """

    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    rule: str = "rms"
    epsilon: float = 2e-3
    decay: float = 0.0
    tokens: int = 0
    statistics: int = 16
    choose_bytes: int = 65_536

    def __post_init__(self):
        check_numbers("evaluation.dynamic", self, at_least=dict(rates=0, decay=0, tokens=0, statistics=1, choose_bytes=0),
                      above=dict(epsilon=0))
        choose("evaluation.dynamic.rule", self.rule, RULES)
        if not self.rates:
            raise UserError("evaluation.dynamic.rates is empty; give at least one learning rate, as in 0.0001,0.001")
