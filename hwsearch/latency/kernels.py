"""The units a runtime compiles a network into, as far as they decide its latency.

A unit is a layer with the activation that is folded into it, any other operation, or glue: a conversion between
formats, the network's input and output, the call itself. Which tensors are quantised is asked of the backend.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx

from hwsearch.types import PRECISIONS, ChannelAxis, PruneGroup, SourceModel

FOLDED = frozenset({"Relu", "Clip"})
"""Operations that every runtime folds into the layer or the addition before them."""

LAYER_KINDS = ("conv", "depthwise", "linear")

INTEGER = "int8"
"""Format of operations without weights between quantised tensors, whatever the layers around them use."""

MOVES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
"""Operations that move values and change none: what they make of a quantised tensor is quantised alike."""

Shapes = Mapping[str, Sequence[int]]


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


@dataclass(frozen=True, slots=True)
class Operation:
    """One node of the float graph, with the activation folded into it.

    Attributes:
        name: Of the node; a layer's name if it has weights.
        unit, window, size: As in `Kind`; the size is that of the largest tensor it reads.
        reads: Tensors it computes from, constants left out.
        writes: The tensor it leaves, past the folded activation.
        outlet_size: What one channel of that tensor holds.
    """

    name: str
    unit: str
    window: str
    size: str
    reads: tuple[str, ...]
    writes: str
    inputs: Width
    outputs: Width
    outlet_size: str

    @property
    def is_layer(self) -> bool:
        """Whether it has a weight, and so a precision of its own."""
        return self.unit in LAYER_KINDS


@dataclass(frozen=True, slots=True)
class Plan:
    """A float graph as its operations, in execution order."""

    operations: tuple[Operation, ...]
    input: str
    output: str


def read_plan(model: onnx.ModelProto, layers: Collection[str], shapes: Shapes, source: SourceModel | None) -> Plan:
    """The operations of `model`.

    Args:
        model: Float graph whose layers are named; weights may be missing.
        layers: Names of its layers.
        shapes: Of all tensors, batch first.
        source: Says which widths depend on which prune group; None if all widths are what they are.
    """
    return _Reader(model.graph, frozenset(layers), shapes, source).plan()


class _Reader:
    def __init__(
        self, graph: onnx.GraphProto, layers: frozenset[str], shapes: Shapes, source: SourceModel | None
    ) -> None:
        self._graph, self._layers, self._shapes = graph, layers, shapes
        self._axes = _axes(source.groups) if source else {}
        self._all = {group.name: group.channels for group in source.groups} if source else {}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._dynamic = {graph.input[0].name}
        self._widths: dict[str, Width] = {}

    def plan(self) -> Plan:
        source = self._graph.input[0].name
        self._widths[source] = Width(self._shapes[source][1 if len(self._shapes[source]) == 4 else -1])
        folded: set[str] = set()
        operations = []
        for node in self._graph.node:
            reads = tuple(dict.fromkeys(name for name in node.input if name in self._dynamic))
            if not reads:
                continue
            self._dynamic.update(node.output)
            if node.name in folded:
                continue
            operation, activation = self._operation(node, reads)
            folded.add(activation)
            operations.append(operation)
        return Plan(operations=tuple(operations), input=source, output=self._graph.output[0].name)

    def _operation(self, node: onnx.NodeProto, reads: tuple[str, ...]) -> tuple[Operation, str]:
        activation = self._activation(node)
        writes = activation.output[0] if activation else node.output[0]
        inputs, outputs = self._channels(node, reads)
        self._widths |= dict.fromkeys((*node.output, writes), outputs)
        operation = Operation(
            name=node.name,
            unit=self._unit(node),
            window=_window(node),
            size=self._size(max(reads, key=lambda name: prod(self._shapes[name]))),
            reads=reads,
            writes=writes,
            inputs=inputs,
            outputs=outputs,
            outlet_size=self._size(writes),
        )
        return operation, activation.name if activation else ""

    def _activation(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The activation that is folded into `node`: the only reader of what it writes."""
        readers = self._readers[node.output[0]]
        foldable = node.name in self._layers or node.op_type == "Add"
        return readers[0] if foldable and len(readers) == 1 and readers[0].op_type in FOLDED else None

    def _unit(self, node: onnx.NodeProto) -> str:
        if node.name not in self._layers:
            return str(node.op_type)
        if node.op_type != "Conv":
            return "linear"
        return "depthwise" if _attribute(node, "group", 1) > 1 else "conv"

    def _channels(self, node: onnx.NodeProto, reads: tuple[str, ...]) -> tuple[Width, Width]:
        """Widths of what a node reads and writes; an operation without weights hands on what it reads."""
        if node.name not in self._layers:
            widths = [self._widths[name] for name in reads]
            joined = _joined(widths) if node.op_type == "Concat" else max(widths, key=lambda width: len(width.groups))
            return joined, joined
        axis = 1 if node.op_type == "Conv" else -1
        outputs = self._layer_width(node.name, "out", self._shapes[node.output[0]][axis])
        if self._unit(node) == "depthwise":
            return outputs, outputs
        return self._layer_width(node.name, "in", self._shapes[node.input[0]][axis]), outputs

    def _layer_width(self, layer: str, side: str, channels: int) -> Width:
        axes = self._axes.get((layer, side), ())
        pruned = sum(group.channels * axis.repeat for group, axis in axes)
        return Width(channels - pruned, tuple((group.name, axis.repeat) for group, axis in axes))

    def _size(self, tensor: str) -> str:
        shape = self._shapes[tensor]
        if len(shape) == 4:
            return f"{shape[2]}x{shape[3]}"
        return f"{prod(shape[1:]) / max(1, self._widths[tensor].channels(self._all)):g}"


def compiled_units(
    plan: Plan, quantized: Collection[str], precision: Mapping[str, str], float_precision: str
) -> Iterator[Unit]:
    """The units of a plan under a precision per layer, in execution order; the call comes first.

    Args:
        plan: From `read_plan`.
        quantized: Tensors the backend puts a quantise/dequantise pair on.
        precision: Layer -> precision.
        float_precision: Format of everything that is not quantised.
    """
    quantized = _with_passed_on(plan, quantized)
    formats = {o.name: _format(o, quantized, precision, float_precision) for o in plan.operations}
    yield Unit(CALL, Width(1), Width(1))
    for operation in plan.operations:
        chosen = formats[operation.name]
        for tensor in operation.reads:
            if tensor == plan.input and operation.is_layer:
                yield _glue("input", operation.size, chosen, operation.inputs)
            elif tensor in quantized and not _integer(chosen):
                yield _glue("dequantize", operation.size, float_precision, operation.inputs)
        window = operation.window if operation.is_layer else _company(operation, plan, quantized, chosen)
        yield Unit(Kind(operation.unit, window, operation.size, chosen), operation.inputs, operation.outputs)
        if operation.writes == plan.output:
            yield _glue("output", operation.outlet_size, chosen, operation.outputs)
        elif operation.writes in quantized and not _integer(chosen):
            yield _glue("quantize", operation.outlet_size, float_precision, operation.outputs)


def _company(operation: Operation, plan: Plan, quantized: Collection[str], chosen: str) -> str:
    """What keeps an operation without weights from fusing with what comes before it.

    ``first`` if it reads the network's input, ``mixed`` if it is a float one that reads something quantised.
    """
    if plan.input in operation.reads:
        return "first"
    mixed = not _integer(chosen) and any(tensor in quantized for tensor in operation.reads)
    return "mixed" if mixed else operation.window


def _with_passed_on(plan: Plan, quantized: Collection[str]) -> set[str]:
    """`quantized`, and what operations that only move values make of it (a backend need not name those)."""
    found = set(quantized)
    for operation in plan.operations:
        if operation.unit in MOVES and operation.reads[0] in found and operation.writes != plan.output:
            found.add(operation.writes)
    return found


def _format(
    operation: Operation, quantized: Collection[str], precision: Mapping[str, str], float_precision: str
) -> str:
    if operation.is_layer:
        return precision[operation.name]
    enclosed = operation.writes in quantized and all(name in quantized for name in operation.reads)
    return INTEGER if enclosed else float_precision


def _integer(precision: str) -> bool:
    return PRECISIONS[precision].integer


def _glue(unit: str, size: str, precision: str, width: Width) -> Unit:
    return Unit(Kind(unit, "", size, precision), width, width)


def _joined(widths: Iterable[Width]) -> Width:
    widths = list(widths)
    return Width(sum(width.fixed for width in widths), tuple(group for width in widths for group in width.groups))


def _axes(groups: Iterable[PruneGroup]) -> dict[tuple[str, str], list[tuple[PruneGroup, ChannelAxis]]]:
    """(layer, side) -> the groups whose channels its axis counts."""
    found: dict[tuple[str, str], list[tuple[PruneGroup, ChannelAxis]]] = defaultdict(list)
    for group in groups:
        for axis in group.axes:
            found[axis.module, axis.side].append((group, axis))
    return found


def _window(node: onnx.NodeProto) -> str:
    """Kernel and stride, e.g. ``3x3/2``; empty for operations without a window."""
    kernel, strides = _attribute(node, "kernel_shape", ()), _attribute(node, "strides", ())
    stride = max(strides, default=1)
    return "x".join(map(str, kernel)) + (f"/{stride}" if stride > 1 else "")


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
