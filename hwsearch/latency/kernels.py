"""The units a runtime compiles a network into, as far as they decide its latency.

A unit is a layer with the bias and activation that are folded into it, any other operation, or glue: a conversion
between formats, the network's input and output, the call itself. Which tensors are quantised is asked of the backend.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from hwsearch.backends.flow import Flow
from hwsearch.types import PRECISIONS

LAYER_KINDS = ("conv", "depthwise", "linear")

INTEGER = "int8"
"""Format of operations without weights between quantised tensors, whatever the layers around them use."""

MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Operations that move values and change none: what they make of a quantised tensor is quantised alike."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A unit in everything but its channel counts.

    Attributes:
        unit: ``conv``, ``depthwise``, ``linear``, an ONNX operation, or glue: ``quantize``, ``dequantize``, ``input``,
            ``output``, ``call``.
        window: Kernel and stride, e.g. ``3x3/2``, or ``mixed`` for a float operation that reads quantised tensors.
        size: What one channel holds: ``32x32`` pixels, or a number of rows.
        precision: What it computes in.
    """

    unit: str
    window: str
    size: str
    precision: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.unit, self.window, f"on {self.size}", self.precision) if part)


Node = tuple[int, int]
"""Channels in, channels out."""

Column = tuple[Kind, Node]
"""A unit at given channel counts: one unknown of the fit, one row of a table."""

CALL = Kind("call", "", "1", "")
"""What every inference costs, whatever the network."""


@dataclass(frozen=True, slots=True)
class Width:
    """A channel count: `fixed`, plus `repeat` for each channel kept of some prune groups."""

    fixed: int
    groups: tuple[tuple[str, int], ...] = ()

    def channels(self, keep: Mapping[str, int]) -> int:
        """The number with `keep` channels left of every group it depends on."""
        return self.fixed + sum(repeat * keep[name] for name, repeat in self.groups)


@dataclass(frozen=True, slots=True)
class Unit:
    """One compiled unit: its kind and its channel counts."""

    kind: Kind
    inputs: Width
    outputs: Width


CALL_UNIT = Unit(CALL, Width(1), Width(1))


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A step of a graph in everything that decides its latency but formats; equal only to itself.

    Attributes:
        unit, window, size: As in `Kind`; the size is that of the largest tensor it reads.
        inputs, outputs: Its channels.
        outlet_size: What one channel of the tensor it leaves holds.
    """

    unit: str
    window: str
    size: str
    inputs: Width
    outputs: Width
    outlet_size: str

    @property
    def is_layer(self) -> bool:
        """Whether it has a weight, and so a precision of its own."""
        return self.unit in LAYER_KINDS


@dataclass(frozen=True, slots=True)
class Plan:
    """A float graph: its steps, and the operation that each is, by name."""

    flow: Flow
    operations: Mapping[str, Operation]


QUANTIZED, END = 1, 2
"""Marks of a tensor: it lies behind a quantiser; it is the network's input or output."""

Situation = tuple[Operation, str, str, tuple[int, ...], int]
"""An operation, its format, the float format around it, and the marks of what it reads and of what it leaves.

All that its units depend on: equal situations compile to equal units, whatever the rest of the network is.
"""


def situations(
    plan: Plan, quantized: Collection[str], precision: Mapping[str, str], float_precision: str
) -> list[Situation]:
    """What every operation of a plan meets under a precision per layer, in execution order.

    Args:
        plan: From `plan.read_plan`.
        quantized: Tensors the backend puts a quantise/dequantise pair on.
        precision: Layer -> precision.
        float_precision: Format of everything that is not quantised.
    """
    flow, operations = plan.flow, plan.operations
    marks = dict.fromkeys(quantized, QUANTIZED)
    for end in (flow.input, flow.output):
        marks[end] = marks.get(end, 0) | END
    mark = marks.get
    found: list[Situation] = []
    for step in flow.steps:
        if step.op in MOVES and mark(step.reads[0], 0) & QUANTIZED and step.leaves != flow.output:
            marks[step.leaves] = QUANTIZED  # a backend need not name it
        reads, leaves = tuple([mark(name, 0) for name in step.reads]), mark(step.leaves, 0)
        chosen = precision.get(step.name)
        if chosen is None:
            enclosed = leaves & QUANTIZED and all(place & QUANTIZED for place in reads)
            chosen = INTEGER if enclosed else float_precision
        found.append((operations[step.name], chosen, float_precision, reads, leaves))
    return found


def units_of(situation: Situation) -> Iterator[Unit]:
    """What an operation compiles to: itself, and the glue around it."""
    operation, chosen, float_precision, reads, leaves = situation
    integer = PRECISIONS[chosen].integer
    for place in reads:
        if place & END and operation.is_layer:
            yield _glue("input", operation.size, chosen, operation.inputs)
        elif place & QUANTIZED and not integer:
            yield _glue("dequantize", operation.size, float_precision, operation.inputs)
    window = operation.window if operation.is_layer else _company(operation, reads, integer=integer)
    yield Unit(Kind(operation.unit, window, operation.size, chosen), operation.inputs, operation.outputs)
    if leaves & END:
        yield _glue("output", operation.outlet_size, chosen, operation.outputs)
    elif leaves & QUANTIZED and not integer:
        yield _glue("quantize", operation.outlet_size, float_precision, operation.outputs)


def compiled_units(
    plan: Plan, quantized: Collection[str], precision: Mapping[str, str], float_precision: str
) -> list[Unit]:
    """The units of a whole plan, the call first; arguments as of `situations`."""
    met = situations(plan, quantized, precision, float_precision)
    return [CALL_UNIT, *(unit for situation in met for unit in units_of(situation))]


def _company(operation: Operation, reads: tuple[int, ...], *, integer: bool) -> str:
    """What keeps an operation without weights from fusing with what comes before it.

    ``first`` if it reads the network's input, ``mixed`` if it is a float one that reads something quantised.
    """
    if any(place & END for place in reads):
        return "first"
    mixed = not integer and any(place & QUANTIZED for place in reads)
    return "mixed" if mixed else operation.window


def _glue(unit: str, size: str, precision: str, width: Width) -> Unit:
    return Unit(Kind(unit, "", size, precision), width, width)
