"""How often a loop of a compiled program runs.

The compiler notes it for some targets. Where it does not, the condition (a counter below a bound), the first value and the step of
the counter are followed through copies, fusions and the tuples of outer loops.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from memtok_jax.training.hlo import Computation, Instruction, Program

PASSED = ("copy", "bitcast", "convert", "reshape", "copy-done", "opt-barrier", "broadcast")


class Value(NamedTuple):
    """slot + number, where slot is an element of the tuple that a loop carries; None: the number alone."""

    slot: int | None
    number: int


def trips(program: Program, holder: str, loop: Instruction) -> int | None:
    """Times that the body of a loop runs; None if it cannot be told. holder: the computation that holds the loop."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(match[1])
    condition, body = (program.computations[loop.called(key)[0]] for key in ("condition", "body"))
    test = _root(program, condition)
    if test is None:
        return None
    direction, left, right = test
    if left.slot is None:
        direction, left, right = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction), right, left
    step = _next(program, body, left.slot)
    begin, bound = _first(program, holder, loop, left), _first(program, holder, loop, right)
    if None in (step, begin, bound) or not step:
        return None
    distance = bound - begin + {"LE": 1, "GE": -1}.get(direction, 0)
    return max(math.ceil(distance / step), 0) if direction in ("LT", "LE", "GT", "GE", "NE") else None


def _root(program: Program, comp: Computation) -> tuple[str, Value, Value] | None:
    """(direction, left, right) of the comparison that ends a condition, perhaps inside a fusion."""
    root, outer = comp.root, comp
    bound: list[Value | None] | None = None
    if root.opcode == "fusion":
        bound = [value(program, comp, name) for name in root.operands]
        outer = program.computations[root.called("calls")[0]]
        root = outer.root
    if root.opcode != "compare":
        return None
    left, right = (value(program, outer, name, bound) for name in root.operands)
    direction = re.search(r"direction=(\w+)", root.attributes)
    return None if left is None or right is None or not direction else (direction[1], left, right)


def _next(program: Program, body: Computation, slot: int | None) -> int | None:
    """What one iteration adds to an element of the tuple; None if it is not a constant."""
    if slot is None or body.root.opcode != "tuple":
        return None
    after = value(program, body, body.root.operands[slot])
    return after.number if after is not None and after.slot == slot else None


def _first(program: Program, holder: str, loop: Instruction, wanted: Value) -> int | None:
    """The number of a value before the first iteration."""
    if wanted.slot is None:
        return wanted.number
    comp = program.computations[holder]
    start = comp.instructions[loop.operands[0]]
    if start.opcode != "tuple":
        return None
    found = value(program, comp, start.operands[wanted.slot])
    if found is None or found.slot is None:
        return None if found is None else found.number + wanted.number
    # An element of an outer loop, which must not change there.
    if holder not in program.loops or _next(program, comp, found.slot) != 0:
        return None
    outer = _first(program, *program.loops[holder], found)
    return None if outer is None else outer + wanted.number


def value(program: Program, comp: Computation, name: str, given: list[Value | None] | None = None) -> Value | None:
    """What an integer of a computation is; None if it is neither a constant nor one added to an element of the tuple.

    given: values of the parameters, of a fusion.
    """
    one = comp.instructions[name]
    if one.opcode == "constant":
        return Value(None, int(one.literal)) if re.fullmatch(r"-?\d+", one.literal) else None
    if one.opcode == "parameter":
        return given[int(one.literal)] if given else None
    if one.opcode == "get-tuple-element" and comp.instructions[one.operands[0]].opcode == "parameter":
        return Value(int(re.search(r"index=(\d+)", one.attributes)[1]), 0)
    if one.opcode in PASSED:
        return value(program, comp, one.operands[0], given)
    if one.opcode == "copy-start":
        return value(program, comp, one.operands[0], given)
    if one.opcode in ("add", "subtract"):
        left, right = (value(program, comp, operand, given) for operand in one.operands)
        return _sum(left, right, -1 if one.opcode == "subtract" else 1)
    if one.opcode == "fusion" and len(one.out) == 1:
        inner = program.computations[one.called("calls")[0]]
        return value(program, inner, inner.root.name, [value(program, comp, operand, given) for operand in one.operands])
    return None


def _sum(left: Value | None, right: Value | None, sign: int) -> Value | None:
    if left is None or right is None or right.slot is not None and (left.slot is not None or sign < 0):
        return None
    return Value(left.slot if right.slot is None else right.slot, left.number + sign * right.number)
