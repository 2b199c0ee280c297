"""A model being rewritten: find layers and tensors, insert nodes, store constants. Knows no number format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwsearch.errors import EvaluationError

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operations that runtimes fold into the convolution, addition or product before them."""

BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operations whose third input is a bias."""


class Graph:
    """A private copy of a model, indexed by tensor, that collects rewrites until `finish`.

    Args:
        model: Is left alone.
        constants: Initialisers that are kept outside the model.
    """

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto] | None = None) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.initializers = {**(constants or {}), **{tensor.name: tensor for tensor in graph.initializer}}
        self.inputs = [value.name for value in graph.input if value.name not in self.initializers]
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
        self._first: list[onnx.NodeProto] = []
        self._after: dict[str, Sequence[onnx.NodeProto]] = {}

    def layers(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """Nodes of these layers, in execution order.

        Raises:
            EvaluationError: the model has no such node.
        """
        wanted = set(names)
        found = [node for node in self.nodes if node.name in wanted]
        missing = wanted - {node.name for node in found}
        if missing:
            raise invalid(f"the model has no layer `{min(missing)}`")
        return found

    def folded_output(self, node: onnx.NodeProto) -> str:
        """The tensor that the kernel of `node` writes: past the bias and the activation that only it feeds."""
        place = self.bias(node)
        name: str = (node if place is None else place[0]).output[0]
        reader = self._only_reader(name)
        return str(reader.output[0]) if reader is not None and reader.op_type in ACTIVATIONS else name

    def bias(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
        """Where a layer's constant bias is read: node and input; for a MatMul the addition that only it feeds."""
        if node.op_type == "MatMul":
            reader = self._only_reader(node.output[0])
            if reader is None or reader.op_type != "Add":
                return None
            index = 1 - list(reader.input).index(node.output[0])
            return (reader, index) if self._is_vector(reader.input[index]) else None
        return (node, 2) if node.op_type in BIASED and len(node.input) > 2 and node.input[2] else None

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def _is_vector(self, name: str) -> bool:
        return name in self.initializers and len(self.initializers[name].dims) == 1

    def constant(self, name: str, layer: str) -> NDArray[Any]:
        """Value of an initialiser that `layer` reads.

        Raises:
            EvaluationError: the tensor is computed, not constant.
        """
        if name not in self.initializers:
            raise invalid(f"the weight `{name}` of layer `{layer}` is not a constant of the model")
        return numpy_helper.to_array(self.initializers[name])

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Add or replace an initialiser; its name."""
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def use_domain(self, domain: str, version: int) -> None:
        """Declare an operator set beside ONNX's own."""
        if domain not in {opset.domain for opset in self.model.opset_import}:
            self.model.opset_import.append(helper.make_opsetid(domain, version))

    def insert_for_readers(self, name: str, make: Callable[[str, str], Sequence[onnx.NodeProto]]) -> None:
        """Put nodes on a tensor; all its readers get their result, the graph's output included.

        Args:
            name: A tensor.
            make: From the names to read and to write to the nodes, in execution order.
        """
        if name in self.outputs:
            source = f"{name}_before"
            self.insert_behind(self.producer[name], name, source, make)
            return
        target = f"{name}_after"
        self._after[name] = make(name, target)
        for node in self.consumers[name]:
            node.input[:] = [target if entry == name else entry for entry in node.input]

    def insert_behind(
        self, node: onnx.NodeProto, name: str, source: str, make: Callable[[str, str], Sequence[onnx.NodeProto]]
    ) -> None:
        """Let `node` write its output `name` as `source`, and put nodes behind that write `name` instead."""
        node.output[:] = [source if entry == name else entry for entry in node.output]
        self._after[source] = make(source, name)

    def feed(self, node: onnx.NodeProto, index: int, nodes: Sequence[onnx.NodeProto]) -> None:
        """Replace an input of `node` by the result of nodes that compute from constants only."""
        self._first += nodes
        node.input[index] = nodes[-1].output[0]

    def finish(self) -> onnx.ModelProto:
        """The rewritten model in execution order, without unread constants and the exporter's notes on its nodes."""
        ordered = list(self._first)
        for name in self.inputs:
            self._place(self._after.get(name, ()), ordered)
        self._place(self.nodes, ordered)
        graph = self.model.graph
        read = {name for node in ordered for name in node.input} | set(self.outputs)
        kept = [tensor for name, tensor in self.initializers.items() if name in read]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        for node in nodes:
            del node.metadata_props[:]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        return self.model

    def _place(self, nodes: Iterable[onnx.NodeProto], ordered: list[onnx.NodeProto]) -> None:
        for node in nodes:
            ordered.append(node)
            for name in node.output:
                self._place(self._after.get(name, ()), ordered)


def invalid(message: str) -> EvaluationError:
    """The error of a model or a request that cannot be lowered."""
    return EvaluationError(message, stage="lower", kind="invalid")
