"""The text of a compiled program (XLA's HLO), read into instructions, and how often its loops run.

Only what counting needs is read: names, shapes with their padding and place in memory, operands, and which computation calls which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}  # of the others the name says the bits
_ARRAY = re.compile(r"\b([a-z]\w*)\[([^\]]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


_FAST_MEMORY = re.compile(r'used_scoped_memory_configs":\[\{[^]]*?"size":"(\d+)"')


def kernel_memory(text: str) -> list[int]:
    """Bytes of the chip's fast memory that each kernel of a TPU program takes: kernels written by hand, not the compiler's own."""
    kernels = (line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line)
    return [int(size) for line in kernels for size in _FAST_MEMORY.findall(line)]


class Array(NamedTuple):
    """One array of a type. shape: logical. padded: elements in memory, with the padding of its tiles. main: it lies in the main
    memory of the chip, not in one beside the cores (S(1) and others of a TPU)."""

    kind: str
    shape: tuple[int, ...]
    padded: int
    main: bool

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of one element, at least 1."""
        digits = re.sub(r"^\D+", "", self.kind.split("e")[0]) if self.kind not in BYTES else ""
        return BYTES[self.kind] if self.kind in BYTES else max(int(digits or 8) // 8, 1)

    @property
    def bytes(self) -> int:
        """Bytes in memory, padding included."""
        return self.padded * self.size


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays of a type, tuples flattened: f32[8,128]{1,0:T(8,128)S(1)}."""
    return tuple(_array(*found.groups()) for found in _ARRAY.finditer(text))


def _array(kind: str, dims: str, layout: str | None) -> Array:
    shape = tuple(int(d.strip("<=")) for d in dims.split(",") if d)
    order, _, rest = (layout or "").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    sizes = list(shape)
    if tile and shape:
        minor = [int(n) for n in order.split(",") if n]
        for axis, unit in zip(minor, reversed([int(n) for n in tile[1].split(",")]), strict=False):
            sizes[axis] = -(-sizes[axis] // unit) * unit
    return Array(kind, shape, math.prod(sizes), space is None or space[1] == "0")


class Instruction(NamedTuple):
    """One line. out: its arrays. operands: names. literal: what stands between the parentheses. attributes: what stands behind."""

    name: str
    opcode: str
    out: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Computations that it names under these words, such as "body"."""
        found = []
        for key in keys:
            if match := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", match[1])
        return found


@dataclass(frozen=True, eq=False)
class Computation:
    """Instructions in the order of the text; the last one is the root, unless another says so."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions by what they use."""
        out: dict[str, list[Instruction]] = {}
        for one in self.instructions.values():
            for name in dict.fromkeys(one.operands):
                out.setdefault(name, []).append(one)
        return out

    @cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, by number."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))


@dataclass(frozen=True, eq=False)
class Program:
    """A module. entry: name of the computation that runs."""

    computations: dict[str, Computation]
    entry: str

    @cached_property
    def loops(self) -> dict[str, tuple[str, Instruction]]:
        """Body of each loop -> (the computation that holds the loop, the loop)."""
        return {body: (name, one) for name, comp in self.computations.items() for one in comp.instructions.values()
                if one.opcode == "while" for body in one.called("body")}


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations, entry = {}, ""
    for first, name, lines in _blocks(text):
        found, root = {}, None
        for line in lines:
            if match := _INSTRUCTION.match(line):
                one = _instruction(match[2], match[3])
                found[one.name] = one
                root = one if match[1] or root is None else root
        computations[name] = Computation(name, found, root)
        entry = name if first else entry
    return Program(computations, entry)


def _blocks(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """(is the entry, name, lines) of each computation."""
    header, lines = None, []
    for line in text.splitlines():
        if header is None:
            header, lines = _HEADER.match(line), []
        elif line.startswith("}"):
            yield bool(header[1]), header[2], lines
            header = None
        else:
            lines.append(line)


def _instruction(name: str, text: str) -> Instruction:
    kind, rest = _type(text)
    opcode, _, rest = rest.partition("(")
    end = _closing(rest)
    inside, attributes = rest[:end], rest[end + 1:]
    return Instruction(name, opcode.strip(), arrays(kind), tuple(_NAME.findall(inside)), inside, attributes)


def _type(text: str) -> tuple[str, str]:
    """(type, what follows)."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    end = _closing(text[1:]) + 2
    return text[:end], text[end:].lstrip()


def _closing(text: str) -> int:
    """Place of the parenthesis that closes one opened before the text."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)
