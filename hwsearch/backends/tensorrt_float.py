"""fp16 and bf16 by explicit conversion: strongly typed networks compute in the types they are written in.

Which inputs of an operator share its type is read from ONNX's own schemas. Operations that lose accuracy in 16 bits
stay in fp32, between casts; so do the network's input and output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from hwsearch.backends.rewrite import invalid
from hwsearch.types import PRECISIONS

SENSITIVE = frozenset(
    {
        *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *(
            "BatchNormalization",
            "LpNormalization",
            "ReduceMean",
            "ReduceSum",
            "ReduceSumSquare",
            "ReduceL1",
            "ReduceL2",
        ),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum"),
    }
)
"""Operations kept in fp32: sums over many values, and functions that overflow or cancel in 16 bits."""

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

OPSETS = {TensorProto.BFLOAT16: 22, TensorProto.INT4: 21, TensorProto.FLOAT8E4M3FN: 19}
"""Type -> first operator set whose convolutions, poolings and quantisers take it."""

_NAMES: dict[int, str] = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "FLOAT16", TensorProto.BFLOAT16: "BFLOAT16"}
_LARGEST_FP16 = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Float format of every node: `rest`, unless `own` names it."""

    rest: str
    own: Mapping[str, str] = field(default_factory=dict)

    def of(self, node: str) -> str:
        """Format of the node called `node`."""
        return self.own.get(node, self.rest)


def float_formats(precision: Mapping[str, str]) -> Formats:
    """The float format of each layer: its own if it asks for one; else the narrowest of those asked for, or fp32.

    Weight-only int4 needs 16-bit activations: fp16, unless the rest is bf16. tf32 is stored as fp32.
    """
    floats = {layer: _stored(name) for layer, name in precision.items() if not PRECISIONS[name].integer}
    rest = min(floats.values(), key=lambda name: PRECISIONS[name].weight_bits, default="fp32")
    half = "fp16" if rest == "fp32" else rest
    for layer in (layer for layer, name in precision.items() if name == "w4a16"):
        floats |= {layer: half, f"{layer}.weight_dequantize": half}
    return Formats(rest=rest, own=floats)


def convert(model: onnx.ModelProto, formats: Formats) -> onnx.ModelProto:
    """`model`, changed in place, with every node in its float format and casts where formats meet.

    Raises:
        EvaluationError: a constant is too large for fp16, or the graph has subgraphs.
    """
    opset = raise_opset(model, formats)
    conversion = _Conversion(model.graph, opset, formats)
    for node in model.graph.node:
        conversion.add(node)
    conversion.finish()
    return model


def raise_opset(model: onnx.ModelProto, formats: Formats) -> int:
    """Declare the first operator set that has all types in use; its number."""
    types = {tensor.data_type for tensor in model.graph.initializer} | {TYPES[name] for name in _in_use(formats)}
    needed = max((version for kind, version in OPSETS.items() if kind in types), default=0)
    entry = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if needed > entry.version:
        if any(node.op_type == "GroupNormalization" for node in model.graph.node):
            raise invalid(f"GroupNormalization changed between operator sets {entry.version} and {needed}")
        entry.version = needed
        model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    return int(entry.version)


def _in_use(formats: Formats) -> set[str]:
    return {formats.rest, *formats.own.values()}


def _stored(name: str) -> str:
    return "fp32" if name == "tf32" else name


class _Conversion:
    """A graph being rewritten node by node, in execution order."""

    def __init__(self, graph: onnx.GraphProto, opset: int, formats: Formats) -> None:
        self._graph, self._opset, self._formats = graph, opset, formats
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self._nodes: list[onnx.NodeProto] = []
        self._casts: dict[tuple[str, int], str] = {}
        self._renamed: dict[str, str] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Take over one node, with its inputs cast and the types of its outputs noted."""
        if any(entry.type == onnx.AttributeProto.GRAPH for entry in node.attribute):
            raise invalid(f"`{node.name}` holds a subgraph, which cannot be converted to 16 bits")
        schema = defs.get_schema(node.op_type, self._opset, node.domain)
        wanted = self._wanted(node, schema)
        bound: dict[str, int] = {}
        for index, name in enumerate(node.input):
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            kind = self._types.get(name, TensorProto.UNDEFINED)
            if kind in _NAMES and _is_variable(formal.type_str):
                node.input[index] = self._as(name, wanted)
                kind = wanted
            bound.setdefault(formal.type_str, kind)
        self._nodes.append(node)
        for index, name in enumerate(node.output):
            self._write(node, index, name, _output_type(node, schema, index, bound))

    def finish(self) -> None:
        """Put the nodes and the constants still read into the graph."""
        read = {name for node in self._nodes for name in node.input} | self._outputs
        kept = [tensor for name, tensor in self._constants.items() if name in read]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)

    def _wanted(self, node: onnx.NodeProto, schema: Any) -> int:
        """The float type a node computes in; fp32 where the operator has no other."""
        kind = TYPES["fp32" if node.op_type in SENSITIVE else self._formats.of(node.name)]
        allowed = f"tensor({TensorProto.DataType.Name(kind).lower()})"
        variables = {
            formal.type_str
            for name, formal in zip(node.input, _formals(node, schema), strict=True)
            if self._types.get(name) in _NAMES and _is_variable(formal.type_str)
        }
        constraints = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        return kind if all(allowed in constraints[name] for name in variables) else TensorProto.FLOAT

    def _as(self, name: str, kind: int) -> str:
        """The name under which tensor `name` can be read as `kind`; casts are shared between readers."""
        source = self._renamed.get(name, name)
        if self._types[name] == kind:
            return source
        key = name, kind
        if key not in self._casts:
            target = f"{name}_{_NAMES[kind].lower()}"
            self._casts[key] = target
            if name in self._constants:
                self._constants[target] = _converted(self._constants[name], target, kind)
            else:
                self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind))
            self._types[target] = kind
        return self._casts[key]

    def _write(self, node: onnx.NodeProto, index: int, name: str, kind: int) -> None:
        self._types[name] = kind
        if name not in self._outputs or kind not in _NAMES or kind == TensorProto.FLOAT:
            return
        node.output[index] = self._renamed[name] = f"{name}_{_NAMES[kind].lower()}"
        cast = helper.make_node("Cast", [node.output[index]], [name], name=f"{name}_cast", to=TensorProto.FLOAT)
        self._nodes.append(cast)


def _formals(node: onnx.NodeProto, schema: Any) -> list[Any]:
    """The schema's entry for each input; the last one repeats."""
    return [schema.inputs[min(index, len(schema.inputs) - 1)] for index in range(len(node.input))]


def _is_variable(type_name: str) -> bool:
    return "(" not in type_name


def _output_type(node: onnx.NodeProto, schema: Any, index: int, bound: Mapping[str, int]) -> int:
    """Element type of an output; UNDEFINED where it does not matter here, as for shapes."""
    if node.op_type == "Cast":
        return int(next(entry.i for entry in node.attribute if entry.name == "to"))
    if node.op_type == "Constant":
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        return TensorProto.FLOAT if value is None else int(value.data_type)
    formal = schema.outputs[min(index, len(schema.outputs) - 1)]
    return bound.get(formal.type_str, TensorProto.UNDEFINED)


def _converted(tensor: onnx.TensorProto, name: str, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    if kind == TensorProto.FLOAT16 and values.size and (largest := float(np.abs(values).max())) > _LARGEST_FP16:
        raise invalid(f"`{tensor.name}` holds {largest:g}, beyond what fp16 can represent: use bf16 or fp32")
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
