"""Attention heads as channels that can be pruned, found on the exported graph.

A head is one slice of the product of queries and keys: some output entries of the layers that make queries, keys and
values, and some input entries of the layer behind the attention. Which ones is not derived from the reshapes and
transposes between but seen, by sending numbered entries through them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hwsearch.model.template import Template

MOVES = frozenset({"Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Identity"})
"""Operations that move values without changing them."""

SCALES = frozenset({"Mul", "Div"})

HEAD_AXIS = 1
"""What goes into the products of an attention is [N, heads, ...]."""

Entries = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one attention.

    Attributes:
        writers: Layers that make queries, keys and values -> output entries of each head [heads, entries].
        reader: The layer behind the attention.
        read: Input entries of `reader` that come from each head [heads, entries].
        reshapes: Reshapes between them -> the axis of their result that counts heads.
    """

    writers: Mapping[str, Entries]
    reader: str
    read: Entries
    reshapes: Mapping[str, int]


def find_heads(template: Template) -> tuple[Heads, ...]:
    """Heads of every attention that lies between layers of the template and has more than one, in execution order."""
    graph = _Graph(template)
    found = (_heads(graph, node) for node in template.skeleton.graph.node if node.op_type == "Softmax")
    return tuple(heads for heads in found if heads is not None)


def with_free_heads(template: Template) -> Template:
    """The template with the reshapes of its attentions inferring the number of heads instead of fixing it."""
    initializers = dict(template.initializers)
    for heads in find_heads(template):
        for name, axis in heads.reshapes.items():
            shape = template.node(name).input[1]
            sizes = numpy_helper.to_array(initializers[shape]).copy() if shape in initializers else np.array([-1])
            if -1 not in sizes:
                sizes[axis] = -1
                initializers[shape] = numpy_helper.from_array(sizes, shape)
    return dataclasses.replace(template, initializers=initializers)


# --------------------------------------------------------------------------- one attention


@dataclass(frozen=True, slots=True)
class _Way:
    """From the result of `layer` to an attention, or from there to the input of `layer`: only moves and scales."""

    layer: str
    start: str
    nodes: Sequence[onnx.NodeProto]
    end: str


class _Graph:
    """A template, indexed by tensor."""

    def __init__(self, template: Template) -> None:
        self.shapes = template.shapes()
        self._template = template
        self._writers = {template.result(layer): layer for layer in template.layers}
        nodes = template.skeleton.graph.node
        self._producer = {name: node for node in nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def product_before(self, tensor: str) -> onnx.NodeProto | None:
        """The product of two tensors behind which there are only scales and masks before `tensor`."""
        node = self._producer.get(tensor)
        while node is not None and node.op_type in {*SCALES, "Add"}:
            node = self._producer.get(self._moved(node))
        return node if node is not None and node.op_type == "MatMul" else None

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor."""
        readers = self._readers.get(tensor, [])
        return readers[0] if len(readers) == 1 else None

    def back(self, tensor: str) -> _Way | None:
        """From the layer that makes a tensor."""
        nodes: list[onnx.NodeProto] = []
        start = tensor
        while start not in self._writers:
            node = self._producer.get(start)
            if node is None or node.op_type not in MOVES | SCALES:
                return None
            nodes.insert(0, node)
            start = self._moved(node)
        return _Way(self._writers[start], start, nodes, tensor)

    def ahead(self, tensor: str) -> _Way | None:
        """To the layer that alone reads a tensor."""
        nodes: list[onnx.NodeProto] = []
        end = tensor
        while (node := self.only_reader(end)) is not None and node.op_type in MOVES | SCALES:
            nodes.append(node)
            end = node.output[0]
        if node is None or node.name not in self._template.layers:
            return None
        return _Way(node.name, tensor, nodes, end)

    def send(self, way: _Way, axis: int) -> dict[str, Entries]:
        """What each node of a way gives, and its start, when every value there is the value's index along `axis`."""
        shape = self.shapes[way.start]
        along = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
        start = np.broadcast_to(np.arange(shape[axis], dtype=np.float32).reshape(along), shape)
        nodes = self._needed(way)
        written = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in node.input if name} - written
        # What is read besides is only asked for its size.
        fed = {name: np.zeros(self.shapes[name], np.float32) for name in read if not self._is_constant(name)}
        fed[way.start] = start
        outputs = [node.output[0] for node in way.nodes]
        graph = helper.make_graph(
            nodes,
            "way",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in fed.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [self._template.initializers[name] for name in read if self._is_constant(name)],
        )
        model = helper.make_model(graph, opset_imports=self._template.skeleton.opset_import)
        found = ReferenceEvaluator(model).run(outputs, fed) if outputs else []
        tensors = {way.start: start, **dict(zip(outputs, found, strict=True))}
        return {name: tensor.astype(np.int64) for name, tensor in tensors.items()}

    def _needed(self, way: _Way) -> list[onnx.NodeProto]:
        """The nodes of a way without its scales, and those that compute the sizes they ask for."""
        scales = {node.name: self._moved(node) for node in way.nodes if node.op_type in SCALES}
        found: set[str] = set()
        waiting = [way.end]
        while waiting:
            name = waiting.pop()
            node = self._producer.get(name)
            if node is None or node.name in found or name == way.start:
                continue
            found.add(node.name)
            waiting += [scales[node.name]] if node.name in scales else [] if node.op_type == "Shape" else node.input
        return [
            helper.make_node("Identity", [scales[node.name]], node.output) if node.name in scales else node
            for node in self._template.skeleton.graph.node
            if node.name in found
        ]

    def _moved(self, node: onnx.NodeProto) -> str:
        """What a node moves or scales: of the inputs of a scale or mask the one as large as the result."""
        if node.op_type in MOVES:
            return str(node.input[0])
        shape = self.shapes.get(node.output[0])
        return next((name for name in node.input if self.shapes.get(name) == shape), "")

    def _is_constant(self, name: str) -> bool:
        return name in self._template.initializers


def _heads(graph: _Graph, softmax: onnx.NodeProto) -> Heads | None:
    """The heads around a softmax, if all that lies there has the known form."""
    scores, mixed = graph.product_before(softmax.input[0]), graph.only_reader(softmax.output[0])
    if scores is None or mixed is None or mixed.op_type != "MatMul" or mixed.input[0] != softmax.output[0]:
        return None
    shape = graph.shapes.get(mixed.output[0], ())
    before = [graph.back(name) for name in (*scores.input, mixed.input[1])]
    ahead = graph.ahead(mixed.output[0])
    if len(shape) != 4 or shape[HEAD_AXIS] < 2 or ahead is None or None in before:
        return None
    count = shape[HEAD_AXIS]
    writers: dict[str, Entries] = {}
    reshapes: dict[str, int] = {}
    for way in (way for way in before if way is not None):
        seen = graph.send(way, axis=-1)
        entries = _by_head(seen[way.end], count)
        if entries is None:
            return None
        writers[way.layer] = np.concatenate([*([writers[way.layer]] if way.layer in writers else []), entries], axis=1)
        reshapes |= _head_axes(way, seen, entries)
    seen = graph.send(ahead, axis=HEAD_AXIS)
    reshapes |= _head_axes(ahead, seen, np.arange(count)[:, None])
    order = seen[ahead.end].reshape(-1, seen[ahead.end].shape[-1])[0]
    if np.unique(np.bincount(order)).size != 1:
        return None
    return Heads(writers, ahead.layer, np.argsort(order, kind="stable").reshape(count, -1), reshapes)


def _by_head(numbers: Entries, heads: int) -> Entries | None:
    """Values of a tensor for each position on its head axis [heads, values], if they are as many and none is shared."""
    if numbers.ndim != 4 or numbers.shape[HEAD_AXIS] != heads:
        return None
    found = [np.unique(head) for head in np.moveaxis(numbers, HEAD_AXIS, 0)]
    size = np.unique(numbers).size
    return np.stack(found) if all(len(values) * heads == size for values in found) else None


def _head_axes(way: _Way, seen: Mapping[str, Entries], entries: Entries) -> dict[str, int]:
    """Reshape -> the axis of its result along which the first two heads lie apart."""
    found = {}
    for node in way.nodes:
        numbers = seen[node.output[0]]
        first, second = (_places(numbers, head) for head in entries[:2])
        apart = [axis for axis in range(numbers.ndim) if first[axis] != second[axis]]
        if node.op_type == "Reshape" and len(apart) == 1:
            found[node.name] = apart[0]
    return found


def _places(numbers: Entries, values: Entries) -> list[list[int]]:
    """Axis -> where along it some values occur."""
    return [np.unique(places).tolist() for places in np.nonzero(np.isin(numbers, values))]
