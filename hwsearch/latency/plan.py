"""Reads a float graph as operations: what each is, on which size, and which channels it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import onnx

from hwsearch.backends.flow import Flow, Step
from hwsearch.latency.kernels import Operation, Plan, Width
from hwsearch.types import ChannelAxis, PruneGroup, SourceModel

Shapes = Mapping[str, Sequence[int]]

REARRANGES = frozenset({"Reshape", "Transpose", "Expand"})
"""Operations after which the second of four axes need not count channels: it may count attention heads."""


def read_plan(
    flow: Flow, graph: onnx.GraphProto, layers: Collection[str], shapes: Shapes, source: SourceModel | None
) -> Plan:
    """The operations of a float graph.

    Args:
        flow: Of the graph.
        graph: Its layers are named; weights may be missing.
        layers: Names of its layers.
        shapes: Of all tensors, batch first.
        source: Says which widths depend on which prune group; None if all widths are what they are.
    """
    return Plan(flow, _Reader(graph, frozenset(layers), shapes, source).operations(flow))


class _Reader:
    def __init__(
        self, graph: onnx.GraphProto, layers: frozenset[str], shapes: Shapes, source: SourceModel | None
    ) -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._layers, self._shapes = layers, shapes
        self._axes = _axes(source.groups) if source else {}
        self._all = {group.name: group.channels for group in source.groups} if source else {}
        self._widths: dict[str, Width] = {}
        self._images: set[str] = set()

    def operations(self, flow: Flow) -> dict[str, Operation]:
        shape = self._shapes[flow.input]
        if len(shape) == 4:
            self._images.add(flow.input)
        self._widths[flow.input] = Width(shape[1 if len(shape) == 4 else -1])
        return {step.name: self._operation(step) for step in flow.steps}

    def _operation(self, step: Step) -> Operation:
        inputs, outputs = self._channels(step)
        self._widths |= dict.fromkeys((step.writes, step.leaves), outputs)
        if (
            len(self._shapes[step.leaves]) == 4
            and step.op not in REARRANGES
            and not self._images.isdisjoint(step.reads)
        ):
            self._images.update((step.writes, step.leaves))
        return Operation(
            unit=self._unit(step),
            window=_window(self._nodes[step.name]),
            size=self._size(max(step.reads, key=lambda name: prod(self._shapes[name]))),
            inputs=inputs,
            outputs=outputs,
            outlet_size=self._size(step.leaves),
        )

    def _unit(self, step: Step) -> str:
        if step.name not in self._layers:
            return step.op
        if step.op != "Conv":
            return "linear"
        return "depthwise" if _attribute(self._nodes[step.name], "group", 1) > 1 else "conv"

    def _channels(self, step: Step) -> tuple[Width, Width]:
        """Widths of what a step reads and leaves; an operation without weights hands on what it reads."""
        if step.name not in self._layers:
            widths = [self._widths[name] for name in step.reads]
            joined = _joined(widths) if step.op == "Concat" else max(widths, key=lambda width: len(width.groups))
            return joined, joined
        axis = 1 if step.op == "Conv" else -1
        outputs = self._layer_width(step.name, "out", self._shapes[step.writes][axis])
        if self._unit(step) == "depthwise":
            return outputs, outputs
        return self._layer_width(step.name, "in", self._shapes[step.reads[0]][axis]), outputs

    def _layer_width(self, layer: str, side: str, channels: int) -> Width:
        axes = self._axes.get((layer, side), ())
        pruned = sum(group.channels * axis.repeat for group, axis in axes)
        return Width(channels - pruned, tuple((group.name, axis.repeat) for group, axis in axes))

    def _size(self, tensor: str) -> str:
        shape = self._shapes[tensor]
        if tensor in self._images:
            return f"{shape[2]}x{shape[3]}"
        return f"{prod(shape[1:]) / max(1, self._widths[tensor].channels(self._all)):g}"


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
