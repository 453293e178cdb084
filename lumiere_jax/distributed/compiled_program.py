"""What a compiled TPU program would cost, read off the program itself: time by kind of work, and what it sends.

libtpu writes into each instruction how many cycles it is estimated to take, but for a few that only move an array
(`concatenate`): these count as what they read and write. The sum, loops counted as often as they run, is the time of
one chip without waiting for others. What chips send each other comes on top of it, as far as it is not done meanwhile.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The type, whose layout may hold parentheses, then the operation.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(-?\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((-?\d+)\)")
_OPERANDS = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^\]]*)\] \{([^}]*)\})")
_AXIS = re.compile(r"'(\w+)'(?:=(\d+))?")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_KERNEL = re.compile(r"%(splash_mha_[a-z]+|normalized_conv_[a-z]+).* custom_call_target=\"tpu_custom_call\"")
_OPERANDS_OF_KERNEL = re.compile(r"operand_layout_constraints=\{(.*?\})\}")

# libtpu's two ways to say how much is needed, and how much there is.
_OUT_OF_MEMORY = (
    re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm"),
    re.compile(r"required for HLO temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

_LANES = 128  # of a register, and so of an array's last axis on the chip
_MOVES = {"concatenate", "pad", "reshape", "slice", "transpose"}  # that may come without an estimate
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass
class Cost:
    """Of one chip and one call of the program.

    Attributes:
      cycles: estimated by the compiler, by kind of work: "matrix" (convolutions and products, with what is fused into
        them), "reduce", "copy" (changes of layout), "elementwise"; "kernel" by their schedules.
      sent: bytes that the chip sends for collectives of each kind, done by ring algorithms.
      collectives: how many of each kind are run.
    """

    cycles: collections.Counter
    sent: collections.Counter
    collectives: collections.Counter


@dataclasses.dataclass
class _Instruction:
    name: str
    type: str
    operation: str
    text: str


def cost_of(
    hlo: str, kernel_cycles: Mapping[str, Mapping[str, float]] | None = None, cycles_of_byte: float | None = None
) -> Cost:
    """Adds up a compiled program.

    Args:
      hlo: `compiled.as_text()` of a program for a TPU.
      kernel_cycles: of the kernels that libtpu does not estimate, by name: cycles for one of each that `work_of_kernel`
        counts.
      cycles_of_byte: that reading or writing one in memory takes, for moves that libtpu does not estimate.

    Raises:
      ValueError: the text has no entry, or no estimate: it is not libtpu's; or a loop whose length it does not say, or
        a kernel that is not in `kernel_cycles`; or a move without an estimate, and no `cycles_of_byte`.
    """
    computations, entry = _parse(hlo)
    if entry is None or '"estimated_cycles"' not in hlo:
        raise ValueError("this is not the text of a compiled TPU program: it has no estimated cycles")
    cost, channels = Cost(collections.Counter(), collections.Counter(), collections.Counter()), set()
    for instruction, times in _executed(computations, entry, 1):
        inside = [instruction, *_fused(computations, instruction)]
        if cycles := _CYCLES.search(instruction.text):
            cost.cycles[_kind([each.operation for each in inside])] += times * max(0, int(cycles[1]))
        elif instruction.operation in _MOVES:
            if cycles_of_byte is None:
                raise ValueError(f"a move without an estimate: give cycles_of_byte: {instruction.text.strip()[:200]}")
            cost.cycles["copy"] += times * 2 * sum(_sizes(instruction.type)) * cycles_of_byte
        elif 'custom_call_target="tpu_custom_call"' in instruction.text:
            cost.cycles["kernel"] += times * _cycles_of_kernel(instruction, kernel_cycles or {})
        for each in inside:
            operation = each.operation.removesuffix("-start")
            if operation in COLLECTIVES:
                # One that goes on beside other work is in each fusion that it goes on beside.
                if each is not instruction and (channel := _CHANNEL.search(each.text)):
                    if channel[1] in channels:
                        continue
                    channels.add(channel[1])
                # An all-reduce of which each chip keeps its part is fused with taking that part.
                is_scattered = operation == "all-reduce" and each is not instruction
                operation = "reduce-scatter" if is_scattered else operation
                cost.collectives[operation] += times
                cost.sent[operation] += times * _sent(operation, each, is_scattered)
    return cost


def _cycles_of_kernel(instruction: _Instruction, kernel_cycles: Mapping[str, Mapping[str, float]]) -> float:
    kernel = _KERNEL.search(instruction.text)
    if kernel is None or kernel[1] not in kernel_cycles:
        raise ValueError(f"a kernel whose cycles are not known: {instruction.text.strip()[:200]}")
    operands = _ARRAY.findall(_OPERANDS_OF_KERNEL.search(instruction.text)[1])
    work = work_of_kernel(kernel[1], [tuple(map(int, shape.split(","))) for _, shape in operands if shape])
    return sum(cycles * work[unit] for unit, cycles in kernel_cycles[kernel[1]].items())


def work_of_kernel(name: str, operands: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """What a kernel has to do.

    Args:
      name: "splash_mha_..." (`models/attention.py`) or "normalized_conv_..." (`models/normalized_conv.py`).
      operands: their shapes.

    Returns:
      for attention, how many attention "weights"; for a normalised convolution, with channels padded to whole lanes,
      its "products", "values", and the values that its "taps" look at.
    """
    if name.startswith("splash"):
        queries, keys = [shape for shape in operands if len(shape) == 4][:2]  # heads first, tokens last
        return {"weights": math.prod(queries[:2]) * queries[3] * keys[3]}
    *rows, _ = next(shape for shape in operands if len(shape) == 4)
    taps, inputs, outputs = [shape for shape in operands if len(shape) == 3][-1]
    inputs, outputs = (-(-channels // _LANES) * _LANES for channels in (inputs, outputs))
    values = math.prod(rows) * inputs
    return {"products": values * taps * outputs, "values": values, "taps": values * taps}


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    computations: dict[str, list[_Instruction]] = {}
    entry = current = None
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(match[1], match[2], match[3], line))
    return computations, entry


def _executed(computations: dict, name: str, times: int) -> Iterator[tuple[_Instruction, int]]:
    """Each instruction that is run as one, with how often."""
    for instruction in computations[name]:
        yield instruction, times
        called = []
        if instruction.operation in ("while", "call", "async-start"):
            called = _CALLED.findall(instruction.text)
        elif instruction.operation == "conditional":
            branches = _BRANCHES.search(instruction.text)
            called = [branch.strip(" %") for branch in branches[1].split(",")] if branches else []
        trips = _trips(computations, instruction) if instruction.operation == "while" else 1
        for other in called:
            yield from _executed(computations, other, times * trips)


def _trips(computations: dict, loop: _Instruction) -> int:
    """How often a loop is run: as the compiler says or, where it does not, as the condition does.

    JAX's loops of known length (scan, map) count from 0 while they are below it.

    Raises:
      ValueError: the condition is another one.
    """
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    condition = computations[_CONDITION.search(loop.text)[1]]
    by_name = {instruction.name: instruction for instruction in condition}
    root = next((instruction for instruction in condition if instruction.text.lstrip().startswith("ROOT")), None)
    while root is not None and root.operation == "fusion":
        inside = computations[_CALLED.search(root.text)[1]]
        by_name |= {instruction.name: instruction for instruction in inside}
        root = next((instruction for instruction in inside if instruction.text.lstrip().startswith("ROOT")), None)
    if root is not None and root.operation == "compare" and "direction=LT" in root.text:
        limits = [_CONSTANT.search(by_name[name].text) for name in _OPERANDS.findall(root.text) if name in by_name]
        if found := [int(limit[1]) for limit in limits if limit]:
            return found[0]
    raise ValueError(f"a loop of unknown length: {loop.text.strip()[:200]}")


def _fused(computations: dict, instruction: _Instruction) -> Iterator[_Instruction]:
    if instruction.operation == "fusion":
        for name in _CALLED.findall(instruction.text):
            for inner in computations.get(name, ()):
                yield inner
                yield from _fused(computations, inner)


def _kind(operations: list[str]) -> str:
    if "convolution" in operations or "dot" in operations or "custom-call" in operations:
        return "matrix"
    if any(operation.startswith("reduce") for operation in operations):
        return "reduce"
    moves = {"copy", "transpose", "bitcast", "parameter", "fusion", "reshape", "copy-start", "copy-done", "tuple"}
    return "copy" if set(operations) <= moves else "elementwise"


def _sizes(type_: str) -> list[int]:
    """Bytes of each array in an instruction's type."""
    return [
        _BYTES.get(kind, 4) * math.prod(int(size) for size in shape.split(",") if size)
        for kind, shape in _ARRAY.findall(type_)
    ]


def _sent(operation: str, instruction: _Instruction, is_scattered: bool) -> float:
    sizes = _sizes(instruction.type)
    if instruction.operation.endswith("-start") and operation != "all-reduce":
        sizes = [max(sizes)]  # of what it takes and what it gives: the whole
    size, groups = float(sum(sizes)), _GROUPS.search(instruction.text)
    chips = 1
    if groups:
        chips = _chips_of_a_group(groups)
    match operation:
        case "collective-permute":
            return size
        case "all-reduce":
            return 2 * size * (chips - 1) / chips
        case "reduce-scatter" if not is_scattered and not instruction.operation.endswith("-start"):
            return size * (chips - 1)  # its type is the part that a chip keeps
        case _:
            return size * (chips - 1) / chips


def _chips_of_a_group(groups: re.Match) -> int:
    """[groups, chips], or one group's chips, or the axes of a mesh that a group goes over."""
    if groups[3] is None:
        return int(groups[1]) if groups[1] else len(groups[2].split(","))
    sizes = {name: int(size) for name, size in _AXIS.findall(groups[3])}
    return math.prod(sizes[name] for name, _ in _AXIS.findall(groups[4]))


def memory_that_is_missing(message: str) -> dict[str, int] | None:
    """Bytes that libtpu says are needed and available on a chip; None if it failed for another reason."""
    found = next(filter(None, (pattern.search(message) for pattern in _OUT_OF_MEMORY)), None)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed, available = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
    return {"needed": needed, "available": available, "missing": needed - available}
