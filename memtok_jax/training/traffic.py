"""Bytes that an instruction of a compiled program reads from and writes to the main memory of a chip.

A fusion is one instruction: what happens inside stays beside the cores. A slice counts with its own size, an update in place with
that of what is new; padding of tiles counts.
"""

from __future__ import annotations

from memtok_jax.training.hlo import Computation, Instruction, Program

FREE = frozenset("parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier domain "
                 "copy-done slice-done async-done async-update all-reduce-done all-gather-done collective-permute-done send-done "
                 "recv-done add-dependency".split())
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveDone")
SLICES = ("dynamic-slice", "slice", "gather")


def traffic(program: Program, comp: Computation, one: Instruction) -> float:
    """Bytes that an instruction reads from and writes to main memory."""
    if one.opcode in FREE or (one.opcode == "custom-call" and any(f'"{name}"' in one.attributes for name in FREE_CALLS)):
        return 0
    read = sum(_read(program, comp, one, place) for place in range(len(one.operands)))
    if one.opcode == "copy-start":
        return sum(a.bytes for a in one.out[:2] if a.main)
    if one.opcode == "slice-start":
        return one.out[1].bytes * (one.out[0].main + one.out[1].main)
    return read + _written(program, comp, one)


def _read(program: Program, comp: Computation, one: Instruction, place: int) -> float:
    """Bytes that an instruction reads of one operand."""
    main = [array for array in comp.instructions[one.operands[place]].out if array.main]
    if not main:
        return 0
    part = _part(program, comp, one, place)
    return sum(array.bytes for array in main) if part is None else part


def _part(program: Program, comp: Computation, one: Instruction, place: int) -> float | None:
    """Bytes of the part of an operand that is read; None: all of it."""
    if one.opcode in SLICES and place == 0:
        return sum(array.bytes for array in one.out)
    if one.opcode == "tuple" or (one.opcode in ("dynamic-update-slice", "scatter") and place == 0):
        return 0
    if one.opcode != "fusion":
        return None
    inner = program.computations[one.called("calls")[0]]
    return _part_of(program, inner, inner.parameters[place].name)


def _part_of(program: Program, comp: Computation, name: str) -> float | None:
    """As `_part`, by all users of a value inside a fusion."""
    total = 0.0
    for user in comp.users.get(name, ()):
        for place in (n for n, operand in enumerate(user.operands) if operand == name):
            part = _part_of(program, comp, user.name) if user.opcode == "bitcast" else _part(program, comp, user, place)
            if part is None:
                return None
            total += part
    return total


def _written(program: Program, comp: Computation, one: Instruction) -> float:
    """Bytes that an instruction writes to main memory."""
    sizes = _new(program, comp, one)
    return sum(size for size, array in zip(sizes, one.out, strict=True) if array.main)


def _new(program: Program, comp: Computation, one: Instruction) -> list[float]:
    """Bytes of each array of the result that are new, not there before."""
    whole = [float(array.bytes) for array in one.out]
    if one.opcode == "parameter":  # handed through a fusion
        return [0.0] * len(whole)
    if one.opcode == "bitcast":
        inner = _new(program, comp, comp.instructions[one.operands[0]])
        return inner if len(inner) == len(whole) else whole
    if one.opcode == "dynamic-update-slice":
        return [float(comp.instructions[one.operands[1]].out[0].bytes)]
    if one.opcode == "scatter" and len(one.operands) == 3:
        return [2.0 * comp.instructions[one.operands[2]].out[0].bytes]
    if one.opcode == "tuple" and len(whole) == len(one.operands):
        return [_new(program, comp, comp.instructions[name])[0] for name in one.operands]
    if one.opcode == "fusion":
        inner = program.computations[one.called("calls")[0]]
        sizes = _new(program, inner, inner.root)
        return sizes if len(sizes) == len(whole) else whole
    return whole
