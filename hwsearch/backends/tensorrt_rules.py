"""What TensorRT's ONNX parser and strongly typed networks demand of a file, checked without TensorRT.

The rules are those of NVIDIA's documentation on explicit quantisation and of its ONNX parser. A file that breaks none
may still hold an operator or a shape that a given version cannot build: the builder has the last word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from hwsearch.backends.base import Violation
from hwsearch.backends.qdq import output_axis

OPSETS = range(9, 26)
"""Operator sets the parsers of TensorRT 10.16 and 11 read."""

INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
"""Quantised operators of ONNX that the parser does not know."""

BIASED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operators with a bias -> its input."""

STORED: dict[int, int] = {
    TensorProto.INT8: 13,
    TensorProto.FLOAT8E4M3FN: 19,
    TensorProto.INT4: 21,
    TensorProto.FLOAT4E2M1: 23,
}
"""Stored types TensorRT takes -> first operator set that has them (for int8: with one scale per channel)."""

WEIGHTS_ONLY = frozenset({TensorProto.INT4})

_REFUSED = frozenset({TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT4})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})


def violations(model: onnx.ModelProto) -> tuple[Violation, ...]:
    """Every rule a model breaks, in execution order; empty if TensorRT should take it."""
    facts = _Facts(model)
    found = list(_of_model(facts))
    for node in model.graph.node:
        if node.op_type in INTEGER_OPERATORS:
            found.append(_violation(node, "quantise/dequantise pairs only", f"{node.op_type} is not parsed"))
        elif node.domain not in facts.opsets or node.domain not in ("", "ai.onnx"):
            found.append(_violation(node, "ONNX operators only", f"domain `{node.domain}` is not parsed"))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _of_quantiser(node, facts)
        else:
            found += _of_operator(node, facts)
    return tuple(found)


class _Facts:
    """What the rules ask of a model: constants, producers, readers and element types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = self.opsets.get("", self.opsets.get("ai.onnx", 0))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.borders = {value.name for value in (*graph.input, *graph.output)}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self.types = _types(model)

    def value(self, name: str) -> NDArray[Any] | None:
        """A constant tensor's value; None if it is computed."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            return next((numpy_helper.to_array(entry.t) for entry in node.attribute if entry.name == "value"), None)
        return None

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is a constant, or computed by quantise and dequantise nodes from one."""
        while (node := self.producer.get(name)) is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = node.input[0]
        return self.value(name) is not None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        graph = shape_inference.infer_shapes(model).graph
    except (shape_inference.InferenceError, ValueError):
        graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _of_model(facts: _Facts) -> Iterator[Violation]:
    if facts.opset not in OPSETS:
        yield Violation(
            node="", rule=f"operator set {OPSETS[0]} to {OPSETS[-1]}", detail=f"the model declares {facts.opset}"
        )
    for name, kind in facts.types.items():
        owner = facts.producer.get(name) or next(iter(facts.readers[name]), None)
        allowed = kind not in _REFUSED or (kind == TensorProto.UINT8 and name in facts.borders)
        if owner is not None and not allowed:
            rule = "no 64-bit floats and no unsigned or 16-bit integers inside the network"
            yield _violation(owner, rule, f"`{name}` is {_name(kind)}")


def _of_operator(node: onnx.NodeProto, facts: _Facts) -> Iterator[Violation]:
    place = BIASED.get(node.op_type)
    bias = node.input[place] if place is not None and len(node.input) > place else None
    source = facts.producer.get(bias) if bias else None
    if source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield _violation(node, "biases stay in floating point", f"`{bias}` comes from {source.op_type}")
    schema = defs.get_schema(node.op_type, min(facts.opset, defs.onnx_opset_version()), "")
    bound: dict[str, str] = {}
    for index, name in enumerate(node.input):
        kind = facts.types.get(name, TensorProto.UNDEFINED)
        variable = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        if kind not in _FLOATS or "(" in variable:
            continue
        first = bound.setdefault(variable, name)
        if facts.types[first] != kind:
            detail = f"`{first}` is {_name(facts.types[first])} and `{name}` is {_name(kind)}"
            yield _violation(node, "inputs of one operation have one type", detail)


def _of_quantiser(node: onnx.NodeProto, facts: _Facts) -> Iterator[Violation]:
    stored = _stored_type(node, facts)
    weight = facts.is_weight(node.input[0])
    scale = facts.value(node.input[1])
    if stored == TensorProto.INT32:
        yield _violation(node, "biases stay in floating point", f"`{node.input[0]}` is int32")
    elif stored not in STORED:
        allowed = ", ".join(_name(kind) for kind in STORED)
        yield _violation(node, f"stored values are {allowed}", f"found {_name(stored)}")
    elif facts.opset < STORED[stored]:
        rule = f"{_name(stored)} needs operator set {STORED[stored]}"
        yield _violation(node, rule, f"the model declares {facts.opset}")
    elif stored in WEIGHTS_ONLY and not weight:
        yield _violation(node, f"{_name(stored)} is for weights only", f"`{node.input[0]}` is an activation")
    yield from _of_zero_point(node, facts)
    if scale is None:
        yield _violation(node, "scales are constants", f"`{node.input[1]}` is computed")
    elif not (np.isfinite(scale.astype(np.float64)) & (scale.astype(np.float64) > 0)).all():
        yield _violation(node, "scales are positive", f"`{node.input[1]}` holds {float(scale.min()):g}")
    elif scale.size > 1:
        yield from _of_axis(node, scale, facts, weight=weight)


def _of_zero_point(node: onnx.NodeProto, facts: _Facts) -> Iterator[Violation]:
    if len(node.input) < 3 or not node.input[2]:
        return
    zero = facts.value(node.input[2])
    if zero is None:
        yield _violation(node, "zero points are constants", f"`{node.input[2]}` is computed")
    elif np.any(zero.astype(np.float64) != 0):
        yield _violation(node, "zero points are 0", f"`{node.input[2]}` holds {float(zero.astype(np.float64).max()):g}")


def _of_axis(node: onnx.NodeProto, scale: NDArray[Any], facts: _Facts, *, weight: bool) -> Iterator[Violation]:
    """Several scales: for weights only, along the output channels or in blocks."""
    if not weight:
        yield _violation(node, "one scale per activation tensor", f"`{node.input[1]}` holds {scale.size}")
        return
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if attributes.get("block_size"):
        return
    axis = attributes.get("axis", 1)
    for reader in facts.readers[node.output[0]]:
        if reader.op_type in ("Conv", "ConvTranspose", "Gemm") and axis != output_axis(reader):
            rule = "scales of a weight follow its output channels"
            yield _violation(node, rule, f"axis {axis} of the weight of `{reader.name}`, not {output_axis(reader)}")


def _stored_type(node: onnx.NodeProto, facts: _Facts) -> int:
    if node.op_type == "DequantizeLinear":
        return facts.types.get(node.input[0], TensorProto.UNDEFINED)
    if len(node.input) > 2 and node.input[2]:
        return facts.types.get(node.input[2], TensorProto.UNDEFINED)
    named = next((entry.i for entry in node.attribute if entry.name == "output_dtype"), 0)
    return int(named) or int(TensorProto.UINT8)


def _violation(node: onnx.NodeProto, rule: str, detail: str) -> Violation:
    return Violation(node=node.name or node.output[0], rule=rule, detail=detail)


def _name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
