"""Micro-models: short stretches of a network, repeated, so that each unit runs in the company it keeps.

A network is cut where a single tensor is all that flows on: between residual blocks, between the layers of a plain
chain. A stretch of consecutive pieces becomes a model of its own; if it ends in the shape it began with it is repeated.
Every copy has its own weights, as the layers of a real network do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from hwsearch.backends.rewrite import ACTIVATIONS
from hwsearch.latency.kernels import MOVES
from hwsearch.latency.plan import Shapes
from hwsearch.types import TensorRange

OPSET = 20
LARGEST = 4.0
KEEPS_SIGN = MOVES | {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes between two cuts, the tensor they read and the tensor they leave."""

    nodes: tuple[onnx.NodeProto, ...]
    reads: str
    writes: str


@dataclass(frozen=True, slots=True)
class MicroModel:
    """A float model to measure.

    Attributes:
        skeleton: The model without its constants; input ``input``, output ``output``.
        constants: What it reads by name; the tensors themselves are named as in the network.
        layers: Layer of the model -> layer of the network it is a copy of.
        shapes: Of every tensor, batch first.
        ranges: A plausible range for every tensor; what matters is which of them hold nothing negative.
    """

    skeleton: onnx.ModelProto
    constants: dict[str, TensorProto]
    layers: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    ranges: dict[str, TensorRange]

    def model(self) -> onnx.ModelProto:
        """The model with its constants."""
        complete = onnx.ModelProto()
        complete.CopyFrom(self.skeleton)
        complete.graph.initializer.extend(_renamed(tensor, name) for name, tensor in self.constants.items())
        return complete


def pieces(graph: onnx.GraphProto, layers: Collection[str]) -> list[Piece]:
    """The graph cut wherever one tensor is all that flows on, with at least one layer in every piece."""
    constants = {tensor.name for tensor in graph.initializer}
    nodes = list(graph.node)
    found: list[Piece] = []
    start, reads = 0, graph.input[0].name
    for i, writes in _cuts(graph, constants):
        if not any(node.name in layers for node in nodes[start : i + 1]):
            continue
        if not any(node.name in layers for node in nodes[i + 1 :]):
            break
        found.append(Piece(tuple(nodes[start : i + 1]), reads, writes))
        start, reads = i + 1, writes
    return [*found, Piece(tuple(nodes[start:]), reads, graph.output[0].name)]


def _cuts(graph: onnx.GraphProto, constants: Collection[str]) -> Iterator[tuple[int, str]]:
    """Position of a node and the one tensor that anything after it reads."""
    last_reader = {name: i for i, node in enumerate(graph.node) for name in node.input}
    first_reader = {name: node for node in reversed(graph.node) for name in node.input}
    live = {graph.input[0].name}
    for i, node in enumerate(graph.node):
        live |= {name for name in node.output if name not in constants}
        live = {name for name in live if last_reader.get(name, -1) > i}
        if len(live) == 1:
            (name,) = live
            if first_reader[name].op_type not in ACTIVATIONS:
                yield i, name


def chain(
    network: onnx.GraphProto,
    constants: Mapping[str, TensorProto],
    shapes: Shapes,
    layers: Collection[str],
    parts: Sequence[Piece],
) -> MicroModel:
    """A model of `parts` one after the other; equal parts get tensors and weights of their own.

    Args:
        network: The parts come from here.
        constants: Its initialisers.
        shapes: Of its tensors.
        layers: Names of its layers.
        parts: In the order in which they run.
    """
    nodes: list[onnx.NodeProto] = []
    stored: dict[str, TensorProto] = {}
    found: dict[str, str] = {}
    all_shapes: dict[str, tuple[int, ...]] = {}
    ranges: dict[str, TensorRange] = {}
    network_ranges = plausible_ranges(network)
    tensor = "input"
    for i, part in enumerate(parts):
        last = i + 1 == len(parts)
        names = {part.reads: tensor, part.writes: "output" if last else f"{i}/{part.writes}"}
        tensor = names[part.writes]
        for node in part.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{i}/{node.name}"
            copy.input[:] = [names.setdefault(name, f"{i}/{name}") if name else "" for name in node.input]
            copy.output[:] = [names.setdefault(name, f"{i}/{name}") for name in node.output]
            nodes.append(copy)
            if node.name in layers:
                found[copy.name] = node.name
        stored |= {new: constants[name] for name, new in names.items() if name in constants}
        all_shapes |= {new: tuple(shapes[name]) for name, new in names.items() if name in shapes}
        ranges |= {new: network_ranges[name] for name, new in names.items() if name in network_ranges}
    return MicroModel(_skeleton(nodes, all_shapes), stored, found, all_shapes, ranges)


def plausible_ranges(graph: onnx.GraphProto) -> dict[str, TensorRange]:
    """A range for every activation tensor: from 0 after a ReLU and whatever keeps the sign, else symmetric.

    Runtimes drop a ReLU before a quantiser that starts at zero, so this much must be true to life.
    """
    positive: set[str] = set()
    names = [graph.input[0].name]
    for node in graph.node:
        names += node.output
        inputs = [name for name in node.input if name in names]
        if node.op_type in ACTIVATIONS or (node.op_type in KEEPS_SIGN and positive.issuperset(inputs)):
            positive.update(node.output)
    return {name: TensorRange(low=0.0 if name in positive else -LARGEST, high=LARGEST) for name in names}


def repeatable(shapes: Shapes, parts: Sequence[Piece]) -> bool:
    """Whether the last part leaves what the first one reads, so that they can be run again."""
    return tuple(shapes[parts[0].reads]) == tuple(shapes[parts[-1].writes])


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _skeleton(nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shapes[name][1:]]) for name in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "micro", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
