"""What one run of a compiled program costs a chip: operations, bytes of memory traffic, and the time that they take at least.

XLA's own analysis counts the body of a loop once, and a model that scans over layers, calls and chunks is loops. Here the body
counts as often as it runs (`trips.py`). Rules:

    operations   two for each multiplication and addition of a matrix product, the same at any precision; products of float32 in
                 several bfloat16 passes also count with their passes (HIGH 3, HIGHEST 6), which is what takes the time
    others       one for each element that arithmetic outside of products makes
    bytes        what each instruction, a fusion being one, reads from and writes to the main memory, padding of tiles included;
                 a slice counts with its own size, and an update in place with that of what is new. On a TPU what the compiler keeps
                 beside the cores is not main memory
    branches     the most expensive one

The roofline is that of Williams, Waterman and Patterson (CACM 2009): the larger of operations / peak and bytes / bandwidth.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from memtok_jax.training.chips import Chip
from memtok_jax.training.hlo import Computation, Instruction, Program
from memtok_jax.training.traffic import traffic
from memtok_jax.training.trips import trips

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ARITHMETIC = frozenset("add subtract multiply divide maximum minimum negate abs exponential exponential-minus-one log log-plus-one "
                       "sqrt rsqrt cbrt tanh logistic power remainder sine cosine tan erf atan2 floor ceil round-nearest-even "
                       "round-nearest-afz sign select compare clamp and or xor not".split())
PASSES = {"high": 3, "highest": 6}


@dataclass
class Cost:
    """products: operations of matrix products. passes: the same, times the bfloat16 passes. others: other arithmetic.
    bytes: of memory traffic. sent: bytes of collectives. collectives: how often each runs. unknown: loops that count once, because
    it cannot be told how often they run."""

    products: float = 0.0
    passes: float = 0.0
    others: float = 0.0
    bytes: float = 0.0
    sent: float = 0.0
    collectives: Counter = field(default_factory=Counter)
    unknown: int = 0

    def add(self, other: Cost, times: int = 1) -> Cost:
        """Itself, with another cost `times` times on top."""
        for name in ("products", "passes", "others", "bytes", "sent"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name, count in other.collectives.items():
            self.collectives[name] += times * count
        self.unknown += other.unknown
        return self

    @property
    def intensity(self) -> float:
        """Operations of products for each byte."""
        return self.products / max(self.bytes, 1.0)


def seconds(cost: Cost, chip: Chip) -> tuple[float, float]:
    """The time that products and memory traffic take at the peaks of a chip; the larger one bounds the program."""
    return cost.passes / chip.operations, cost.bytes / chip.bandwidth


def cost_of(program: Program) -> Cost:
    """The cost of one run of the program, on one chip."""
    return _Counter(program).run(program.entry)


class _Counter:
    """Costs of computations, each counted once."""

    def __init__(self, program: Program):
        self._program, self._runs, self._insides = program, {}, {}

    def run(self, name: str) -> Cost:
        """A computation whose instructions run one by one."""
        if name not in self._runs:
            comp, total, sent = self._program.computations[name], Cost(), {}
            for one in comp.instructions.values():
                total.add(self._instruction(comp, one))
                sent |= self._sent(comp, one)
            for kind, size in sent.values():
                total.add(Cost(sent=size, collectives=Counter({kind: 1})))
            self._runs[name] = total
        return self._runs[name]

    def _sent(self, comp: Computation, one: Instruction) -> dict[str, tuple[str, float]]:
        """Collectives of one instruction, what is fused into it included: channel -> (kind, bytes).

        A TPU runs a collective beside other work in steps, each of which is a fusion that names the collective again.
        """
        if one.opcode == "fusion":
            inner = self._program.computations[one.called("calls")[0]]
            return {channel: what for step in inner.instructions.values() for channel, what in self._sent(inner, step).items()}
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return {}
        inputs = [array for name in one.operands for array in comp.instructions[name].out]
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        sides = [sum(a.elements * a.size for a in side) for side in (inputs, one.out)]
        return {channel[1] if channel else one.name: (kind, sides[0] if one.opcode.endswith("-start") else max(sides))}

    def _instruction(self, comp: Computation, one: Instruction) -> Cost:
        if one.opcode == "while":
            times = trips(self._program, comp.name, one)
            out = Cost(unknown=int(times is None))
            for part in one.called("condition", "body"):
                out.add(self.run(part), 1 if times is None else times)
            return out
        if one.opcode == "conditional":
            branches = one.called("branch_computations", "true_computation", "false_computation")
            return max(map(self.run, branches), key=lambda cost: (cost.passes, cost.bytes))
        if one.opcode in ("call", "async-start"):
            return Cost().add(self.run(one.called("to_apply", "calls", "called_computation")[0]))
        out = Cost(bytes=traffic(self._program, comp, one))
        return out.add(self._arithmetic(comp, one))

    def _arithmetic(self, comp: Computation, one: Instruction) -> Cost:
        """Operations of one instruction, what is fused into it included."""
        if one.opcode == "fusion":
            return self._inside(one.called("calls")[0])
        if one.opcode in ("dot", "convolution"):
            work = products(comp, one)
            given = re.search(r"operand_precision=\{(\w+)", one.attributes)
            kind = comp.instructions[one.operands[0]].out[0].kind
            return Cost(products=work, passes=work * (PASSES.get(given[1], 1) if given and kind == "f32" else 1))
        if one.opcode in ARITHMETIC:
            return Cost(others=one.out[0].elements)
        if one.opcode == "reduce":
            return Cost(others=comp.instructions[one.operands[0]].out[0].elements)
        return Cost()

    def _inside(self, name: str) -> Cost:
        if name not in self._insides:
            comp, total = self._program.computations[name], Cost()
            for one in comp.instructions.values():
                total.add(self._arithmetic(comp, one))
            self._insides[name] = total
        return self._insides[name]


def products(comp: Computation, one: Instruction) -> float:
    """Operations of a `dot`, or of a `convolution`, as which a TPU computes any product."""
    if one.opcode == "dot":
        left = comp.instructions[one.operands[0]].out[0].shape
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        return 2.0 * one.out[0].elements * float(np.prod([left[int(n)] for n in summed[1].split(",") if n] if summed else [1]))
    left, right, out = (comp.instructions[one.operands[0]].out[0].shape, comp.instructions[one.operands[1]].out[0].shape,
                        one.out[0].shape)
    of_left, of_right, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    work = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    window = _window(one.attributes)
    for axis in range(len(of_left) - 2):
        label = str(axis)
        sizes = (left[of_left.index(label)], right[of_right.index(label)], out[of_out.index(label)])
        work *= _met(*sizes, **{name: values[axis] for name, values in window.items()})
    return work


def _window(attributes: str) -> dict[str, list[int]]:
    """Stride, padding and dilation of each axis of a convolution."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(item.split("=") for item in found[1].split()) if found else {}
    count = len(given.get("size", "").split("x"))
    plain = "x".join(["1"] * count)
    low = [int(pair.split("_")[0]) for pair in given.get("pad", "x".join(["0_0"] * count)).split("x")]
    return {"low": low} | {name: [int(n) for n in given.get(word, plain).split("x")] for name, word in
                           (("stride", "stride"), ("spread", "lhs_dilate"), ("reach", "rhs_dilate"))}


def _met(left: int, right: int, out: int, low: int, stride: int, spread: int, reach: int) -> int:
    """Pairs of an output and a tap of the kernel that meet an element of the input, neither padding nor a gap of dilation."""
    place = np.arange(out)[:, None] * stride + np.arange(right)[None] * reach - low
    return int(((place >= 0) & (place <= (left - 1) * spread) & (place % spread == 0)).sum())
