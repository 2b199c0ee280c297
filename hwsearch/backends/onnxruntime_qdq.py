"""Where ONNX Runtime's CPU kernels want quantise/dequantise pairs.

uint8 activations with int8 per-channel weights and int32 biases. Kernels such as QLinearConv exist only between
quantised tensors, so an int8 convolution's output is quantised too, past the ReLU that ends it. Operations without
weights go along in int8 when everything they read already is. Every reader of a quantised tensor gets the dequantised
values: one reader left on the float tensor keeps the producer from fusing (15 % slower on average, 35 % at worst).
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx
from onnx import helper

from hwsearch.backends.flow import Flow, read_flow
from hwsearch.backends.qdq import (
    asymmetric,
    check_precisions,
    int8_layers,
    quantize_activation,
    quantize_layer,
    range_of,
)
from hwsearch.backends.rewrite import Graph, invalid
from hwsearch.types import TensorRange

PRECISIONS = ("fp32", "int8")

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
"""Layers whose int8 kernel writes int8; that of a matrix product can write floats, if no activation follows."""

WEIGHTED = frozenset({*CONVOLUTIONS, "Gemm", "MatMul"})
"""Operations that may have a weight."""

KEEPS_SCALE = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Operations that move values without changing them: their output is quantised like their input."""

RESCALES = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
"""Operations with an int8 kernel that computes new values: their output has a range of its own."""

_CONTRIB = "com.microsoft"


def quantized_tensors(flow: Flow, layers: Container[str]) -> dict[str, str]:
    """Tensors to quantise when `layers` are int8 -> the tensor whose observed range each takes."""
    found: dict[str, str] = {}
    for step in flow.steps:
        if step.name in layers:
            found[step.reads[0]] = step.reads[0]
            if step.op in CONVOLUTIONS or step.activated:
                found[step.leaves] = step.leaves
    for step in flow.steps:
        if step.op in KEEPS_SCALE and step.reads[0] in found and step.writes != flow.output:
            found[step.writes] = found[step.reads[0]]
        elif step.op in RESCALES and not step.constants and found.keys() >= set(step.reads):
            found.setdefault(step.leaves, step.leaves)
    return found


def observed_tensors(flow: Flow, precision: Mapping[str, str]) -> set[str]:
    """Tensors whose ranges `lower` needs."""
    return set(quantized_tensors(flow, frozenset(int8_layers(precision))).values())


def lower(
    model: onnx.ModelProto, precision: Mapping[str, str], ranges: Mapping[str, TensorRange], *, levels: int
) -> onnx.ModelProto:
    """A copy of `model` with quantise/dequantise pairs.

    Args:
        model: Float model whose nodes are named after the layers.
        precision: Layer -> ``fp32`` or ``int8``.
        ranges: Of the tensors named by `observed_tensors`.
        levels: Largest stored weight: 127, or 64 on chips that sum products in 16 bits.

    Raises:
        EvaluationError: an unknown precision, a layer or range that is missing, or a range that is not finite.
    """
    check_precisions(precision, PRECISIONS, "onnxruntime")
    graph = Graph(model)
    layers = int8_layers(precision)
    tensors = quantized_tensors(read_flow(graph), layers)
    quantizers = {name: asymmetric(range_of(ranges, owner)) for name, owner in tensors.items()}
    keep_float(graph, quantizers, layers)
    for node in graph.layers(layers):
        quantize_layer(graph, node, levels, quantizers[node.input[0]].scale)
    for name, quantizer in quantizers.items():
        quantize_activation(graph, name, quantizer)
    return graph.finish()


def keep_float(graph: Graph, quantized: Container[str], int8: Container[str]) -> None:
    """Write float layers that read a quantised tensor as the runtime's own fused operators.

    Its `WeightBiasQuantization` pass rounds the weights of any other Conv or Gemm behind a DequantizeLinear to int8
    with one scale per tensor, unasked, and it turns MatMul and Add into Gemm. The fused operators compute the same, as
    fast, and are left alone.
    """
    for node in graph.nodes:
        if node.op_type not in WEIGHTED or node.name in int8 or node.input[0] not in quantized:
            continue
        if node.op_type == "ConvTranspose":
            raise invalid(f"onnxruntime would quantise `{node.name}`, which reads the output of an int8 layer")
        if node.op_type == "Gemm":  # the operator insists on an activation; this one is the identity
            node.attribute.append(helper.make_attribute("activation", "LeakyRelu"))
            node.attribute.append(helper.make_attribute("activation_alpha", 1.0))
        node.op_type, node.domain = f"Fused{node.op_type}", _CONTRIB
        graph.use_domain(_CONTRIB, 1)
