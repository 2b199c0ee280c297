"""Sibling layers merged into one: convolutions or linear layers that read the same tensor in the same way.

Their weights are joined along the output channels, so that one kernel computes what several did; the parts are split
off afterwards, or not at all where they are concatenated anyway. Runtimes fuse a layer with what follows it, not with
what stands beside it. Outputs are the same numbers; whether it is faster is for a measurement to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hwsearch.backends.rewrite import Graph

CHANNELS = {"Conv": (1,), "Gemm": (1, -1), "MatMul": (-1,)}
"""What can be merged, and the axis of its output channels."""


@dataclass(frozen=True, slots=True)
class _Sibling:
    """A layer with all that is merged with it.

    Attributes:
        node: The layer.
        inside: It, its bias and its ReLU.
        weight: Output channels first, whatever the operation's own order is.
        end: The tensor that others read.
    """

    node: onnx.NodeProto
    inside: tuple[onnx.NodeProto, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    end: str


def siblings(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """Groups of layers, by name, that `merge` can make one of; in execution order."""
    graph = Graph(model)
    found: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for node in graph.nodes:
        if node.op_type in CHANNELS and _is_plain(graph, node):
            found[_likeness(graph, node)].append(node.name)
    return [tuple(names) for names in found.values() if len(names) > 1]


def merge(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A model in which the layers of one of the `siblings` are one; the model given is left alone.

    The result computes the same, and is called after the first of them.
    """
    graph = Graph(model)
    parts = _in_order_of_concat(graph, [_sibling(graph, node) for node in graph.layers(names)])
    first = min(graph.nodes.index(part.node) for part in parts)
    gone = [node for part in parts for node in part.inside]
    joined, whole = _joined(graph, parts)
    concat = _concat_of(graph, parts)
    if concat is None:
        sizes = graph.store(f"{whole}_sizes", np.array([len(part.weight) for part in parts], dtype=np.int64))
        axis, ends = CHANNELS[parts[0].node.op_type][0], [part.end for part in parts]
        joined.append(helper.make_node("Split", [whole, sizes], ends, name=f"{parts[0].node.name}.split", axis=axis))
    else:
        start = list(concat.input).index(parts[0].end)
        concat.input[start : start + len(parts)] = [whole]
    kept = [node for node in graph.nodes[:first] if node not in gone]
    graph.nodes = [*kept, *joined, *(node for node in graph.nodes[first:] if node not in gone)]
    return graph.finish()


def _joined(graph: Graph, parts: Sequence[_Sibling]) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that compute all parts at once, and the tensor they end in."""
    model, name = parts[0].node, parts[0].node.name
    weight = np.concatenate([part.weight for part in parts])
    stored = graph.store(f"{name}.merged_weight", _as_stored(model, weight))
    given = [model.input[0], stored]
    bias = None
    if any(part.bias is not None for part in parts):
        biases = [np.zeros(len(part.weight), np.float32) if part.bias is None else part.bias for part in parts]
        bias = graph.store(f"{name}.merged_bias", np.concatenate(biases))
    nodes = [helper.make_node(model.op_type, given, [f"{name}_merged"], name=name)]
    nodes[0].attribute.extend(model.attribute)
    if bias is not None and model.op_type == "MatMul":
        nodes.append(helper.make_node("Add", [f"{name}_merged", bias], [f"{name}_biased"], name=f"{name}.merged_add"))
    elif bias is not None:
        nodes[0].input.append(bias)
    if parts[0].inside[-1].op_type == "Relu":
        nodes.append(
            helper.make_node("Relu", [nodes[-1].output[0]], [f"{name}_merged_relu"], name=f"{name}.merged_relu")
        )
    return nodes, nodes[-1].output[0]


def _sibling(graph: Graph, node: onnx.NodeProto) -> _Sibling:
    place = graph.bias(node)
    inside = [node] if place is None or place[0] is node else [node, place[0]]
    end = graph.folded_output(node)
    if end != inside[-1].output[0]:
        inside.append(graph.producer[end])
    weight = graph.constant(node.input[1], node.name)
    bias = None if place is None else graph.constant(place[0].input[place[1]], node.name)
    return _Sibling(node, tuple(inside), _as_stored(node, weight), bias, end)


def _as_stored(node: onnx.NodeProto, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the operation's own order of axes to output channels first, and back."""
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
    return np.ascontiguousarray(weight.T) if transposed else weight


def _is_plain(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether weight and bias are constants of the usual form, and only a ReLU is fused with it if anything is."""
    dims = [len(graph.initializers[name].dims) if name in graph.initializers else None for name in node.input[1:3]]
    if dims[0] is None or (node.op_type != "Conv" and dims[0] != 2) or dims[1:] not in ([], [1]):
        return False
    factors = (_attribute(node, "group", 1), _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0))
    return factors == (1, 1.0, 1.0) and _activation(graph, node) in (None, "Relu")


def _likeness(graph: Graph, node: onnx.NodeProto) -> tuple[object, ...]:
    """Equal for layers that one kernel can compute."""
    attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
    kernel = tuple(graph.initializers[node.input[1]].dims[2:])
    return node.op_type, node.input[0], attributes, kernel, _activation(graph, node)


def _activation(graph: Graph, node: onnx.NodeProto) -> str | None:
    place = graph.bias(node)
    plain = (node if place is None else place[0]).output[0]
    end = graph.folded_output(node)
    return None if end == plain else str(graph.producer[end].op_type)


def _in_order_of_concat(graph: Graph, parts: list[_Sibling]) -> list[_Sibling]:
    """In the order in which one concatenation reads them all; as they are if there is none."""
    readers = [graph.consumers[part.end] for part in parts]
    if all(len(found) == 1 and found[0].op_type == "Concat" and found[0] is readers[0][0] for found in readers):
        return sorted(parts, key=lambda part: list(readers[0][0].input).index(part.end))
    return parts


def _concat_of(graph: Graph, parts: Sequence[_Sibling]) -> onnx.NodeProto | None:
    """The concatenation that reads nothing between the parts, which nobody else reads; else None."""
    readers = graph.consumers[parts[0].end]
    ends = [part.end for part in parts]
    if any(graph.consumers[end] != readers or end in graph.outputs for end in ends) or len(readers) != 1:
        return None
    (reader,) = readers
    if reader.op_type != "Concat" or _attribute(reader, "axis", None) not in CHANNELS[parts[0].node.op_type]:
        return None
    inputs = list(reader.input)
    start = inputs.index(ends[0])
    return reader if inputs[start : start + len(ends)] == ends else None


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
