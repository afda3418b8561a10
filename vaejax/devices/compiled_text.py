"""What a compiled program does, read from its text: launches, multiplications, bytes, and what waits for the host.

The text is XLA's HLO after optimization, as `compiled.as_text()` gives it for a GPU or a TPU.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vaejax import records

# What costs no launch: names for parts of memory, and the ends of what was begun elsewhere.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all add-dependency opt-barrier partition-id replica-id "
    "domain iota copy-done all-reduce-done all-gather-done collective-permute-done async-done async-update "
    "recv-done send-done slice-done".split()
)
_FREE_TARGETS = frozenset(
    "AllocateBuffer ConcatBitcast AssumeGatherIndicesInBound Sharding SPMDFullToShardShape SPMDShardToFullShape".split()
)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HOST = ("infeed", "outfeed", "send", "recv")
_SLICES = ("dynamic-slice", "gather", "slice")
_GUESS = 10  # passes through a loop whose number the compiler does not know, to find the hottest one
# Of an accelerator, roughly: only to compare the loops of one program.
_SECONDS_OF_KERNEL, _SECONDS_OF_FLOP, _SECONDS_OF_BYTE = 2e-6, 1e-14, 5e-13


class Work(NamedTuple):
    """What a piece of a program does in one pass.

    Attributes:
        passes: through it in one call of the program; None where the compiler does not know their number.
        kernels: launches; see `compile_for`.
        flops: of matrix products and convolutions, by the dtype of their inputs; two for each multiplication.
        bytes_accessed: that its launches read from the device's main memory and write to it.
        all_reduces: sums over devices.
        network_bytes: that go into exchanges between devices.
        host_transfers: times that it waits for the host, or sends it something.
        callbacks: targets of calls to the host.
    """

    passes: int | None
    kernels: int
    flops: dict[str, int]
    bytes_accessed: int
    all_reduces: int
    network_bytes: int
    host_transfers: int
    callbacks: tuple[str, ...]

    __repr__ = records.short_repr


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str


_Computations = dict[str, list[_Instruction]]


def hottest_work(text: str, on_gpu: bool) -> Work:
    """One pass through the loop body in which a program spends most of its time, or through the whole program.

    Loops within that body count as often as they are passed through, or once where that is not known.

    Args:
        text: of the compiled program.
        on_gpu: whether the host reads the predicates of conditionals and the ends of loops, as it does for a GPU; a
            TPU does so itself, and needs no launch for single numbers either.

    Returns:
        What is done in one pass.

    >>> text = '''
    ... %body (x: f32[8]) -> f32[8] {
    ...   %x = f32[8]{0} parameter(0)
    ...   ROOT %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%double
    ... }
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %x = f32[8]{0} parameter(0)
    ...   ROOT %loop = f32[8]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}
    ... }'''
    >>> work = hottest_work(text, on_gpu=True)
    >>> work.passes, work.kernels, work.bytes_accessed, work.host_transfers
    (7, 1, 64, 0)
    """
    entry, computations = _parsed(text)
    reader = _Reader(computations, on_gpu)
    loops = [(entry, 1, 1), *reader.loops(entry, 1)]
    name, passes, _ = max(loops, key=lambda loop: loop[2] * reader.seconds(loop[0]))
    tally = reader.tally(name, nested=True)
    if on_gpu and passes is None:
        tally["host_transfers"] += 1  # the end of the loop itself
    flops = {kind[6:]: int(number) for kind, number in tally.items() if kind.startswith("flops ")}
    callbacks = tuple(sorted(kind[9:] for kind in tally if kind.startswith("callback ")))
    counted = ("kernels", "bytes_accessed", "all_reduces", "network_bytes", "host_transfers")
    return Work(passes, flops=flops, callbacks=callbacks, **{kind: int(tally[kind]) for kind in counted})


class _Reader:
    """The computations of a program, and how to count in them."""

    def __init__(self, computations: _Computations, on_gpu: bool):
        self.computations, self.on_gpu = computations, on_gpu
        self.types = {name: {i.name: i.type for i in body} for name, body in computations.items()}

    def loops(self, name: str, times: int) -> Iterator[tuple[str, int | None, int]]:
        """The loops in a computation and within those: body, passes at each time, and all passes by a guess."""
        for instruction in self.computations.get(name, []):
            if instruction.opcode == "while":
                passes = self.passes(name, instruction)
                body, total = _called(instruction, "body"), times * (_GUESS if passes is None else passes)
                yield body, passes, total
                yield from self.loops(body, total)
            elif instruction.opcode in ("call", "async-start"):
                yield from self.loops(_called(instruction, "to_apply|calls"), times)

    def seconds(self, name: str) -> float:
        """A rough cost of one pass through a computation, without the loops in it."""
        tally = self.tally(name, nested=False)
        flops = sum(number for kind, number in tally.items() if kind.startswith("flops "))
        moved = tally["bytes_accessed"] * _SECONDS_OF_BYTE
        return tally["kernels"] * _SECONDS_OF_KERNEL + max(flops * _SECONDS_OF_FLOP, moved)

    def tally(self, name: str, nested: bool) -> collections.Counter:
        """What one pass through a computation does; `nested` says whether with the loops in it."""
        total: collections.Counter = collections.Counter()
        for instruction in self.computations.get(name, []):
            opcode = instruction.opcode
            if opcode == "while":
                if nested:
                    passes = self.passes(name, instruction)
                    one = self.tally(_called(instruction, "body"), nested)
                    one["host_transfers"] += self.on_gpu and passes is None
                    total.update({kind: number * (passes or 1) for kind, number in one.items()})
            elif opcode == "call":
                total.update(self.tally(_called(instruction, "to_apply"), nested))
            elif opcode == "async-start":
                total.update(self.tally(_called(instruction, "calls"), nested))
            elif opcode == "conditional":
                total.update({"kernels": 1, "host_transfers": int(self.on_gpu)})
            else:
                total.update(self.of_instruction(name, instruction))
        return total

    def of_instruction(self, name: str, instruction: _Instruction) -> collections.Counter:
        """What an instruction does that is neither loop nor branch."""
        found = self.products(name, instruction)
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if instruction.opcode in _FREE or (target and target[1] in _FREE_TARGETS):
            return found
        arrays = _shapes(" ".join((instruction.type, *(self.types[name].get(o, "") for o in instruction.operands))))
        if self.on_gpu or any(math.prod(dims) > 1 for _, dims, _ in arrays):  # a TPU has a unit for single numbers
            found["kernels"] += 1
        if instruction.opcode.removesuffix("-start") in _HOST or "S(5)" in instruction.type:
            found["host_transfers"] += 1
        if target and "callback" in target[1]:
            found["host_transfers"] += 1
            found[f"callback {target[1]}"] += 1
        found["bytes_accessed"] += self.moved(name, instruction)
        return found

    def products(self, name: str, instruction: _Instruction) -> collections.Counter:
        """Products and exchanges of an instruction, also of what is fused into it."""
        found: collections.Counter = collections.Counter()
        opcode = instruction.opcode.removesuffix("-start")
        if instruction.opcode == "fusion":
            inside = _called(instruction, "calls")
            for each in self.computations.get(inside, []):
                found.update(self.products(inside, each))
        elif opcode in _COLLECTIVES:
            found["network_bytes"] += sum(map(_bytes, (self.types[name].get(o, "") for o in instruction.operands)))
            found["all_reduces"] += opcode == "all-reduce"
        else:
            flops = _flops(instruction, self.types[name])
            if flops:
                dtype = _shapes(self.types[name][instruction.operands[0]])[0][0]
                found[f"flops {dtype}"] += flops
        return found

    def moved(self, name: str, instruction: _Instruction) -> int:
        """Bytes that an instruction reads and writes; of an array of which it takes or replaces a part, that part."""
        inside = self.computations.get(_called(instruction, "calls"), []) if instruction.opcode == "fusion" else []
        if not inside:
            operands = [self.types[name].get(operand, "") for operand in instruction.operands]
            if instruction.opcode == "dynamic-update-slice":
                return 2 * self.main_bytes(operands[1])
            if instruction.opcode in _SLICES:
                return 2 * self.main_bytes(instruction.type)
            return self.main_bytes(instruction.type) + sum(map(self.main_bytes, operands))
        types, origin = {each.name: each.type for each in inside}, {}
        for each in inside:  # a bitcast is another name
            origin[each.name] = origin.get(each.operands[0]) if each.opcode == "bitcast" else each.name
        updates = [each for each in inside if each.opcode == "dynamic-update-slice"]
        replaced = {origin.get(each.operands[0]): types[each.operands[1]] for each in updates}
        total = self.main_bytes(instruction.type)
        for each in updates:  # written in place
            total -= self.main_bytes(each.type) - self.main_bytes(types[each.operands[1]])
        for each in inside:
            if each.opcode != "parameter" or each.name in replaced:
                continue
            uses = [u for u in inside if u.opcode != "bitcast" and each.name in map(origin.get, u.operands)]
            partial = [u for u in uses if u.opcode in _SLICES and origin.get(u.operands[0]) == each.name]
            whole = self.main_bytes(each.type)
            parts = sum(int(math.prod(d) * _size_of(t)) for u in partial for t, d, _ in _shapes(u.type))
            total += min(whole, parts) if uses and len(partial) == len(uses) else whole
        return max(total, 0)

    def main_bytes(self, kind: str) -> int:
        """Bytes of a type in the main memory: a TPU's smaller ones are marked in the layout."""
        return _bytes(kind, "" if self.on_gpu else "S(")

    def passes(self, name: str, loop: _Instruction) -> int | None:
        """How often a loop is passed through, where it counts from 0 to a constant, or the compiler says it."""
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if said:
            return int(said[1])
        condition = {each.name: each for each in self.computations.get(_called(loop, "condition"), [])}
        last = next(iter(reversed(condition.values())), None)
        if last is None or last.opcode != "compare" or "direction=LT" not in last.attributes:
            return None
        counter, end = (condition.get(operand) for operand in last.operands)
        if counter is None or end is None or counter.opcode != "get-tuple-element" or end.opcode != "constant":
            return None
        known = {each.name: each for each in self.computations[name]}
        start = known.get(loop.operands[0])
        place = int(re.search(r"index=(\d+)", counter.attributes)[1])  # type: ignore[index]
        while start is not None and start.opcode in ("tuple", "copy", "bitcast"):
            start = known.get(start.operands[place if start.opcode == "tuple" else 0])
        if start is None or start.opcode != "constant" or start.inside != "0":
            return None
        return int(end.inside)


def _parsed(text: str) -> tuple[str, _Computations]:
    """The name of the entry computation, and the instructions of all of them."""
    computations: _Computations = {}
    entry, body = "", []
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            head = line.removeprefix("ENTRY ")
            name = head.split(" (", 1)[0].removeprefix("%")
            entry = name if line.startswith("ENTRY") else entry
            body = computations[name] = []
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            body.append(_instruction(found[1], line[found.end() :]))
    return entry, computations


def _instruction(name: str, rest: str) -> _Instruction:
    kind, rest = _until_closed(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, _, rest = rest.strip().partition("(")
    inside, attributes = _until_closed("(" + rest)
    inside = inside[1:-1]
    return _Instruction(name, kind, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), inside, attributes)


def _until_closed(text: str) -> tuple[str, str]:
    """The text up to where its first parenthesis closes, and the rest."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return text[: place.end()], text[place.end() :]
    return text, ""


def _called(instruction: _Instruction, role: str) -> str:
    found = re.search(rf"(?:{role})=%?([\w.\-]+)", instruction.attributes)
    return found[1] if found else ""


def _shapes(kind: str) -> list[tuple[str, tuple[int, ...], str]]:
    """The dtype, sizes and layout of each array in a type."""
    found = re.findall(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", kind)
    return [(dtype, tuple(map(int, re.findall(r"\d+", dims))), layout) for dtype, dims, layout in found]


def _size_of(dtype: str) -> int | float:
    """Bytes of a number."""
    bits = re.search(r"\d+", dtype)
    return 1 if dtype == "pred" else int(bits[0]) / 8 if bits else 0


def _bytes(kind: str, elsewhere: str = "") -> int:
    """Bytes of a type, without the arrays whose layout has a mark."""
    arrays = [each for each in _shapes(kind) if not elsewhere or elsewhere not in each[2]]
    return int(sum(math.prod(dims) * _size_of(dtype) for dtype, dims, _ in arrays))


def _flops(instruction: _Instruction, types: dict[str, str]) -> int:
    """Two for each multiplication in a matrix product or convolution; of a library's call, by its configuration."""
    attributes, operands = instruction.attributes, [_shapes(types.get(o, "")) for o in instruction.operands]
    contracting = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', attributes)
    if not operands or not operands[0] or not _shapes(instruction.type):
        return 0
    written = math.prod(_shapes(instruction.type)[0][1])
    if contracting and (instruction.opcode == "dot" or "gemm" in attributes or "matmul" in attributes):
        sizes = operands[0][0][1]
        return 2 * written * math.prod(sizes[int(i)] for i in re.findall(r"\d+", contracting[1]))
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", attributes)
    if labels and len(operands) > 1 and operands[1]:
        kernel = dict(zip(labels[1], operands[1][0][1], strict=False))
        taps = math.prod(size for label, size in kernel.items() if label != "o")
        dilated: Any = re.search(r"lhs_dilate=([\dx]+)", attributes)  # zeros between the inputs cost nothing
        return 2 * written * taps // (math.prod(map(int, dilated[1].split("x"))) if dilated else 1)
    return 0
